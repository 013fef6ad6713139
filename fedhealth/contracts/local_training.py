"""What a worker keeps between rounds, and what makes it: the plug-in point ``fedhealth.training``."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.cohort import Cohort
from fedhealth.contracts.tensors import TensorSpec

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

Vector = NDArray[np.float32]
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteContext:
    """What a training method gets from its site. `load_cohort` is called once, at most."""

    site_id: str
    load_cohort: Callable[[], Cohort] = field(repr=False)
    state_dir: Path
    cache_dir: Path
    device: str
    num_threads: int
    noise_seed: bytes | None = field(default=None, repr=False)
    """32 bytes that make noise and sampling repeatable. Tests only: no configuration sets it, and the ledger
    then says `seeded_for_tests`."""


NoiseGenerator = Literal["chacha20", "seeded_for_tests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientMechanism:
    """DP-SGD of one local round, as it was reserved in the site's ledger: to be carried out exactly, or refused.

    Attributes:
        sampling_rate: chance that a patient is in a step, in (0, 1]; independent for each patient and step.
        noise_multiplier: standard deviation of the noise on the sum of clipped gradients, over `clipping_norm`.
        clipping_norm: most that one patient adds to that sum, L2 over all trainable tensors together.
        expected_batch_size: the constant that the noised sum is divided by; public.
        num_steps: optimiser steps, public and fixed.
    """

    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    expected_batch_size: float
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTask:
    """One local round: `strategy_config` is what the strategy asked for, already through the allow-list.

    `mechanism` is set when the study protects patients: a method that cannot carry it out must refuse. `frozen` names
    shared tensors that are not trained in this round: they come back bit for bit as they came in, or the gate refuses
    the update.
    """

    run_name: str
    round_number: int
    attempt: int
    strategy_config: Mapping[str, float | int | bool]
    is_cancelled: Callable[[], bool]
    mechanism: PatientMechanism | None = None
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdate:
    """The new shared tensors by name (the gate checks and flattens them), and training metrics.

    No count of patients: the weight of a site is the size declared at admission. `mechanism` says which one
    was carried out (None: none), `generator` where its randomness came from; the site compares both with what
    it reserved, so that a method that ignores the task's mechanism releases nothing.
    """

    tensors: Mapping[str, Vector] = field(repr=False)
    metrics: Metrics
    mechanism: PatientMechanism | None = None
    generator: NoiseGenerator | None = None


class LocalSession(Protocol):
    """One site's training for one run: model, cohort and private state, kept between rounds."""

    def evaluate(self, vector: Vector) -> Metrics:
        """Metrics of the incoming shared tensors (with the site's private ones) on validation patients.

        A metric that is undefined for this cohort (AUC with one class) is left out.
        """
        ...

    def patient_metrics(self, vector: Vector) -> "dict[str, NDArray[np.float64]]":
        """Per-patient values of `accuracy`, `brier` and `log_loss` on validation patients, each (n,) float64.

        What a noised mean is made from when the study protects patients; it never leaves the site as it is.
        """
        ...

    def train(self, vector: Vector, task: RoundTask) -> LocalUpdate:
        """Train from the incoming shared tensors. Private state is kept, not yet durable (see `commit`).

        Raises:
            CancelledTrainingError: `task.is_cancelled()` turned true.
            TrainingError: the cohort or the settings make training impossible.
        """
        ...

    def commit(self, round_number: int) -> None:
        """Make the private state of that round durable: called when the round's update is sealed."""
        ...


@runtime_checkable
class GivesPatientGradients(Protocol):
    """A session that can also give each training patient's gradient: for one global step a round.

    Its method class says ``supports_patient_gradients = True``.
    """

    def patient_gradients(
        self, vector: Vector, is_cancelled: Callable[[], bool]
    ) -> Iterator[Vector]:
        """Gradient of each training patient's mean loss by the shared tensors, flat on the spec.

        Not clipped, so it never leaves the site; a patient whose records cannot be read is left out.

        Yields:
            (n,) float32 for each patient, in any order; maybe not finite.

        Raises:
            CancelledTrainingError: `is_cancelled()` turned true.
        """
        ...


@runtime_checkable
class KnowsModalities(Protocol):
    """A training method that can say which tensors belong to a modality, and that honours `RoundTask.frozen`.

    Needed by studies with ``federation.average_encoders_over: sites_with_modality``.
    """

    def modality_prefixes(self, study: "Study", run: "RunPlan") -> Mapping[str, tuple[str, ...]]:
        """For each modality, prefixes of the names of the tensors that only patients with it train.

        A pure function of study and run. A modality without a tensor of its own may be left out.

        Raises:
            ConfigError: the model cannot say.
        """
        ...


@runtime_checkable
class KnowsFrozenTensors(Protocol):
    """A training method whose model may have tensors that nobody trains: server and sites compare their digest."""

    def frozen_digest(self, study: "Study", run: "RunPlan") -> str | None:
        """SHA-256 in hex of the frozen tensors that all sites must have in common; None where there is none.

        A pure function of study and run, on one version of the libraries.

        Raises:
            ConfigError: the model cannot be made.
        """
        ...


class TrainingMethod(Protocol):
    """The entry point object of group ``fedhealth.training``."""

    def initial_tensors(self, study: "Study", run: "RunPlan") -> dict[str, Vector]:
        """The shared tensors of round 1, by name, a pure function of study and run (server side)."""
        ...

    def open_session(
        self, study: "Study", run: "RunPlan", spec: TensorSpec, site: SiteContext
    ) -> LocalSession:
        """Build model and data once (site side).

        Raises:
            SiteDataError: the cohort does not keep the data contract.
        """
        ...
