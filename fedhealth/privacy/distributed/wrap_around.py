"""How likely a sum leaves the range of its modulus, so that it wraps around. Called by `plan`.

A sum that wraps is wrong and not less private: reduction modulo 2**m is post-processing of the noisy sum.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Final

from fedhealth.privacy.distributed.rounding import ACCEPTANCE

MAX_PROBABILITY: Final = 1e-6
"""Of one sum, over the random rotation, the rounding and the noise."""
_SLACK: Final = 1.0 + 1e-9
"""Relative: the rotation is computed in float64."""
_LARGEST_T: Final = 700.0
"""exp of it still fits in a float; every t gives a bound."""
_HALVINGS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SumShape:
    """What a sum is made of, in grid steps.

    Attributes:
        dimension: D, number of coordinates.
        norm: c, largest L2 norm of one contribution before it is rounded.
        max_contributions: k, most contributions in the sum.
        variance: of all shares of the noise together.
    """

    dimension: int
    norm: float
    max_contributions: int
    variance: float


def log_wrap_probability(shape: SumShape, modulus_bits: int) -> float:
    """Logarithm of a bound on the chance that any coordinate is outside of [-2**(m-1), 2**(m-1)).

    Chernoff: for one coordinate S and each t > 0, ``P(S >= T) <= exp(-t T) E exp(t S)``, and E is at most the product
    of three.

    - signal: the rotated sum of contributions is ``sum_j s_j h_j y_j``, s_j random signs, ``|h_j| = 1 / sqrt(D)`` and
      ``|y| <= k c``: ``exp(t^2 (k c)^2 / 2 D)`` by Hoeffding, and ``exp(t k c)`` as no coordinate exceeds the norm;
    - rounding: an error has mean 0 and lies in an interval of length 1, ``exp(t^2 / 8)``; the condition on the norm,
      met with a chance of at least `ACCEPTANCE`, multiplies a mean of something positive by 1 / ACCEPTANCE at most;
      k times that, or ``exp(t k)`` as no error exceeds 1;
    - noise: ``exp(v (cosh t - 1))``, the Skellam distribution's own.

    The signal's bound is over the signs, the rounding's holds for all signs, and the noise is independent. Then a
    union bound over both sides and D coordinates. The signs have to be drawn independently of the updates.

    Args:
        shape: the sum's.
        modulus_bits: m, at least 1.
    """
    count, limit = shape.max_contributions, 2.0 ** (modulus_bits - 1)
    reach = count * shape.norm * _SLACK
    signals = ((reach**2 / shape.dimension, 0.0), (0.0, reach))
    roundings = ((count / 4, 0.0, -count * math.log(ACCEPTANCE)), (0.0, float(count), 0.0))
    best = min(
        _chernoff(limit - linear_s - linear_r, square_s + square_r, shape.variance) + constant
        for (square_s, linear_s), (square_r, linear_r, constant) in product(signals, roundings)
    )
    return best + math.log(2 * shape.dimension)


def _chernoff(margin: float, square: float, variance: float) -> float:
    """Least of ``-t margin + t^2 square / 2 + variance (cosh t - 1)`` over t >= 0, nearly; any t gives a bound."""
    if margin <= 0:
        return 0.0
    high = min(math.asinh(margin / variance), _LARGEST_T)
    if square > 0:
        high = min(high, margin / square)
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        slope = square * middle + variance * math.sinh(middle) - margin
        low, high = (low, middle) if slope > 0 else (middle, high)
    return -high * margin + high**2 * square / 2 + 2 * variance * math.sinh(high / 2) ** 2
