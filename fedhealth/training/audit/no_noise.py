"""A source of randomness whose noise is zero: the positive control of the audit. Called by nothing that trains.

No event with a noise multiplier of zero can be written down, and no option of training takes the noise away. The
audit hands this source to the very steps that a study takes, and throws the weights away.
"""

import numpy as np
from numpy.typing import NDArray

from fedhealth.privacy.randomness import Randomness

_ALL_ONES = np.uint64(2**64 - 1)


class NoNoise(Randomness):
    """Sampling as always; every normal is exactly zero.

    Box and Muller's radius is sqrt(-2 log u). The largest uniform of 53 bits is u = 1, and its radius is 0.
    """

    __slots__ = ("_sampling",)

    def __init__(self, sampling: Randomness) -> None:
        super().__init__(bytes(32), generator="seeded_for_tests")
        self._sampling = sampling

    def uniform_bits(self, count: int) -> NDArray[np.uint64]:
        """(count,) uint64, every bit set."""
        return np.full(count, _ALL_ONES, dtype=np.uint64)

    def bernoulli(self, count: int, rate: float) -> NDArray[np.bool_]:
        """As the source for sampling draws them."""
        return self._sampling.bernoulli(count, rate)
