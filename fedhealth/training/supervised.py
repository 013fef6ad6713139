"""Supervised local training: entry point ``supervised`` of group ``fedhealth.training``.

The same study, site and round give the same update, bit for bit on the same machine, however long anything
took and whatever was cancelled before: batch order comes from names and the study's seed, the optimiser is new
every round, and the private head comes from the last round that was committed. Under patient privacy the first
half does not hold: who is in a step and what the noise is are secret, and new every time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedhealth.config.base import ConfigModel
from fedhealth.config.personalisation import KEEPS_MODEL, TRAINS_IN_ITS_OWN_WAY
from fedhealth.contracts.control_variates import model_part
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import (
    LocalUpdate,
    Metrics,
    RoundTask,
    SiteContext,
    Vector,
)
from fedhealth.contracts.tensors import TensorSpec, vector_digest
from fedhealth.data.batch import DEFAULT_MEMORY_LIMIT_BYTES, PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.errors import ConfigError, TrainingError
from fedhealth.models.build import modality_prefixes
from fedhealth.models.options import parse_options
from fedhealth.models.row_independence import check_loss_is_a_mean, check_rows_are_independent
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.control_variates import (
    OwnControls,
    control_store,
    corrections,
    finish,
    tensors_of,
    wishes_with_controls,
)
from fedhealth.training.frozen_encoders import apply_frozen_encoders
from fedhealth.training.frozen_tensors import frozen_tensors
from fedhealth.training.frozen_weights import digest_of_frozen
from fedhealth.training.learner import Learner, dump, load, spec_of
from fedhealth.training.patient_gradients import flat_patient_gradients
from fedhealth.training.patient_values import patient_values
from fedhealth.training.personalisation.methods import method_of
from fedhealth.training.personalisation.state import open_state
from fedhealth.training.personalisation.work import Phase, RoundResult, RoundWork, Tensors
from fedhealth.training.session_steps import SessionSteps
from fedhealth.training.shared_records import load_shared_records
from fedhealth.training.strategy_wishes import StrategyWishes, wishes_with_own_way

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study


class SupervisedOptions(ConfigModel):
    """Options of the training method in study.yaml (`training.options`)."""

    evaluation_batch_size: int = Field(64, ge=1, le=4096, description="Patients a forward pass.")
    memory_limit_bytes: int = Field(
        DEFAULT_MEMORY_LIMIT_BYTES,
        ge=0,
        description="Most bytes of volumes kept in memory a split side.",
    )


class SupervisedTraining:
    """A `TrainingMethod`: the study's model, task and optimiser on the site's training patients."""

    supports_patient_privacy = True
    supports_patient_gradients = True
    supports_personalisation = True
    supports_control_variates = True
    supports_shared_data = True

    def initial_tensors(self, study: "Study", run: "RunPlan") -> dict[str, Vector]:
        """The shared parameters of round 1, by name: a pure function of study and run.

        Raises:
            ConfigError: model, task, options or training method of the study are wrong.
            PrivacyError: FH-PRIVACY-056 the study protects patients and the model mixes them, FH-PRIVACY-058 the
                task does.
        """
        supervised_options(study)
        learner = Learner(study, run)
        if protects_patients(study):
            check_loss_is_a_mean(learner.task)
            check_rows_are_independent(learner.model, learner.contract)
        return tensors_of(run, learner)

    def modality_prefixes(self, study: "Study", run: "RunPlan") -> Mapping[str, tuple[str, ...]]:
        """As the study's model says.

        Raises:
            ConfigError: FH-MODEL-011 it does not say; or as `initial_tensors`.
        """
        return modality_prefixes(Learner(study, run).model)

    def frozen_digest(self, study: "Study", run: "RunPlan") -> str | None:
        """Of the parameters that the study's model does not train. Raises as `initial_tensors`."""
        return digest_of_frozen(study, run, Learner(study, run).model)

    def open_session(
        self, study: "Study", run: "RunPlan", spec: TensorSpec, site: SiteContext
    ) -> "SupervisedSession":
        """Build model and data once.

        Raises:
            ConfigError: FH-TRAIN-003 the spec is not this model's; or as `Learner`.
            PrivacyError: FH-PRIVACY-056 the study protects patients and the model mixes them, FH-PRIVACY-058 the
                task does.
            SiteDataError: the cohort does not keep the data contract.
        """
        return SupervisedSession(study, run, spec, site)


