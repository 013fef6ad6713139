"""The digest of what nobody trains in a run. Called by both sides, so that they mean the same frozen tensors."""

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.local_training import KnowsFrozenTensors, TrainingMethod


def frozen_digest(method: TrainingMethod, study: Study, run: RunPlan) -> str | None:
    """SHA-256 in hex of the frozen tensors that all sites have in common; None where there is none.

    A training method that cannot say has none as far as anybody knows: its shared tensors are then all that is agreed.
    """
    if not isinstance(method, KnowsFrozenTensors):
        return None
    return method.frozen_digest(study, run)
