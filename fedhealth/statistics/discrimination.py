"""How well probabilities tell cases from controls, beyond the AUC. (N,) probabilities of label 1, (N,) labels."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SPECIFICITY: Final = 0.9


def average_precision(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> float | None:
    """Area under the precision-recall curve as a step function: sum of (R_k - R_k-1) P_k over thresholds.

    Returns:
        None without a case.
    """
    cases, controls = _counts_above(probabilities, labels)
    if cases.size == 0 or cases[-1] == 0:
        return None
    gained = np.diff(cases, prepend=0) / cases[-1]
    return float((gained * cases / (cases + controls)).sum())


def sensitivity_at_specificity(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    specificity: float = SPECIFICITY,
) -> float | None:
    """Largest share of cases above a threshold that at least `specificity` of the controls are below.

    Returns:
        None when only one class is there.
    """
    cases, controls = _counts_above(probabilities, labels)
    if cases.size == 0 or cases[-1] == 0 or controls[-1] == 0:
        return None
    allowed = 1 - controls / controls[-1] >= specificity - 1e-12  # a count over a count, in float64
    return float(np.max(cases[allowed], initial=0) / cases[-1])


def _counts_above(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cases and controls at or above each distinct probability, from the largest one down."""
    distinct, inverse = np.unique(-probabilities, return_inverse=True)
    cases = np.bincount(inverse, weights=labels == 1, minlength=distinct.size)
    controls = np.bincount(inverse, weights=labels == 0, minlength=distinct.size)
    return np.cumsum(cases).astype(np.int64), np.cumsum(controls).astype(np.int64)
