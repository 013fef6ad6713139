"""A training method that adds one to every parameter, for benchmarks and end-to-end tests.

It makes a round's result known in advance (after n rounds every element is n, whatever the sites'
weights) and its cost nothing but the federation's. It reads no patient and imports no torch.
"""

import time
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fedhealth.config.base import ConfigModel
from fedhealth.contracts.local_training import (
    LocalUpdate,
    Metrics,
    RoundTask,
    SiteContext,
    Vector,
)
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import CancelledTrainingError, PrivacyError
from fedhealth.models.options import parse_options

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

POLL_INTERVAL_S = 0.02
"""How often a simulated training looks at `is_cancelled`: well below any deadline worth testing."""


class AddOneOptions(ConfigModel):
    """Size of the pretended model, and how slow the pretended training is."""

    num_parameters: int = Field(1000, ge=1, le=1_000_000_000, description="Elements in all.")
    num_tensors: int = Field(1, ge=1, le=10_000, description="Tensors they are spread over.")
    delay_s: float = Field(
        0.0, ge=0, le=3600, description="Benchmarks only: pretended training time of a round."
    )
    delay_sites: list[str] = Field(
        default_factory=list,
        description="Benchmarks only: sites that are slow; empty: all of them.",
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.num_parameters < self.num_tensors:
            raise ValueError("num_parameters must be at least num_tensors")
        return self


class AddOne:
    """The `fedhealth.training` entry point ``add_one`` (a `TrainingMethod`)."""

    def initial_tensors(self, study: "Study", run: "RunPlan") -> dict[str, Vector]:  # noqa: ARG002
        """Zeros, spread over `num_tensors` tensors as evenly as possible.

        Raises:
            ConfigError: FH-MODEL-001 an option is wrong.
        """
        options = _options(study)
        bounds = np.linspace(0, options.num_parameters, options.num_tensors + 1).astype(np.int64)
        return {
            f"tensor_{index:04d}": np.zeros(int(size), dtype=np.float32)
            for index, size in enumerate(np.diff(bounds))
        }

    def open_session(
        self,
        study: "Study",
        run: "RunPlan",  # noqa: ARG002 - the protocol's shape
        spec: TensorSpec,
        site: SiteContext,
    ) -> "AddOneSession":
        """Nothing is loaded: `site.load_cohort` is never called.

        Raises:
            ConfigError: FH-MODEL-001 an option is wrong.
        """
        options = _options(study)
        is_slow = not options.delay_sites or site.site_id in options.delay_sites
        return AddOneSession(spec, delay_s=options.delay_s if is_slow else 0.0)


class AddOneSession:
    """One site's session (a `LocalSession`); it keeps no state."""

    def __init__(self, spec: TensorSpec, *, delay_s: float) -> None:
        self._spec = spec
        self._delay_s = delay_s

    def evaluate(self, vector: Vector) -> Metrics:  # noqa: ARG002 - nothing to evaluate
        """No metrics."""
        return {}

    def patient_metrics(self, vector: Vector) -> dict[str, NDArray[np.float64]]:  # noqa: ARG002 - no patients
        """No values: it reads no patient."""
        return {}

    def train(self, vector: Vector, task: RoundTask) -> LocalUpdate:
        """The incoming vector plus one.

        Raises:
            CancelledTrainingError: FH-TRAIN-001 `task.is_cancelled()` turned true.
            AggregationError: FH-TENSOR-003 the vector is not on the spec.
            PrivacyError: FH-PRIVACY-055 the study asks for patient privacy.
        """
        if task.mechanism is not None:
            raise PrivacyError(
                "FH-PRIVACY-055",
                "training 'add_one' cannot carry out patient privacy.",
                why="It takes no DP-SGD step; an update said to be private would not be what the ledger says.",
                fix="Name training method 'supervised' in study.yaml, or take the privacy section out.",
            )
        end = time.monotonic() + self._delay_s
        while True:
            if task.is_cancelled():
                raise CancelledTrainingError(
                    "FH-TRAIN-001",
                    f"training of round {task.round_number} was cancelled.",
                    why="The round's deadline passed or the site is stopping.",
                )
            rest = end - time.monotonic()
            if rest <= 0:
                break
            time.sleep(min(rest, POLL_INTERVAL_S))
        return LocalUpdate(tensors=self._spec.unflatten(vector + np.float32(1)), metrics={})

    def commit(self, round_number: int) -> None:
        """Nothing to keep."""


def _options(study: "Study") -> AddOneOptions:
    return parse_options(AddOneOptions, study.training.options, owner="training 'add_one'")
