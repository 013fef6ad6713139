"""What the round loop asks of a strategy, in fedhealth's words.

`flower/strategy_adapter.py` implements it over Flower's five verbs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.local_training import NoiseGenerator

Vector = NDArray[np.float32]
StrategyConfig = dict[str, float | int | bool]

CLIPPING_NORM = "clipping_norm"
"""Key of a strategy's configuration that bounds the whole update of a site."""
STRATEGY_CONFIG_ALLOWED: frozenset[str] = frozenset(
    {CLIPPING_NORM, "proximal_mu", "effective_steps"}
)
"""Keys of a strategy's ConfigRecord that may enter a manifest and so reach a site. Everything else is dropped
(Flower's own bookkeeping such as `server-round`) or refused (see `flower/strategy_adapter.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReply:
    """One site's verified contribution. `weight` is the training size declared at admission (public).

    With secure aggregation one reply stands for all survivors: their mean model, total weight and mean metrics;
    `num_sites` says how many they are.
    """

    site_id: str
    weight: float
    load_vector: Callable[[], Vector] = field(repr=False)
    train_metrics: Mapping[str, float]
    evaluate_metrics: Mapping[str, float]
    num_sites: int = 1


SiteLevelMechanism = Literal["dp-fedavg", "dp-ftrl", "distributed-skellam"]

MAX_ROUNDING_LOSS: Final = 2.0
"""With whole-number noise: most that rounding to the grid may lengthen a contribution, and so the noise that hides it.
Beyond, more than half of the noise would be there for the rounding; `plan_distributed` refuses such a grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkellamShare:
    """What an account needs of a sum whose noise came from its sites. Norms and variance are in steps of one grid."""

    l1_sensitivity: float
    """Largest L1 norm of one site's contribution."""
    l2_sensitivity: float
    """Largest L2 norm of it."""
    variance: float
    """Of the noise of `num_honest` sites together, on each coordinate."""
    num_honest: int
    """Fewest sites whose noise is in the sum and is told to nobody: the trust assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLevelRelease:
    """What one round's model told about a whole site.

    One Gaussian mechanism, or two with adaptive clipping; with `distributed-skellam` one Skellam mechanism, `skellam`.
    Unit: the site (add or remove one). A patient's guarantee is another matter and is never added to it.
    """

    mechanism: SiteLevelMechanism
    noise_multiplier: float
    """Standard deviation of the noise on the sum of updates over its L2 sensitivity: what an account composes."""
    noise_std: float
    """Standard deviation of the noise that every coordinate of the mean update got; of the honest sites' noise where
    sites made it."""
    clipping_norm: float
    """The norm that clipped this round's updates."""
    denominator: int
    """The public number that the sum is divided by, whoever replied."""
    num_replies: int
    quantile_multiplier: float | None
    """With adaptive clipping: the same ratio for the noised count of unclipped updates (Andrew et al. 2021)."""
    generator: NoiseGenerator
    skellam: SkellamShare | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """The next global vector (float32, finite, on the spec) and size-weighted mean metrics.

    `site_level` is there if the strategy noised the model so that it hides a whole site; `site_level_so_far` are
    all such releases of the run, this one included, those before a restart too.
    """

    vector: Vector = field(repr=False)
    train_metrics: Mapping[str, float]
    evaluate_metrics: Mapping[str, float]
    site_level: SiteLevelRelease | None = None
    site_level_so_far: tuple[SiteLevelRelease, ...] = ()


class Aggregator(Protocol):
    """A strategy bound to one run."""

    def configure(self, round_number: int, vector: Vector, cohort: Sequence[str]) -> StrategyConfig:
        """What the strategy wants every site of this round's cohort to know.

        Raises:
            QuorumError: the strategy wants more sites than the cohort holds.
            ConfigError: the strategy wants something that may not reach a site.
        """
        ...

    def aggregate(self, round_number: int, replies: Iterator[SiteReply]) -> Aggregate:
        """Fold replies, which come in roster order and are loaded one at a time.

        Raises:
            AggregationError: the strategy returned nothing, another spec or a non-finite value.
            whatever the iterator raises: the round is void.
        """
        ...

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """What the strategy carries from round to round (server optimiser moments), by name."""
        ...

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave. Raises AggregationError on unknown names."""
        ...
