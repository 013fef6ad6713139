"""A clipping norm that follows a quantile of the updates' norms, learnt with noise.

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021
(arXiv 1905.03871), algorithm 1 and theorem 1.
"""

import math
from dataclasses import dataclass

from fedhealth.errors import ConfigError
from fedhealth.privacy.randomness import Randomness

LEAST_NORM, MOST_NORM = 1e-12, 1e6
"""The learnt norm stays inside: bounds that are fixed beforehand are free, and a site's limit is at most 1e6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClipping:
    """``C <- C * exp(-eta * (b - gamma))`` for the noised share b of updates that were *not* clipped.

    Each reply counts plus or minus one half, so that one site changes the count by one half, present or not;
    a site that dropped out counts zero. Hence the count's multiplier is ``2 * sigma_b``.

    Args:
        noise_multiplier: z, of both releases of a round together.
        num_sites: the public denominator of the share.
        target_quantile: gamma, the share of updates that should pass unclipped.
        learning_rate: eta.
        count_noise: sigma_b, standard deviation of the noise on the count.

    Raises:
        ConfigError: FH-STRATEGY-043 the count alone costs the whole privacy of a round.
    """

    noise_multiplier: float
    num_sites: int
    target_quantile: float
    learning_rate: float
    count_noise: float

    def __post_init__(self) -> None:
        if self.noise_multiplier >= self.count_multiplier:
            raise ConfigError(
                "FH-STRATEGY-043",
                f"option `noise_multiplier` {self.noise_multiplier:g} is not below twice the count's noise "
                f"of {self.count_noise:g}.",
                why="The count alone would cost more than the round may. With few sites the clipping norm cannot "
                f"adapt: noise that hides one vote of {self.num_sites} drowns the share that is to be learnt.",
                fix="Set `adaptive_clipping: false` and a clipping_norm fixed from public or simulated data.",
            )

    @property
    def count_multiplier(self) -> float:
        """Noise over sensitivity of the count: ``2 * sigma_b``."""
        return 2.0 * self.count_noise

    @property
    def update_multiplier(self) -> float:
        """``(z^-2 - (2 sigma_b)^-2)^(-1/2)``: with the count it composes to z (theorem 1)."""
        return float((self.noise_multiplier**-2 - self.count_multiplier**-2) ** -0.5)

    def next_norm(
        self, clipping_norm: float, *, num_unclipped: int, num_replies: int, randomness: Randomness
    ) -> float:
        """The clipping norm of the next round."""
        votes = num_unclipped - 0.5 * num_replies
        noised = votes + self.count_noise * float(randomness.normals(1)[0])
        share = noised / self.num_sites + 0.5
        step = math.exp(min(50.0, -self.learning_rate * (share - self.target_quantile)))
        return min(max(clipping_norm * step, LEAST_NORM), MOST_NORM)
