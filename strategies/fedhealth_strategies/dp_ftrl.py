"""DP-FTRL: DP-FedAvg whose noise is correlated over rounds, so that part of it cancels in the model.

Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and Private (Deep) Learning without Sampling or
Shuffling", ICML 2021 (arXiv 2103.00039); as a matrix mechanism: Denisov et al. 2022 (arXiv 2202.08312).
`fedhealth.privacy.accounting.matrix_mechanism` has the matrix and what it costs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.aggregation import SiteLevelMechanism, SiteLevelRelease
from fedhealth.errors import ConfigError
from fedhealth.privacy.accounting.matrix_mechanism import row_noise, row_sums
from fedhealth.privacy.randomness import Randomness
from fedhealth_strategies.clipped_sum import Noise
from fedhealth_strategies.correlated_noise import STATE_PREFIX, CorrelatedNoise
from fedhealth_strategies.noised_mean import NoisedMean, State, check_option, foreign_state
from fedhealth_strategies.server_optimizer import ServerOptimizer

MAX_BANDS = 64  # each band but the first keeps a float64 model in memory and in the checkpoint


class DpFtrl(NoisedMean):
    """``global + step((sum of clipped updates + sigma C (C^-1 z)_t) / num_sites)`` in round t.

    Participation is fixed: every site is asked in every round, once. A site that misses a round adds nothing to
    that row, which makes its sensitivity smaller, never larger. The clipping norm never changes, since row t is
    made of the updates of several rounds. A failed round costs nothing: its row is drawn anew, from fresh noise, and
    the failed one is kept nowhere.

    Args:
        num_sites: sites of the study; public, fixed, the denominator of every round.
        noise_multiplier: sigma, of the first row; row t has sigma over the sum of the matrix's row t.
        clipping_norm: the longest update in L2.
        bands: rounds over which noise is correlated, at most 64; 1 is the noise of `DpFedAvg`.
        server_optimizer: as in `DpFedAvg`.
        server_learning_rate: as in `DpFedAvg`.
        beta_1: as in `DpFedAvg`.
        beta_2: as in `DpFedAvg`.
        tau: as in `DpFedAvg`.

    Raises:
        ConfigError: FH-STRATEGY-042 an option out of its range.
    """

    mechanism: ClassVar[SiteLevelMechanism] = "dp-ftrl"

    def __init__(
        self,
        *,
        num_sites: int,
        noise_multiplier: float,
        clipping_norm: float,
        bands: int = 4,
        server_optimizer: Literal["none", "adam", "yogi"] = "none",
        server_learning_rate: float | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(
            num_sites=num_sites,
            noise_multiplier=noise_multiplier,
            clipping_norm=clipping_norm,
            optimizer=ServerOptimizer(
                kind=server_optimizer,
                learning_rate=server_learning_rate,
                beta_1=beta_1,
                beta_2=beta_2,
                tau=tau,
            ),
        )
        check_option("bands", bands, 1, MAX_BANDS)
        self.bands = bands
        self._correlated = CorrelatedNoise(bands)

    def check_run(self, *, num_rounds: int, min_cohort: int) -> None:
        """Refuse a run that this strategy is not for.

        Raises:
            ConfigError: FH-STRATEGY-044 as `NoisedMean`, FH-STRATEGY-057 more bands than rounds.
        """
        super().check_run(num_rounds=num_rounds, min_cohort=min_cohort)
        if self.bands > num_rounds:
            raise ConfigError(
                "FH-STRATEGY-057",
                f"option `bands` is {self.bands}, but the run has {num_rounds} rounds.",
                why="Noise cannot be correlated over rounds that never come.",
                fix="Set `bands` to at most the number of rounds.",
            )

    def planned_releases(self, num_rounds: int) -> tuple[SiteLevelRelease, ...]:
        """What a run of that many rounds releases."""
        sensitivity, noise = row_sums(self.bands, num_rounds), row_noise(self.bands, num_rounds)
        return tuple(map(self._describe, sensitivity.tolist(), noise.tolist()))

    def state_dict(self) -> State:
        """As `NoisedMean`, with the rows of noise that later rounds need. They are secret."""
        return super().state_dict() | self._correlated.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave; an empty state is the beginning of a run.

        Raises:
            AggregationError: FH-STRATEGY-045 the state is not of this strategy with these options.
        """
        rows = {name: array for name, array in state.items() if name.startswith(STATE_PREFIX)}
        super().load_state_dict({name: a for name, a in state.items() if name not in rows})
        planned = self.planned_releases(len(self._releases))
        if any(_terms(a) != _terms(b) for a, b in zip(planned, self._releases, strict=True)):
            raise foreign_state("was written with other noise, clipping norm or bands")
        expected = {f"{STATE_PREFIX}{a}" for a in range(min(self.bands - 1, len(planned)))}
        if set(rows) != expected:
            raise foreign_state(f"has {len(rows)} rows of noise, not {len(expected)}")
        self._correlated.load_state_dict(rows)

    def _noise(self, randomness: Randomness, size: int) -> Noise:
        row = self._correlated.next_row(randomness, size)
        return lambda count: self.noise_multiplier * row(count)

    def _release(self, num_replies: int, randomness: Randomness) -> SiteLevelRelease:
        row = len(self._releases)
        sensitivity = float(row_sums(self.bands, row + 1)[row])
        noise = float(row_noise(self.bands, row + 1)[row])
        return replace(
            self._describe(sensitivity, noise),
            num_replies=num_replies,
            generator=randomness.generator,
        )

    def _describe(self, sensitivity: float, noise: float) -> SiteLevelRelease:
        """A round whose row of ``C 1`` is `sensitivity` and of ``C^-1 z`` has the deviation `noise`."""
        return SiteLevelRelease(
            mechanism=self.mechanism,
            noise_multiplier=self.noise_multiplier / sensitivity,
            noise_std=self.noise_multiplier * noise * self.clipping_norm / self.num_sites,
            clipping_norm=self.clipping_norm,
            denominator=self.num_sites,
            num_replies=self.num_sites,
            quantile_multiplier=None,
            generator="chacha20",
        )


def _terms(release: SiteLevelRelease) -> tuple[float, float, float]:
    return release.noise_multiplier, release.noise_std, release.clipping_norm
