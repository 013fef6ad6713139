"""Whole-number noise whose shares add up: the difference of two Poisson numbers. Called by `encode`.

Skellam(0, v) has probabilities ``exp(-v) I_k(v)`` and variance v; the sum of independent ones has the summed
variance (Skellam 1946; Agarwal, Kairouz, Liu 2021, arXiv 2110.04995, section 2). Drawn by inversion: a uniform number
of 128 bits is compared with a table of cumulative probabilities. The table is worked out in whole numbers, so that no
float is involved and each draw has the exact law up to about 2**-128.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError
from fedhealth.privacy.randomness import Randomness

MAX_STD: Final = 2.0**14
"""A table has about 27 entries for each unit of standard deviation: 16 bytes each, some MB at most."""
_LAW_BITS: Final = 128
_TAIL_BITS: Final = 130
"""Less than 2**-130 of the mass lies beyond each end of the table; it is given to the end."""
_GUARD_BITS: Final = 256
"""The recurrence starts where a probability is below 2**-256 of the whole, with as many bits after the point."""
_CHUNK: Final = 2**16
_NEEDS_SEARCH: Final = -1
_MASK_64: Final = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cumulative probabilities of ``-last, ..., last - 1``, times 2**128, in two words; all arrays are read-only.

    Attributes:
        last: largest number that is drawn.
        high: (2 last,) uint64, upper words in rising order.
        low: (2 last,) uint64, lower words.
        guide: int32; for the first bits of a word how many thresholds lie below it, or -1 where that is open.
        shift: bits of a word that the guide does not look at.
    """

    last: int
    high: NDArray[np.uint64] = field(repr=False)
    low: NDArray[np.uint64] = field(repr=False)
    guide: NDArray[np.int32] = field(repr=False)
    shift: int


def skellam(count: int, variance: float, randomness: Randomness) -> NDArray[np.int64]:
    """(count,) int64, independent draws of Skellam(0, variance).

    A 64-bit word is used for each draw, and another one for the draw in about 2**45 that it leaves open. Memory beside
    the result is bounded by the table.

    Raises:
        PrivacyError: FH-PRIVACY-104 the variance is not a positive number, 105 its root is above 2**14.
    """
    table = table_of(variance)
    drawn = np.empty(count, dtype=np.int64)
    for start in range(0, count, _CHUNK):
        part = drawn[start : start + _CHUNK]
        _draw(table, randomness.uniform_bits(part.size), randomness, part)
    return drawn


@lru_cache(maxsize=4)
def table_of(variance: float) -> Table:
    """The table of Skellam(0, variance).

    Raises:
        PrivacyError: FH-PRIVACY-104 the variance is not a positive number, 105 its root is above 2**14.
    """
    if not 0 < variance < math.inf:
        raise PrivacyError(
            "FH-PRIVACY-104",
            f"a noise variance of {variance} is not a positive number.",
            why="Without noise nothing is hidden.",
        )
    if math.sqrt(variance) > MAX_STD:
        raise PrivacyError(
            "FH-PRIVACY-105",
            f"noise of standard deviation {math.sqrt(variance):.6g} grid steps is above {MAX_STD:g}.",
            why="The table that it is drawn from would be too large.",
            fix="Use a coarser grid: `plan_distributed` finds one.",
        )
    last = _tail_index(variance, _TAIL_BITS)
    thresholds = _thresholds(variance, last)
    high = np.array([value >> 64 for value in thresholds], dtype=np.uint64)
    low = np.array([value & _MASK_64 for value in thresholds], dtype=np.uint64)
    guide, shift = _guide(high)
    for array in (high, low, guide):
        array.flags.writeable = False
    return Table(last=last, high=high, low=low, guide=guide, shift=shift)


def _tail_index(variance: float, bits: int) -> int:
    """The least k >= 1 with P(X >= k) <= 2**-bits by Chernoff: ``v (cosh t - 1) - k t`` at ``sinh t = k / v``."""

    def exponent(k: int) -> float:
        s = k / variance
        return k * math.asinh(s) - variance * s * s / (1.0 + math.sqrt(1.0 + s * s))

    high = 1
    while exponent(high) < bits * math.log(2):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exponent(middle) >= bits * math.log(2) else (middle, high)
    return high


def _thresholds(variance: float, last: int) -> list[int]:
    """floor(2**128 P(X <= k)) for k from -last to last - 1, the tail below -last given to -last."""
    weights = _bessel_weights(variance)
    below = sum(weights[last + 1 :])
    total = weights[0] + 2 * sum(weights[1:])
    falling = [weights[abs(k)] for k in range(-last, last)]
    cumulative = accumulate(falling, initial=below)
    next(cumulative)
    return [min((value << _LAW_BITS) // total, 2**_LAW_BITS - 1) for value in cumulative]


def _bessel_weights(variance: float) -> list[int]:
    """Whole numbers in proportion to I_0(v), I_1(v), ...: Miller's recurrence from high orders downwards.

    ``I_{k-1} = I_{k+1} + (2 k / v) I_k`` (Abramowitz and Stegun, 9.6.26) with the exact v; each step rounds down by
    less than one unit, and the values are 2**256 units and more.
    """
    exact = Fraction(variance)
    num, den = exact.numerator, exact.denominator
    start = _tail_index(variance, _GUARD_BITS)
    weights = [0] * (start + 1)
    above, here = 0, 1 << _GUARD_BITS
    for k in range(start, 0, -1):
        weights[k] = here
        above, here = here, above + 2 * k * den * here // num
    weights[0] = here
    return weights


def _guide(high: NDArray[np.uint64]) -> tuple[NDArray[np.int32], int]:
    bits = min(max((high.size - 1).bit_length() + 3, 8), 20)
    shift = 64 - bits
    first = np.arange(1 << bits, dtype=np.uint64) << np.uint64(shift)
    final = first | np.uint64((1 << shift) - 1)
    below = np.searchsorted(high, first, side="left")
    through = np.searchsorted(high, final, side="right")
    return np.where(below == through, below, _NEEDS_SEARCH).astype(np.int32), shift


def _draw(
    table: Table, words: NDArray[np.uint64], randomness: Randomness, out: NDArray[np.int64]
) -> None:
    """Count the thresholds at or below each word; that count, less `last`, is the number drawn."""
    counts = table.guide[(words >> np.uint64(table.shift)).view(np.int64)]
    out[:] = counts
    is_open = np.flatnonzero(counts == _NEEDS_SEARCH)
    if is_open.size:
        searched = words[is_open]
        found = np.searchsorted(table.high, searched, side="right")
        is_tied = (found > 0) & (table.high[found - 1] == searched)
        for index in np.flatnonzero(is_tied):
            found[index] = _break_tie(table, searched[index], randomness)
        out[is_open] = found
    out -= table.last


def _break_tie(table: Table, word: np.uint64, randomness: Randomness) -> int:
    """The count for a word that equals upper words of the table: 64 more bits decide."""
    first = int(np.searchsorted(table.high, word, side="left"))
    end = int(np.searchsorted(table.high, word, side="right"))
    more = randomness.uniform_bits(1)[0]
    return first + int(np.searchsorted(table.low[first:end], more, side="right"))