class SupervisedSession:
    """One site's training for one run (a `LocalSession`); see `SupervisedTraining.open_session`."""

    def __init__(self, study: "Study", run: "RunPlan", spec: TensorSpec, site: SiteContext) -> None:
        options = supervised_options(study)
        torch.set_num_threads(site.num_threads)
        self._study, self._run = study, run
        self._batch_size = options.evaluation_batch_size
        self._learner = Learner(study, run, device=site.device)
        if protects_patients(study):
            check_loss_is_a_mean(self._learner.task)
            check_rows_are_independent(self._learner.model, self._learner.contract)
        self._model_spec = spec_of(self._learner.shared)
        self._spec = TensorSpec.of(tensors_of(run, self._learner))
        _check_spec(spec, self._spec)
        sides = split_patients(site.load_cohort())
        self._train, self._validation = (
            PatientDataset(
                sides[side], self._learner.contract, memory_limit_bytes=options.memory_limit_bytes
            )
            for side in (SplitName.TRAIN, SplitName.VALIDATION)
        )
        self._shared = load_shared_records(
            study,
            self._learner.contract,
            cache_dir=site.cache_dir,
            memory_limit_bytes=options.memory_limit_bytes,
            num_own=len(self._train),
        )
        shared = () if self._shared is None else (self._shared.dataset,)
        apply_frozen_encoders(
            self._learner,
            (self._train, self._validation, *shared),
            batch_size=self._batch_size,
            cache_dir=site.cache_dir,
        )
        self._first_private = dump(self._learner.private)
        self._method = method_of(run)
        self._state = open_state(site, run, self._learner)
        self._controls = OwnControls(
            control_store(site, run, self._learner), dump(self._learner.shared)
        )
        self._pending: _Pending | None = None
        self._randomness = (
            Randomness.from_os()
            if site.noise_seed is None
            else Randomness.seeded_for_tests(site.noise_seed)
        )
        self._steps = SessionSteps(
            study=study,
            learner=self._learner,
            dataset=self._train,
            shared=self._shared,
            randomness=self._randomness,
            seed_parts=(run.name, site.site_id),
        )

    def evaluate(self, vector: Vector) -> Metrics:
        """Metrics of the incoming shared tensors, with the last committed private head, on validation patients.

        Raises:
            AggregationError: FH-TENSOR-003 the vector is not on the spec.
            TrainingError: FH-TRAIN-004 the model's output is not finite.
        """
        self._load(vector, self._state.own)
        if len(self._validation) == 0:
            return {}
        predictions = self._learner.predict(self._validation, batch_size=self._batch_size)
        return self._learner.task.metrics(predictions, self._validation.labels.numpy())

    def patient_metrics(self, vector: Vector) -> dict[str, NDArray[np.float64]]:
        """Metrics of each validation patient that noise can cover, (n,) each, finite; never released as such.

        Accuracy, Brier score and log loss for a binary task; see `ShapedTask.record_values`.

        Several records of a patient give their mean. An output that is not finite counts as wrong with certainty:
        an error would tell the server that such a patient is there.

        Raises:
            AggregationError: FH-TENSOR-003 the vector is not on the spec.
        """
        self._load(vector, self._state.own)
        return patient_values(self._learner, self._validation, batch_size=self._batch_size)

    def train(self, vector: Vector, task: RoundTask) -> LocalUpdate:
        """Train from the incoming shared tensors, and from the newest private head of an earlier round.

        With `task.mechanism` the steps are private ones (`private_steps`), and no metric comes back: the
        training loss is a statement about training patients that no noise covers.

        Raises:
            CancelledTrainingError: FH-TRAIN-001 `task.is_cancelled()` turned true.
            PrivacyError: FH-PRIVACY-057 the study does not protect patients and the task does; or as
                `private_steps.run_private_steps`.
            TrainingError: FH-TRAIN-004 the loss or a weight is not finite, FH-TRAIN-005 there is no training
                patient (without a mechanism), FH-TRAIN-006 the private head is damaged, FH-TRAIN-007 the
                strategy asks for something unknown, FH-TRAIN-050 steps do not add up.
            AggregationError: FH-TENSOR-003 the vector is not on the spec.
        """
        if len(self._train) == 0 and task.mechanism is None:
            raise TrainingError(
                "FH-TRAIN-005",
                "this site has no patient on the training side.",
                why="Without a patient there is nothing to learn from.",
                fix="Check the cohort and the study's split, or leave the federation.",
            )
        wishes = self._wishes(task)
        self._pending = None
        own = self._state.before(task.round_number)
        # A method with a model of the site's own takes it up itself: every round also begins at the shared one.
        self._load(vector, None if self._run.personalisation in KEEPS_MODEL else own)
        with frozen_tensors(self._learner.shared, task.frozen):
            if self._run.control_variates:
                return self._train_corrected(vector, own, task)
            result = self._train_round(vector, own, task, proximal_mu=wishes.proximal_mu)
        self._pending = _Pending(own=result.own, model_sha256=vector_digest(vector))
        outgoing = wishes.outgoing(
            self._spec.unflatten(vector),
            result.outgoing,
            optimizer=self._study.training.optimizer,
            num_steps=self._steps.count(task),
        )
        as_they_came = {name: self._spec.unflatten(vector)[name] for name in task.frozen}
        return self._update({**outgoing, **as_they_came}, task, result.train_loss)

    def _wishes(self, task: RoundTask) -> StrategyWishes:
        """What the strategy asks for, where this run can do it."""
        wishes = StrategyWishes.of(task.strategy_config)
        if wishes == StrategyWishes():
            return wishes
        if self._run.control_variates:
            raise wishes_with_controls()
        if self._run.personalisation in TRAINS_IN_ITS_OWN_WAY:
            raise wishes_with_own_way(self._run.personalisation)
        return wishes

    def _train_corrected(self, vector: Vector, own: Tensors | None, task: RoundTask) -> LocalUpdate:
        """SCAFFOLD's round: corrected steps, then both halves of the update and the next control variate."""
        incoming = self._spec.unflatten(vector)
        control = self._controls.before(task.round_number)
        result = self._train_round(
            vector, own, task, corrections=corrections(self._learner, incoming, control)
        )
        done = finish(
            incoming,
            result.outgoing,
            control,
            learning_rate=self._study.training.optimizer.learning_rate,
            num_steps=self._steps.count(task),
            frozen=task.frozen,
        )
        self._pending = _Pending(
            own=result.own, model_sha256=vector_digest(vector), control=done.own
        )
        return self._update(done.outgoing, task, result.train_loss)

    def _train_round(
        self,
        vector: Vector,
        own: Tensors | None,
        task: RoundTask,
        *,
        proximal_mu: float = 0.0,
        corrections: Mapping[str, torch.Tensor] | None = None,
    ) -> RoundResult:
        """One round of the run's method, from what `_load` put into the learner."""
        model = model_part(vector, has_controls=self._run.control_variates)

        def take(phase: Phase) -> float | None:
            return self._steps.take(phase, task, proximal_mu=proximal_mu, corrections=corrections)

        return self._method.train(
            RoundWork(
                learner=self._learner,
                incoming=self._model_spec.unflatten(model),
                own=own,
                num_steps=self._steps.count(task),
                is_private=task.mechanism is not None,
                take_steps=take,
            )
        )

    def _update(self, tensors: Tensors, task: RoundTask, train_loss: float | None) -> LocalUpdate:
        """With the mechanism that was reserved, of which every step was taken; then without any metric."""
        return LocalUpdate(
            tensors=tensors,
            metrics={} if train_loss is None else {"train_loss": train_loss},
            mechanism=task.mechanism,
            generator=None if task.mechanism is None else self._randomness.generator,
        )

    def patient_gradients(
        self, vector: Vector, is_cancelled: Callable[[], bool]
    ) -> Iterator[Vector]:
        """Each training patient's gradient at the incoming shared tensors; see `GivesPatientGradients`.

        Raises:
            AggregationError: FH-TENSOR-003 the vector is not on the spec.
            CancelledTrainingError: FH-TRAIN-001 `is_cancelled()` turned true.
        """
        self._load(vector, self._state.own)
        yield from flat_patient_gradients(
            self._learner,
            self._train,
            self._model_spec,
            modality_dropout=self._study.training.modality_dropout,
            randomness=self._randomness,
            is_cancelled=is_cancelled,
        )

    def commit(self, round_number: int) -> None:
        """Make what the last `train` leaves at the site durable, as that of `round_number`.

        Raises:
            TrainingError: FH-TRAIN-008 nothing was trained since the last commit.
        """
        if self._pending is None:
            raise TrainingError(
                "FH-TRAIN-008",
                f"round {round_number} has no trained state to commit.",
                why="Commit follows a training that was neither cancelled nor committed already.",
            )
        pending, self._pending = self._pending, None
        if pending.control is not None:
            self._controls.save(round_number, pending.control)
        if pending.own is not None:
            self._state.save(round_number, pending.own, model_sha256=pending.model_sha256)

    def _load(self, vector: Vector, own: Tensors | None) -> None:
        """The shared tensors, and what is the site's own in place of theirs or beside them."""
        model = model_part(vector, has_controls=self._run.control_variates)
        load(self._learner.shared, self._model_spec.unflatten(model))
        if self._run.personalisation not in KEEPS_MODEL:
            load(self._learner.private, own or self._first_private)
        elif own is not None:
            load(self._learner.shared, own)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """What a trained round would keep, until it is committed."""

    own: Tensors | None = field(repr=False)
    model_sha256: str
    control: Tensors | None = field(default=None, repr=False)


def protects_patients(study: "Study") -> bool:
    """Whether one patient's gradient is clipped by itself: the model may then not mix patients."""
    masks = study.secure_aggregation
    noise = None if masks is None else masks.distributed_privacy
    return study.privacy is not None or (noise is not None and noise.unit == "patient")


def supervised_options(study: "Study") -> SupervisedOptions:
    """The method's options. Raises ConfigError (FH-MODEL-001) when one is wrong."""
    return parse_options(SupervisedOptions, study.training.options, owner="training 'supervised'")


def _check_spec(given: TensorSpec, own: TensorSpec) -> None:
    if given != own:
        raise ConfigError(
            "FH-TRAIN-003",
            f"the run's tensor spec ({len(given.entries)} tensors, {given.num_elements} elements) is not this "
            f"model's ({len(own.entries)} tensors, {own.num_elements} elements).",
            why="Server and site must build the same model from the same study.",
            fix="Install the same fedhealth and model package versions at the site and at the server.",
        )
