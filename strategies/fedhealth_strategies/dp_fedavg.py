"""DP-FedAvg: the mean of clipped updates with Gaussian noise that hides any one site.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018
(arXiv 1710.06963), algorithm 1 with flat clipping, the fixed-denominator estimator and a sampling rate of 1.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import SiteLevelMechanism, SiteLevelRelease
from fedhealth.errors import ConfigError
from fedhealth.privacy.randomness import Randomness
from fedhealth_strategies.adaptive_clipping import AdaptiveClipping
from fedhealth_strategies.clipped_sum import ClippedSum, Noise
from fedhealth_strategies.noised_mean import NoisedMean, State, check_option, foreign_state
from fedhealth_strategies.server_optimizer import ServerOptimizer

CLIPPING_NORM = "clipping_norm"
SIGMA_B_SHARE = 1 / 20
"""Andrew et al. 2021, section 4: the count's noise is a twentieth of the sites of a round."""


class DpFedAvg(NoisedMean):
    """``global + step((sum of clipped updates + N(0, (z C)^2)) / num_sites)``.

    Args:
        num_sites: sites of the study; public, fixed, the denominator of every round.
        noise_multiplier: z, noise on the sum over the clipping norm; with adaptive clipping, of both releases.
        clipping_norm: C, the longest update in L2; with adaptive clipping that of the first round.
        server_optimizer: ``adam`` or ``yogi`` step from the noised mean; ``none`` adds it.
        server_learning_rate: factor of the server's step; left out, 1 for ``none`` and 0.01 else.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        tau: adaptivity of the server's step.
        adaptive_clipping: let C follow a quantile of the updates' norms.
        target_quantile: with it, the share of updates to pass unclipped.
        clipping_learning_rate: with it, the step of log C.
        count_noise: with it, noise of the count of unclipped updates; left out, num_sites / 20.

    Raises:
        ConfigError: FH-STRATEGY-042 an option out of its range, FH-STRATEGY-043 too few sites or too much noise
            to adapt.
    """

    mechanism: ClassVar[SiteLevelMechanism] = "dp-fedavg"

    def __init__(
        self,
        *,
        num_sites: int,
        noise_multiplier: float,
        clipping_norm: float,
        server_optimizer: Literal["none", "adam", "yogi"] = "none",
        server_learning_rate: float | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        adaptive_clipping: bool = False,
        target_quantile: float = 0.5,
        clipping_learning_rate: float = 0.2,
        count_noise: float | None = None,
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
        self._first_norm = self.clipping_norm
        sigma_b = num_sites * SIGMA_B_SHARE if count_noise is None else count_noise
        check_option("target_quantile", target_quantile, 0.0, 1.0)
        check_option("clipping_learning_rate", clipping_learning_rate, 0.0, 10.0)
        check_option("count_noise", sigma_b, 1e-9, 1e6)
        self._adaptive = (
            AdaptiveClipping(
                noise_multiplier=self.noise_multiplier,
                num_sites=num_sites,
                target_quantile=target_quantile,
                learning_rate=clipping_learning_rate,
                count_noise=float(sigma_b),
            )
            if adaptive_clipping
            else None
        )

    def check_study(self, study: Study, run: RunPlan) -> None:  # noqa: ARG002 - the hook's shape
        """Refuse updates in 8 bits with adaptive clipping.

        Raises:
            ConfigError: FH-STRATEGY-024.
        """
        if self._adaptive is not None and study.federation.update_bits != 32:  # noqa: PLR2004 - the key's own value
            raise ConfigError(
                "FH-STRATEGY-024",
                "adaptive_clipping does not go with federation.update_bits 8.",
                why="It counts updates that no site has clipped, by their length; a rounded update has another length, "
                "so that the clipping norm would follow the rounding.",
                fix="Write `update_bits: 32`, or `adaptive_clipping: false` and a fixed clipping_norm.",
            )

    @property
    def update_multiplier(self) -> float:
        """Noise on the sum of updates over the clipping norm."""
        return self.noise_multiplier if self._adaptive is None else self._adaptive.update_multiplier

    def planned_releases(self, num_rounds: int) -> tuple[SiteLevelRelease, ...]:
        """What a run of that many rounds releases; with adaptive clipping norms change, multipliers do not."""
        one = replace(self._describe(self._first_norm), generator="chacha20")
        return (one,) * num_rounds

    def state_dict(self) -> State:
        """As `NoisedMean`, with the clipping norm of the next round once it has moved."""
        state = super().state_dict()
        if self._adaptive is not None and self._releases:
            state[CLIPPING_NORM] = np.asarray(self.clipping_norm, dtype=np.float64)
        return state

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave; an empty state is the beginning of a run.

        Raises:
            AggregationError: FH-STRATEGY-045, FH-STRATEGY-049 as `NoisedMean`.
        """
        rest = dict(state)
        norm = rest.pop(CLIPPING_NORM, None)
        super().load_state_dict(rest)
        if (norm is not None) != (self._adaptive is not None and bool(self._releases)):
            raise foreign_state("was written with another `adaptive_clipping`")
        self.clipping_norm = self._first_norm if norm is None else float(norm.item())

    def _noise(self, randomness: Randomness, size: int) -> Noise:  # noqa: ARG002 - drawn as it is asked for
        return lambda count: self.update_multiplier * randomness.normals(count)

    def _release(self, num_replies: int, randomness: Randomness) -> SiteLevelRelease:
        return replace(
            self._describe(self.clipping_norm),
            num_replies=num_replies,
            generator=randomness.generator,
        )

    def _finish(self, total: ClippedSum, randomness: Randomness) -> None:
        # Only now: this round's noise had to be made with the norm that clipped this round.
        if self._adaptive is not None:
            self.clipping_norm = self._adaptive.next_norm(
                self.clipping_norm,
                num_unclipped=total.num_unclipped,
                num_replies=total.num_replies,
                randomness=randomness,
            )

    def _describe(self, clipping_norm: float) -> SiteLevelRelease:
        return SiteLevelRelease(
            mechanism=self.mechanism,
            noise_multiplier=self.update_multiplier,
            noise_std=self.update_multiplier * clipping_norm / self.num_sites,
            clipping_norm=clipping_norm,
            denominator=self.num_sites,
            num_replies=self.num_sites,
            quantile_multiplier=None if self._adaptive is None else self._adaptive.count_multiplier,
            generator="chacha20",
        )
