"""Round real coordinates to whole numbers at random, without bias, inside an exact norm. Called by `encode`.

Kairouz, Liu, Steinke 2021 (arXiv 2102.06387), conditional randomised rounding: draw again until the squared norm is
inside the bound. Sensitivity then rests on whole numbers only, whatever a float computation before it did.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError
from fedhealth.privacy.randomness import Randomness

LARGEST_SQUARED_NORM: Final = 2**62
"""A coordinate inside of it, and a word of noise on top, fit in an int64."""
ACCEPTANCE: Final = 1.0 - math.exp(-0.5)
"""Least chance that a try is inside of `largest_squared_norm`: 0.39, with the beta = exp(-1/2) of the paper."""
MAX_TRIES: Final = 1000
"""All of them fail with a chance of at most exp(-500)."""
_CHUNK: Final = 2**16
_UNIT_63: Final = 2.0**63


def round_within(
    values: NDArray[np.float64], squared_norm_bound: int, randomness: Randomness
) -> NDArray[np.int64]:
    """Each value to one of its two neighbours, the upper one with the chance of its fraction.

    Without the condition on the norm the mean of each coordinate is its value, to 2**-63.

    Args:
        values: (n,) float64, finite.
        squared_norm_bound: largest squared L2 norm of the result, below 2**62.
        randomness: cryptographic bits; a word for each coordinate and try.

    Returns:
        (n,) int64 whose exact squared norm is at most the bound.

    Raises:
        PrivacyError: FH-PRIVACY-101 the values are not flat float64, 102 one is not finite, 103 no rounding inside
            the bound was found, 108 the bound is out of range.
    """
    _check(values, squared_norm_bound)
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest < math.isqrt(squared_norm_bound) + 1:
        for _ in range(MAX_TRIES):
            rounded = _round(values, randomness)
            if exact_squared_norm(rounded) <= squared_norm_bound:
                return rounded
    raise PrivacyError(
        "FH-PRIVACY-103",
        f"no rounding of an update had a squared norm of at most {squared_norm_bound} in {MAX_TRIES} tries.",
        why="Noise is sized for that norm: a longer vector would not be hidden by it. Nothing was sent.",
        fix="Clip the update before it is rounded; report it if it was clipped.",
    )


def largest_squared_norm(norm: float, dimension: int) -> float:
    """A bound that a randomised rounding of a vector keeps with a chance of at least `ACCEPTANCE`.

    Kairouz, Liu, Steinke 2021, the proposition on the norm of a rounded vector, with beta = exp(-1/2), in grid steps:
    ``c^2 + n / 4 + c + sqrt(n) / 2``, Hoeffding's inequality, as a square has at most two values, a mean of at most
    z^2 + 1/4 and a range of 2 |floor(z) + 1/2|. The paper's other term, ``(c + sqrt(n))^2``, is never below it.

    Args:
        norm: c, L2 norm of the vector before, in grid steps.
        dimension: n, of the vector.
    """
    return norm**2 + dimension / 4 + norm + math.sqrt(dimension) / 2


def exact_squared_norm(rounded: NDArray[np.int64]) -> int:
    """Squared L2 norm of (n,) int64 in whole numbers, without overflow."""
    largest = max(int(rounded.max()), -int(rounded.min())) if rounded.size else 0
    if largest == 0:
        return 0
    if largest >= 2**31:
        return sum(int(value) ** 2 for value in rounded)
    step = min(rounded.size, (2**63 - 1) // largest**2)
    parts = (rounded[start : start + step] for start in range(0, rounded.size, step))
    return sum(int(np.dot(part, part)) for part in parts)


def _round(values: NDArray[np.float64], randomness: Randomness) -> NDArray[np.int64]:
    rounded = np.empty(values.size, dtype=np.int64)
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        floor = np.floor(part)
        # Up to 2**63, which a uint64 holds: the fraction of a tiny negative value rounds to 1.
        threshold = ((part - floor) * _UNIT_63).astype(np.uint64)
        is_up = (randomness.uniform_bits(part.size) >> np.uint64(1)) < threshold
        np.add(floor.astype(np.int64), is_up, out=rounded[start : start + _CHUNK])
    return rounded


def _check(values: NDArray[np.float64], squared_norm_bound: int) -> None:
    if values.ndim != 1 or values.dtype != np.float64:
        raise PrivacyError(
            "FH-PRIVACY-101",
            f"values of shape {values.shape} and dtype {values.dtype} cannot be rounded.",
        )
    if not 0 <= squared_norm_bound < LARGEST_SQUARED_NORM:
        raise PrivacyError(
            "FH-PRIVACY-108", f"a squared norm of {squared_norm_bound} is not within 0 and 2**62."
        )
    if not np.isfinite(values).all():
        raise PrivacyError(
            "FH-PRIVACY-102",
            "an update is not finite.",
            why="A value without a size cannot be clipped, so no noise could hide it.",
            fix="Lower the learning rate; look at the site's log for the round that diverged.",
        )
