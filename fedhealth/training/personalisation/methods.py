"""The method of a run, by name. Called by `supervised`."""

from typing import TYPE_CHECKING

from fedhealth.config.personalisation import DittoOptions, FedRepOptions, MrMtlOptions
from fedhealth.training.personalisation.ditto import Ditto
from fedhealth.training.personalisation.fedrep import FedRep
from fedhealth.training.personalisation.mr_mtl import MrMtl
from fedhealth.training.personalisation.shared_only import JointTraining
from fedhealth.training.personalisation.work import Personalisation

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan


def method_of(run: "RunPlan") -> Personalisation:
    """What the run's `personalisation` and its options name."""
    options = run.personalisation_options
    match run.personalisation:
        case "fedrep":
            return FedRep(FedRepOptions.model_validate(options))
        case "mr_mtl":
            return MrMtl(MrMtlOptions.model_validate(options))
        case "ditto":
            return Ditto(DittoOptions.model_validate(options))
        case "none" | "private_head" | "private_blocks" | "local_norm" | "fine_tune":
            return JointTraining()
