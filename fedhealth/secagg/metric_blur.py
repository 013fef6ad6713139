"""Metrics before they are weighed and masked: anywhere within the last digit that the gate left. Called by the site.

Metrics of three digits are a thousand numbers. Of three sites, whose weights are guessed from several rounds, a sum of
whole numbers tells which three of them are in it; of any numbers within a digit it tells no more than a sum has to.
"""

import math
from collections.abc import Mapping
from typing import Final

from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.privacy.randomness import Randomness

_WORD: Final = 2.0**-53


def blur_metrics(
    metrics: Mapping[str, float], *, digits: int, randomness: Randomness
) -> dict[str, float]:
    """Each metric with uniform noise of one unit of its last digit, reflected at the ends of its range.

    The mean of many stays what it was, to that digit.

    Args:
        metrics: as the gate rounded them.
        digits: significant digits that it left.
        randomness: cryptographic.
    """
    blurred = {}
    for name, value in metrics.items():
        low, high = METRIC_RANGES[name]
        size = math.floor(math.log10(abs(value))) if value else -1
        part = float(int(randomness.uniform_bits(1)[0]) >> 11) * _WORD - 0.5
        moved = value + part * 10.0 ** (size + 1 - digits)
        moved = 2 * low - moved if moved < low else moved
        blurred[name] = 2 * high - moved if moved > high else moved
    return blurred
