"""What strategies with site-level privacy share: clip, sum, noise, divide by a public number, keep the account."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedhealth.contracts.aggregation import SiteLevelMechanism, SiteLevelRelease
from fedhealth.errors import AggregationError, ConfigError
from fedhealth.privacy.randomness import Randomness
from fedhealth_strategies import release_log
from fedhealth_strategies.clipped_sum import ClippedSum, Noise
from fedhealth_strategies.fedavg import FedAvg
from fedhealth_strategies.server_optimizer import ServerOptimizer
from fedhealth_strategies.weighted_mean import MetricMean

State = dict[str, NDArray[np.generic]]

RELEASES = "releases"
MAX_NOISE_MULTIPLIER = 1e6
MAX_CLIPPING_NORM = 1e6  # the largest that a site's configuration can allow


class NoisedMean(FedAvg):
    """FedAvg whose mean hides a whole site. Subclasses say which noise, and what it costs.

    Every site counts the same: a weight would be a factor of its sensitivity. The denominator is `num_sites`,
    whoever replies, so a site that drops out changes neither the noise nor the sensitivity. Metrics are FedAvg's:
    they are not covered by the noise of the model.

    A failed round costs nothing, since nothing of it left the server: state changes only after all replies were
    folded, and the noise is drawn anew for the next attempt.

    Raises:
        ConfigError: FH-STRATEGY-042 an option out of its range.
    """

    mechanism: ClassVar[SiteLevelMechanism]
    sum_based: ClassVar[bool] = False
    why_not_summed: ClassVar[str] = (
        "The server clips each update again before it adds its noise; `secure_aggregation.distributed_privacy` of "
        "unit site lets the sites clip and add noise shares under the masks instead."
    )

    def __init__(
        self,
        *,
        num_sites: int,
        noise_multiplier: float,
        clipping_norm: float,
        optimizer: ServerOptimizer,
    ) -> None:
        super().__init__("uniform")
        check_option("num_sites", num_sites, 2, 1000)
        check_option("noise_multiplier", noise_multiplier, 1e-9, MAX_NOISE_MULTIPLIER)
        check_option("clipping_norm", clipping_norm, 1e-12, MAX_CLIPPING_NORM)
        self.num_sites = num_sites
        self.noise_multiplier = float(noise_multiplier)
        self.clipping_norm = float(clipping_norm)
        self.randomness_of_round: Callable[[int], Randomness] = _from_os
        """Where noise comes from. Tests put a seeded stream here, and the account then says so."""
        self._optimizer = optimizer
        self._origin: ArrayRecord | None = None
        self._releases: list[SiteLevelRelease] = []
        self._untaken: SiteLevelRelease | None = None
        self._num_empty = 0

    @property
    def releases(self) -> tuple[SiteLevelRelease, ...]:
        """All releases of the run, those before a restart too."""
        return tuple(self._releases)

    def take_release(self) -> SiteLevelRelease | None:
        """The release of the last round, once."""
        release, self._untaken = self._untaken, None
        return release

    def check_run(self, *, num_rounds: int, min_cohort: int) -> None:  # noqa: ARG002 - for subclasses
        """Refuse a run that this strategy is not for.

        Raises:
            ConfigError: FH-STRATEGY-044 the minimum cohort is above `num_sites`.
        """
        if min_cohort > self.num_sites:
            raise _too_many(self.num_sites, f"the minimum cohort of {min_cohort} is more")

    @abstractmethod
    def planned_releases(self, num_rounds: int) -> tuple[SiteLevelRelease, ...]:
        """What a whole run will release, if nothing is repeated: for plans, before any training."""

    @abstractmethod
    def _noise(self, randomness: Randomness, size: int) -> Noise:
        """The noise of this round's sum of `size` elements, in clipping norms."""

    @abstractmethod
    def _release(self, num_replies: int, randomness: Randomness) -> SiteLevelRelease:
        """What this round releases."""

    def _finish(self, total: ClippedSum, randomness: Randomness) -> None:
        """Change what the next round will use."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages with ``clipping_norm`` in the configuration.

        Raises:
            ConfigError: FH-STRATEGY-044 the cohort is larger than `num_sites`.
        """
        config["clipping_norm"] = self.clipping_norm
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if len(messages) > self.num_sites:
            raise _too_many(self.num_sites, f"{len(messages)} take part")
        self._origin = arrays
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model. ``(None, None)`` when no reply carries content.

        Raises:
            AggregationError: FH-STRATEGY-021, 022, 046 a reply is not as it should be, FH-STRATEGY-047 no model
                was sent in this round, FH-STRATEGY-048 more replies than `num_sites`, FH-STRATEGY-058 the account
                does not hold exactly the rounds before this one.
        """
        if self._origin is None:
            raise _no_round()
        if len(self._releases) + self._num_empty != server_round - 1:
            raise _out_of_order(server_round, len(self._releases))
        total, metrics = (
            ClippedSum(self._origin, self.clipping_norm),
            MetricMean(self.weighted_by_key),
        )
        for reply in replies:
            if not reply.has_error():
                if total.num_replies == self.num_sites:
                    raise _too_many_replies(self.num_sites)
                arrays = self._tensors_of(reply.content)
                record, size = self._metrics_of(reply.content)
                total.fold(arrays)
                metrics.fold(record, size)
                del arrays, record
            # The name would keep this reply's tensors alive while the next reply is loaded.
            del reply
        if not total.num_replies:
            self._num_empty += 1  # a stock ServerApp goes on to the next number
            return None, None
        return self._noised(total, self.randomness_of_round(server_round)), metrics.take()

    def state_dict(self) -> State:
        """The account and what the next round needs; arrays are not copied."""
        log = {RELEASES: release_log.to_array(self._releases)} if self._releases else {}
        return self._optimizer.state_dict() | log

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave; an empty state is the beginning of a run.

        Raises:
            AggregationError: FH-STRATEGY-045 the state is not of this strategy with these options.
        """
        moments = {n: a for n, a in state.items() if n.startswith(("first_", "second_"))}
        unknown = sorted(set(state) - set(moments) - {RELEASES})
        if unknown or (moments and self._optimizer.kind == "none"):
            raise foreign_state(f"holds {(unknown or sorted(moments))[0]!r}")
        rows = state.get(RELEASES, release_log.to_array([]))
        self._releases = release_log.from_array(self.mechanism, rows)
        if any(release.denominator != self.num_sites for release in self._releases):
            raise foreign_state("was written with another `num_sites`")
        self._optimizer.load_state_dict(moments)
        self._origin, self._untaken, self._num_empty = None, None, 0

    def _noised(self, total: ClippedSum, randomness: Randomness) -> ArrayRecord:
        unit, clipping_norm = self._noise(randomness, total.size), self.clipping_norm
        arrays = total.take(
            noise=lambda count: clipping_norm * unit(count),
            denominator=self.num_sites,
            optimizer=self._optimizer,
        )
        self._untaken = self._release(total.num_replies, randomness)
        self._releases.append(self._untaken)
        self._origin = None
        self._finish(total, randomness)
        return arrays


