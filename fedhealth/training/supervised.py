"""Supervised local training: entry point ``supervised`` of group ``fedhealth.training``.

The same study, site and round give the same update, bit for bit on the same machine, however long anything
took and whatever was cancelled before: batch order comes from names and the study's seed, the optimiser is new
every round, and the private head comes from the last round that was committed. Under patient privacy the first
half does not hold: who is in a step and what the noise is are secret, and new every time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedhealth.config.base import ConfigModel
from fedhealth.contracts.control_variates import model_part
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import (
    LocalUpdate,
    Metrics,
    PatientMechanism,
    RoundTask,
    SiteContext,
    Vector,
)
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import DEFAULT_MEMORY_LIMIT_BYTES, PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.errors import ConfigError, PrivacyError, TrainingError
from fedhealth.models.build import modality_prefixes
from fedhealth.models.options import parse_options
from fedhealth.models.row_independence import check_loss_is_a_mean, check_rows_are_independent
from fedhealth.models.seeds import derive_seed
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
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
from fedhealth.training.learner import Learner, dump, load, spec_of
from fedhealth.training.local_steps import StepPlan, count_steps, run_steps
from fedhealth.training.patient_gradients import flat_patient_gradients
from fedhealth.training.patient_values import patient_values
from fedhealth.training.private_head import HeadStore, Tensors
from fedhealth.training.private_steps import clipped_gradients, run_private_steps
from fedhealth.training.shared_records import load_shared_records
from fedhealth.training.strategy_wishes import StrategyWishes

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
        self._study, self._run, self._site_id = study, run, site.site_id
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
        self._first_head = dump(self._learner.private)
        self._store = head_store(site, run, self._learner)
        newest = self._store.newest() if self._learner.private else None
        self._head_round, self._head = newest or (0, self._first_head)
        self._controls = OwnControls(
            control_store(site, run, self._learner), dump(self._learner.shared)
        )
        self._pending_controls: Tensors | None = None
        self._pending: Tensors | None = None
        self._gradients: ClippedGradients | None = None
        self._gradients_without: frozenset[str] = frozenset()
        self._randomness = (
            Randomness.from_os()
            if site.noise_seed is None
            else Randomness.seeded_for_tests(site.noise_seed)
        )

    def evaluate(self, vector: Vector) -> Metrics:
        """Metrics of the incoming shared tensors, with the last committed private head, on validation patients.

        Raises:
            AggregationError: FH-TENSOR-003 the vector is not on the spec.
            TrainingError: FH-TRAIN-004 the model's output is not finite.
        """
        self._load(vector, self._head)
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
        self._load(vector, self._head)
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
        wishes = StrategyWishes.of(task.strategy_config)
        if self._run.control_variates and wishes != StrategyWishes():
            raise wishes_with_controls()
        self._pending = self._pending_controls = None
        self._use_head_before(task.round_number)
        self._load(vector, self._head)
        with frozen_tensors(self._learner.shared, task.frozen):
            if self._run.control_variates:
                return self._train_corrected(self._spec.unflatten(vector), task)
            update = self._train_what_is_not_frozen(task, wishes)
        outgoing = wishes.outgoing(
            self._spec.unflatten(vector),
            dict(update.tensors),
            optimizer=self._study.training.optimizer,
            num_steps=self._count_steps(task.mechanism),
        )
        as_they_came = {name: update.tensors[name] for name in task.frozen}
        return replace(update, tensors={**outgoing, **as_they_came})

    def _train_corrected(self, incoming: Tensors, task: RoundTask) -> LocalUpdate:
        """SCAFFOLD's round: corrected steps, then both halves of the update and the next control variate."""
        own = self._controls.before(task.round_number)
        update = self._train_what_is_not_frozen(
            task, StrategyWishes(), corrections(self._learner, incoming, own)
        )
        done = finish(
            incoming,
            dict(update.tensors),
            own,
            learning_rate=self._study.training.optimizer.learning_rate,
            num_steps=self._count_steps(task.mechanism),
            frozen=task.frozen,
        )
        self._pending_controls = done.own
        return replace(update, tensors=done.outgoing)

    def _count_steps(self, mechanism: PatientMechanism | None) -> int:
        """Under privacy a public number, from the declared size."""
        if mechanism is not None:
            return mechanism.num_steps
        return count_steps(len(self._train), self._study.training)

    def _train_what_is_not_frozen(
        self,
        task: RoundTask,
        wishes: StrategyWishes,
        added: Mapping[str, torch.Tensor] | None = None,
    ) -> LocalUpdate:
        plan = StepPlan(
            config=self._study.training,
            seed=derive_seed(
                self._study.seed, "local steps", self._run.name, self._site_id, task.round_number
            ),
            proximal_mu=wishes.proximal_mu,
            is_cancelled=task.is_cancelled,
            shared=self._shared,
            corrections=added or {},
        )
        if task.mechanism is not None:
            return self._train_privately(plan, task.mechanism, task.frozen)
        train_loss = run_steps(self._learner, self._train, plan)
        self._pending = dump(self._learner.private)
        return LocalUpdate(tensors=dump(self._learner.shared), metrics={"train_loss": train_loss})

    def _train_privately(
        self, plan: StepPlan, mechanism: PatientMechanism, frozen: frozenset[str]
    ) -> LocalUpdate:
        if self._study.privacy is None:
            raise PrivacyError(
                "FH-PRIVACY-057",
                "the round asks for private steps, and the study has no privacy section.",
                why="The model was then not checked for layers that mix patients.",
                fix="Add `privacy` to study.yaml.",
            )
        if self._gradients is not None and frozen != self._gradients_without:
            self._gradients.close()
            self._gradients = None
        if self._gradients is None:
            self._gradients = clipped_gradients(self._learner, self._train, self._shared)
            self._gradients_without = frozen
        run_private_steps(
            self._learner, self._train, plan, mechanism, self._randomness, gradients=self._gradients
        )
        self._pending = dump(self._learner.private)
        return LocalUpdate(
            tensors=dump(self._learner.shared),
            metrics={},
            mechanism=mechanism,
            generator=self._randomness.generator,
        )

    def patient_gradients(
        self, vector: Vector, is_cancelled: Callable[[], bool]
    ) -> Iterator[Vector]:
        """Each training patient's gradient at the incoming shared tensors; see `GivesPatientGradients`.

        Raises:
            AggregationError: FH-TENSOR-003 the vector is not on the spec.
            CancelledTrainingError: FH-TRAIN-001 `is_cancelled()` turned true.
        """
        self._load(vector, self._head)
        yield from flat_patient_gradients(
            self._learner,
            self._train,
            self._model_spec,
            modality_dropout=self._study.training.modality_dropout,
            randomness=self._randomness,
            is_cancelled=is_cancelled,
        )

    def commit(self, round_number: int) -> None:
        """Make the private head and the control variate of the last `train` durable, as those of `round_number`.

        Raises:
            TrainingError: FH-TRAIN-008 nothing was trained since the last commit.
        """
        if self._pending is None:
            raise TrainingError(
                "FH-TRAIN-008",
                f"round {round_number} has no trained state to commit.",
                why="Commit follows a training that was neither cancelled nor committed already.",
            )
        if self._pending_controls is not None:
            self._controls.save(round_number, self._pending_controls)
        if self._learner.private:
            self._store.save(round_number, self._pending)
            self._head_round, self._head = round_number, self._pending
        self._pending = self._pending_controls = None

    def _use_head_before(self, round_number: int) -> None:
        """Go back to an older head when this round, or one after it, was committed before."""
        if self._learner.private and self._head_round >= round_number:
            older = self._store.newest(before_round=round_number)
            self._head_round, self._head = older or (0, self._first_head)

    def _load(self, vector: Vector, head: Tensors) -> None:
        model = model_part(vector, has_controls=self._run.control_variates)
        load(self._learner.shared, self._model_spec.unflatten(model))
        load(self._learner.private, head)


def protects_patients(study: "Study") -> bool:
    """Whether one patient's gradient is clipped by itself: the model may then not mix patients."""
    masks = study.secure_aggregation
    noise = None if masks is None else masks.distributed_privacy
    return study.privacy is not None or (noise is not None and noise.unit == "patient")


def supervised_options(study: "Study") -> SupervisedOptions:
    """The method's options. Raises ConfigError (FH-MODEL-001) when one is wrong."""
    return parse_options(SupervisedOptions, study.training.options, owner="training 'supervised'")


def head_store(site: SiteContext, run: "RunPlan", learner: Learner) -> HeadStore:
    """Where a run's private heads are kept at this site."""
    return HeadStore(site.state_dir / "private_heads" / run.name, spec_of(learner.private))


def _check_spec(given: TensorSpec, own: TensorSpec) -> None:
    if given != own:
        raise ConfigError(
            "FH-TRAIN-003",
            f"the run's tensor spec ({len(given.entries)} tensors, {given.num_elements} elements) is not this "
            f"model's ({len(own.entries)} tensors, {own.num_elements} elements).",
            why="Server and site must build the same model from the same study.",
            fix="Install the same fedhealth and model package versions at the site and at the server.",
        )
