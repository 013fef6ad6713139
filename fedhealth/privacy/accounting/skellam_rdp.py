"""Renyi divergences of sums with Skellam noise. Called by `accountants`; numpy only.

Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995), the theorem on Renyi DP of the multi-dimensional Skellam mechanism, for
whole orders from 2; with sampling, Zhu and Wang 2019 (Poisson subsampled Renyi DP, ICML), the general upper bound.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]


class SkellamSum(NamedTuple):
    """One kind of sum, and how often it is opened. Norms and variance are in grid steps; a rate of 1 is no sampling."""

    rate: float
    l1: float
    l2: float
    variance: float
    steps: int


def skellam_curve(orders: Sequence[int], sums: Sequence[SkellamSum]) -> Curve:
    """Renyi divergence of all sums together at each order.

    Args:
        orders: whole numbers from 2, rising.
        sums: that are composed.

    Returns:
        (len(orders),) float64.
    """
    total = np.zeros(len(orders))
    for one in sums:
        total += one.steps * _one_step(tuple(orders), one._replace(steps=1))
    return total


def plain_bound(orders: NDArray[np.float64], *, l1: float, l2: float, variance: float) -> Curve:
    """Renyi divergence of one sum without sampling, at most: the Gaussian's, and what whole numbers add.

    ``a l2^2 / 2v + min{((2 a - 1) l2^2 + 6 l1) / 4 v^2, 3 l1 / 2v}`` with v the variance of the whole noise. It holds
    for a whole shift of one coordinate, so by addition for vectors of whole numbers, in both directions as the noise is
    symmetric, and for randomly rounded vectors by convexity.

    Args:
        orders: (n,) float64, whole numbers from 2.
        l1: most that one unit changes the sum, in L1.
        l2: the same in L2.
        variance: of the noise on each coordinate.
    """
    gaussian = orders * (l2**2 / (2 * variance))
    first = ((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return gaussian + np.minimum(first, 3 * l1 / (2 * variance))


def sampled_bound(order: int, rate: float, plain: Curve) -> float:
    """Renyi divergence at one order when each contribution is in the sum with chance `rate`, at most.

    The smaller one of two that hold for every mechanism and both directions: Zhu and Wang 2019, theorem 6,
    ``log{(1-q)^(a-1) (a q - q + 1) + C(a,2) q^2 (1-q)^(a-2) e^e(2) + 3 sum_{l=3..a} C(a,l) q^l (1-q)^(a-l) e^((l-1)
    e(l))} / (a - 1)``, and ``log(1 - q + q e^((a-1) e(a))) / (a - 1)`` from the joint convexity of the Renyi integral.

    Args:
        order: a, at least 2.
        rate: q, above 0; at 1 the result is the plain one.
        plain: (a - 1,) float64, e(2), ..., e(a) without sampling.
    """
    last = float(plain[-1])
    if rate == 1:
        return last
    convex = np.logaddexp(math.log1p(-rate), math.log(rate) + (order - 1) * last)
    powers = np.arange(2, order + 1)
    choose = np.array([_log_choose(order, int(power)) for power in powers])
    chances = choose + powers * math.log(rate) + (order - powers) * math.log1p(-rate)
    terms = chances + (powers - 1) * plain
    terms[1:] += math.log(3)
    start = (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate)
    whole = np.logaddexp(start, np.logaddexp.reduce(terms))
    return max(0.0, float(min(whole, convex))) / (order - 1)


@lru_cache(maxsize=4096)
def _one_step(orders: tuple[int, ...], one: SkellamSum) -> Curve:
    """Read-only, as it is shared."""
    powers = np.arange(2, orders[-1] + 1, dtype=np.float64)
    plain = plain_bound(powers, l1=one.l1, l2=one.l2, variance=one.variance)
    curve = np.array([sampled_bound(a, one.rate, plain[: a - 1]) for a in orders])
    curve.flags.writeable = False
    return curve


@lru_cache(maxsize=2**16)
def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