def check_option(name: str, value: float, least: float, most: float) -> None:
    """Raises ConfigError FH-STRATEGY-042 unless `value` is a number between the two, both allowed."""
    if not (math.isfinite(value) and least <= value <= most):
        raise ConfigError(
            "FH-STRATEGY-042",
            f"option `{name}` is {value}, not between {least:g} and {most:g}.",
            why="Outside of that range the mean, its noise or its account means nothing.",
            fix="Correct it in the study's strategy options.",
        )


def foreign_state(what: str) -> AggregationError:
    """A checkpoint that does not belong to this strategy with these options."""
    return AggregationError(
        "FH-STRATEGY-045",
        f"the strategy's state in the checkpoint {what}.",
        why="Going on from it would noise and account for something else than what ran.",
        fix="Go on with the study and the fedhealth version that wrote the checkpoint.",
    )


def _from_os(_round_number: int) -> Randomness:
    return Randomness.from_os()


def _too_many(num_sites: int, what: str) -> ConfigError:
    return ConfigError(
        "FH-STRATEGY-044",
        f"option `num_sites` is {num_sites}, but {what}.",
        why="The mean is divided by num_sites and its noise is made for that: more sites would be a sum, not a mean.",
        fix="Set `num_sites` to the number of sites that the consortium admits.",
    )


def _too_many_replies(num_sites: int) -> AggregationError:
    return AggregationError(
        "FH-STRATEGY-048",
        f"more than the {num_sites} sites of option `num_sites` replied.",
        why="A site that counts twice has twice the sensitivity.",
        fix="Set `num_sites` to the number of sites that the consortium admits.",
    )


def _no_round() -> AggregationError:
    return AggregationError(
        "FH-STRATEGY-047",
        "replies came, but no model was sent with configure_train before them.",
        why="An update is a difference: without the model that was sent it has no norm.",
        fix="Call configure_train before every aggregate_train.",
    )


def _out_of_order(round_number: int, num_releases: int) -> AggregationError:
    return AggregationError(
        "FH-STRATEGY-058",
        f"round {round_number} comes after {num_releases} releases on the account.",
        why="A round that comes twice is one more release; one that is missing from the account was not paid for.",
        fix="Go on from the checkpoint that holds the strategy's state.",
    )
