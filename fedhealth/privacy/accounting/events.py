"""What a ledger keeps: mechanism events, never epsilons. A closed list: what is not on it is refused.

An event says what was released in terms that an accountant can compose. The same models travel in
contributions and round records, and lie in the ledger.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fedhealth.errors import PrivacyError

Unit = Literal["patient", "site"]
Population = Literal["train", "validation", "test", "all"]
SplitId = Annotated[str, Field(pattern=r"^[a-z0-9]{1,16}$")]
NoiseMultiplier = Annotated[float, Field(gt=0, le=1e9)]
Generator = Literal["chacha20", "seeded_for_tests"]


class ClosedEvent(BaseModel):
    """Base: no unknown field, nothing mutable, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PoissonSubsampledGaussian(ClosedEvent):
    """DP-SGD steps (Abadi et al. 2016, arXiv 1607.00133, algorithm 1, with Poisson sampling).

    Each step: every patient joins with chance `sampling_rate`; clipped gradients are summed; Gaussian noise of
    standard deviation `noise_multiplier` times the clipping norm is added. `population` is the side of the
    split (`split_id`) that patients come from.
    """

    kind: Literal["poisson_subsampled_gaussian"] = "poisson_subsampled_gaussian"
    unit: Literal["patient"] = "patient"
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampler: Literal["poisson"] = "poisson"
    sampling_rate: float = Field(gt=0, le=1)
    noise_multiplier: NoiseMultiplier
    steps: int = Field(ge=1, le=10**9)
    population: Population = "train"
    split_id: SplitId
    generator: Generator = "chacha20"


class GaussianRelease(ClosedEvent):
    """A Gaussian mechanism without sampling, `steps` times; `noise_multiplier` is sigma over L2 sensitivity.

    With unit ``site`` it is a round of DP-FedAvg or one row of DP-FTRL's matrix mechanism.
    """

    kind: Literal["gaussian"] = "gaussian"
    unit: Unit
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampler: Literal["none"] = "none"
    noise_multiplier: NoiseMultiplier
    steps: int = Field(ge=1, le=10**9)
    population: Population
    split_id: SplitId
    generator: Generator = "chacha20"


class DistributedSkellam(ClosedEvent):
    """A sum of whole-number contributions to which sites added shares of Skellam noise, opened `steps` times.

    Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995). Norms and variance are in grid steps. `variance` is that of the noise
    of `num_honest` sites together: the bound holds if the noise of at least so many is in every opened sum and is told
    to nobody. That a site takes part is public: adding or removing one means that its contribution, or a patient's, is
    in the sum or is zero. With sampler ``poisson`` each contribution is in a sum with chance `sampling_rate`.
    """

    kind: Literal["distributed_skellam"] = "distributed_skellam"
    unit: Unit
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampler: Literal["none", "poisson"] = "none"
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    l1_sensitivity: float = Field(ge=1, le=1e18)
    l2_sensitivity: float = Field(ge=1, le=1e12)
    variance: float = Field(gt=0, le=1e18)
    num_honest: int = Field(ge=1, le=10**9)
    steps: int = Field(ge=1, le=10**9)
    population: Population
    split_id: SplitId
    generator: Generator = "chacha20"

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the honest sites' noise over the L2 sensitivity."""
        return math.sqrt(self.variance) / self.l2_sensitivity

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sampler == "none" and self.sampling_rate != 1:
            raise ValueError("without a sampler everything is in every sum")
        if self.l1_sensitivity < self.l2_sensitivity:
            raise ValueError("no vector has an L1 norm below its L2 norm")
        return self


class UnboundedRelease(ClosedEvent):
    """Something left without differential privacy, `steps` times: no epsilon bounds it."""

    kind: Literal["unbounded"] = "unbounded"
    unit: Unit
    adjacency: Literal["add_or_remove_one"] = "add_or_remove_one"
    sampler: Literal["none"] = "none"
    steps: int = Field(ge=1, le=10**9)


Event = Annotated[
    PoissonSubsampledGaussian | GaussianRelease | DistributedSkellam | UnboundedRelease,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(value: object) -> Event:
    """An event from its JSON object.

    Raises:
        PrivacyError: FH-PRIVACY-001 an unknown kind, or a field that is unknown or out of its range.
    """
    try:
        return _EVENT.validate_python(value)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])[:80]
        raise PrivacyError(
            "FH-PRIVACY-001",
            f"a privacy event is not one that this version knows (at {where or 'the top'}).",
            why="What cannot be accounted for cannot be added up; guessing could only be too low.",
            fix="Use the version of fedhealth that wrote it, or a newer one.",
        ) from None


def merge_events(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same events with equal ones counted together, in order of first appearance."""
    steps: dict[Event, int] = {}
    for event in events:
        single = event.model_copy(update={"steps": 1})
        steps[single] = steps.get(single, 0) + event.steps
    return tuple(event.model_copy(update={"steps": n}) for event, n in steps.items())
