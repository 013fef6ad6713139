"""What a worker keeps between rounds, and what makes it: the plug-in point ``fedhealth.training``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTask:
    """One local round: `strategy_config` is what the strategy asked for, already through the allow-list."""

    run_name: str
    round_number: int
    attempt: int
    strategy_config: Mapping[str, float | int | bool]
    is_cancelled: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdate:
    """The new shared tensors by name (the gate checks and flattens them), and training metrics.

    No count of patients: the weight of a site is the size declared at admission.
    """

    tensors: Mapping[str, Vector] = field(repr=False)
    metrics: Metrics


class LocalSession(Protocol):
    """One site's training for one run: model, cohort and private state, kept between rounds."""

    def evaluate(self, vector: Vector) -> Metrics:
        """Metrics of the incoming shared tensors (with the site's private ones) on validation patients.

        A metric that is undefined for this cohort (AUC with one class) is left out.
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
