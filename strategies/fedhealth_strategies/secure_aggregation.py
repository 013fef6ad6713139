"""A wrapper around any strategy that needs the sum of updates only: under masks nobody sees a single one.

Bonawitz et al. 2017 (arXiv 1611.04482). The masks are made and removed by fedhealth's round; what is left for a
strategy is one reply that stands for all survivors: their mean model, their total weight, their mean metrics.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)
from numpy.typing import NDArray

from fedhealth.contracts.aggregation import SiteLevelRelease
from fedhealth.errors import AggregationError, ConfigError

State = dict[str, NDArray[np.generic]]
REPLIES = "sums"
"""Name, in the state, of the number of survivors of each noised round."""
STOCK = frozenset({FedAvg, FedAvgM, FedProx, FedAdam, FedYogi, FedAdagrad})
"""Flower's strategies that use the weighted mean only. Subclasses are asked themselves: Krum is one of FedAvg's."""


class KeepsState(Protocol):
    """How the inner strategy's state is read and put back."""

    def read(self) -> State:
        """The state by name."""
        ...

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `read` gave."""
        ...


class SecureAggregation(Strategy):
    """Gives an inner strategy the one reply that secure aggregation leaves.

    Args:
        inner: a strategy that needs the sum only; see `check_needs_sum_only`.
        inner_state: of that strategy.
        noise: what one round's sum tells about a site, where noise shares are under the masks; None without.

    Raises:
        ConfigError: FH-STRATEGY-061 the inner strategy needs each site's update.
    """

    streaming: ClassVar[bool] = True

    @staticmethod
    def why_more_than_the_mean(strategy: Strategy) -> str | None:
        """Of a strategy that is not wrapped: see the function of that name."""
        return why_more_than_the_mean(strategy)

    def __init__(
        self, inner: Strategy, inner_state: KeepsState, noise: SiteLevelRelease | None = None
    ) -> None:
        check_needs_sum_only(inner)
        self.inner = inner
        self._inner_state = inner_state
        self._noise = noise
        self._num_replies: list[int] = []
        self._untaken: SiteLevelRelease | None = None
        self.weighted_by_key = str(getattr(inner, "weighted_by_key", "num-examples"))
        self.arrayrecord_key = str(getattr(inner, "arrayrecord_key", "arrays"))

    @property
    def has_noise(self) -> bool:
        """Whether every sum is a release that an account of whole sites counts."""
        return self._noise is not None

    @property
    def releases(self) -> tuple[SiteLevelRelease, ...]:
        """All noised sums of the run, those before a restart too."""
        if self._noise is None:
            return ()
        return tuple(replace(self._noise, num_replies=number) for number in self._num_replies)

    def take_release(self) -> SiteLevelRelease | None:
        """The noised sum of the last round, once."""
        release, self._untaken = self._untaken, None
        return release

    def note_survivors(self, number: int) -> None:
        """Before `aggregate_train`: how many sites the sum is about."""
        if self._noise is not None:
            self._untaken = replace(self._noise, num_replies=number)
        note = getattr(self.inner, "note_sum_of", None)
        if note is not None:
            # With noise the sum was divided by a public number of sites already, whoever survived.
            note(number if self._noise is None else self._noise.denominator)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What the inner strategy wants to tell every site."""
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's step from the one reply.

        Raises:
            AggregationError: FH-STRATEGY-060 not exactly one reply: a site's own update would be among them.
        """
        result = self.inner.aggregate_train(server_round, _only(replies))
        if self._untaken is not None:
            self._num_replies.append(self._untaken.num_replies)
        return result

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As in training."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The inner strategy's view of the one reply's metrics. Raises as `aggregate_train`."""
        return self.inner.aggregate_evaluate(server_round, _only(replies))

    def summary(self) -> None:
        """The inner strategy's."""
        self.inner.summary()

    def state_dict(self) -> State:
        """The inner strategy's, and the account of noised sums."""
        counts = {REPLIES: np.asarray(self._num_replies, dtype=np.int64)}
        return self._inner_state.read() | (counts if self._num_replies else {})

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave; an empty state is the beginning of a run.

        Raises:
            AggregationError: FH-STRATEGY-045 the account does not fit this study; or as the inner strategy.
        """
        rest = dict(state)
        given = rest.pop(REPLIES, np.empty(0, dtype=np.int64))
        counts = given.astype(np.int64)
        is_account = counts.ndim == 1 and given.dtype == np.int64 and bool((counts > 0).all())
        if not is_account or (counts.size and self._noise is None):
            raise AggregationError(
                "FH-STRATEGY-045",
                "the account of noised sums in the checkpoint is not of this study.",
                why="Going on from it would account for something else than what ran.",
                fix="Go on with the study and the fedhealth version that wrote the checkpoint.",
            )
        self._num_replies = [int(number) for number in counts]
        self._inner_state.restore(rest)


def check_needs_sum_only(strategy: Strategy) -> None:
    """Refuse a strategy that looks at single updates; one that does not say is refused too.

    Raises:
        ConfigError: FH-STRATEGY-061.
    """
    reason = why_more_than_the_mean(strategy)
    if reason is None:
        return
    raise ConfigError(
        "FH-STRATEGY-061",
        f"{type(strategy).__name__} cannot be used with secure aggregation.",
        why=f"Under the masks there is one sum and no site's own update. {reason}",
        fix="Choose a strategy that averages, such as fedavg, or take `secure_aggregation` out of the study. The "
        "author of one that needs the mean only writes `sum_based = True` into its class (strategies/README.md).",
    )


def why_more_than_the_mean(strategy: Strategy) -> str | None:
    """Why the weighted mean of the updates is not all that a strategy needs; None when it is.

    A strategy of one's own says ``sum_based = True``, and may say why not in ``why_not_summed``.
    """
    kind = type(strategy)
    says = next((c for c in kind.__mro__ if "sum_based" in vars(c)), None)
    folds = next(c for c in kind.__mro__ if "aggregate_train" in vars(c))
    # A class that folds replies in its own way speaks for itself: what its base said is about the base's way.
    is_its_own_word = says is not None and issubclass(says, folds)
    if kind in STOCK or (says is not None and is_its_own_word and vars(says)["sum_based"] is True):
        return None
    return str(
        getattr(
            strategy,
            "why_not_summed",
            "It does not say that the weighted mean of the updates is all it needs (`sum_based = True`); medians, "
            "trimmed means and Krum compare single updates.",
        )
    )


def _only(replies: Iterable[Message]) -> list[Message]:
    listed = list(replies)
    if len(listed) != 1:
        raise AggregationError(
            "FH-STRATEGY-060",
            f"{len(listed)} replies came where secure aggregation leaves one.",
            why="A single site's update must not reach a strategy.",
        )
    return listed
