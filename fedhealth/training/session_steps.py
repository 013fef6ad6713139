"""The steps that a session's phases take, plain or private. Called by `supervised`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedhealth.contracts.local_training import RoundTask
from fedhealth.data.batch import PatientDataset
from fedhealth.errors import PrivacyError
from fedhealth.models.seeds import derive_seed
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.frozen_tensors import frozen_tensors
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import StepPlan, count_steps, run_steps
from fedhealth.training.personalisation.work import Phase
from fedhealth.training.private_steps import clipped_gradients, run_private_steps
from fedhealth.training.shared_records import SharedRecords

if TYPE_CHECKING:
    from fedhealth.config.study import Study

_MOST_KEPT_GRADIENTS = 4
"""Ways to clip that are kept from round to round: two phases, each with or without frozen encoders."""


@dataclass(slots=True, kw_only=True)
class SessionSteps:
    """What all phases of all rounds have in common.

    Attributes:
        study: training section, privacy and seed.
        learner: trained in place.
        dataset: training patients.
        shared: records of `training.shared_data`.
        randomness: of private steps.
        seed_parts: run and site, for the seed of batches.
    """

    study: "Study"
    learner: Learner
    dataset: PatientDataset
    shared: SharedRecords | None
    randomness: Randomness
    seed_parts: tuple[str, str]
    _gradients: dict[frozenset[str], ClippedGradients] = field(default_factory=dict, repr=False)

    def count(self, task: RoundTask) -> int:
        """Steps of a round; under privacy a public number, from the declared size."""
        if task.mechanism is not None:
            return task.mechanism.num_steps
        return count_steps(len(self.dataset), self.study.training)

    def take(
        self,
        phase: Phase,
        task: RoundTask,
        *,
        proximal_mu: float,
        corrections: Mapping[str, Tensor] | None,
    ) -> float | None:
        """Train in place; the mean training loss, None for private steps.

        Raises:
            PrivacyError: FH-PRIVACY-057 the study does not protect patients and the task does; or as
                `run_private_steps`.
            CancelledTrainingError, TrainingError, SiteDataError: as `run_steps`.
        """
        parameters = {**self.learner.shared, **self.learner.private}
        # What the round froze stays frozen when a phase ends.
        names = frozenset(phase.frozen) - task.frozen
        plan = self._plan(phase, task, proximal_mu, corrections or {})
        with frozen_tensors(parameters, names):
            if task.mechanism is None:
                return run_steps(self.learner, self.dataset, plan)
            if self.study.privacy is None:
                raise PrivacyError(
                    "FH-PRIVACY-057",
                    "the round asks for private steps, and the study has no privacy section.",
                    why="The model was then not checked for layers that mix patients.",
                    fix="Add `privacy` to study.yaml.",
                )
            run_private_steps(
                self.learner,
                self.dataset,
                plan,
                replace(task.mechanism, num_steps=phase.num_steps),
                self.randomness,
                gradients=self._clipped(names | task.frozen),
            )
        return None

    def _plan(
        self,
        phase: Phase,
        task: RoundTask,
        proximal_mu: float,
        corrections: Mapping[str, Tensor],
    ) -> StepPlan:
        extra = (phase.name,) if phase.name else ()
        config = self.study.training.model_copy(
            update={"local_steps": phase.num_steps, "local_epochs": None}
        )
        return StepPlan(
            config=config,
            seed=derive_seed(
                self.study.seed, "local steps", *self.seed_parts, task.round_number, *extra
            ),
            proximal_mu=phase.strength if phase.anchors is not None else proximal_mu,
            anchors=phase.anchors,
            is_cancelled=task.is_cancelled,
            shared=self.shared,
            corrections=corrections,
        )

    def _clipped(self, frozen: frozenset[str]) -> ClippedGradients:
        if frozen not in self._gradients:
            if len(self._gradients) == _MOST_KEPT_GRADIENTS:
                for kept in self._gradients.values():
                    kept.close()
                self._gradients.clear()
            self._gradients[frozen] = clipped_gradients(self.learner, self.dataset, self.shared)
        return self._gradients[frozen]
