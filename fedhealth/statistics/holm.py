"""Holm's step-down procedure: p-values of several sites, adjusted so that one false claim among them is rare."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the same order (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Rejecting where the adjusted value is at most alpha keeps the chance of any false rejection at most alpha,
    whatever the dependence between the sites.

    Raises:
        ValueError: a p-value outside 0 to 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values are between 0 and 1")
    order = np.argsort(values, kind="stable")
    factors = values.size - np.arange(values.size)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in adjusted]
