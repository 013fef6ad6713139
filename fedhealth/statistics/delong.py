"""DeLong's test of two correlated AUCs: a closed form that the bootstrap has to agree with. One seed, one site."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DeLong:
    """Difference of two AUCs on the same patients, its standard error, and the two-sided p-value of no difference."""

    difference: float
    standard_error: float
    p_value: float


def delong(
    one: NDArray[np.float64], other: NDArray[np.float64], labels: NDArray[np.int64]
) -> DeLong | None:
    """Compare two models (DeLong, DeLong and Clarke-Pearson 1988; by mid-ranks as Sun and Xu 2014, algorithm 2).

    Args:
        one: (N,) predictions of a model, one record a patient.
        other: (N,) those of another.
        labels: (N,) of 0 and 1.

    Returns:
        None with fewer than two cases or two controls, where there is no variance.
    """
    is_case = labels == 1
    num_cases, num_controls = int(is_case.sum()), int((~is_case).sum())
    if min(num_cases, num_controls) < 2:  # noqa: PLR2004 - a variance needs two
        return None
    gaps = [_placements(one, is_case)[k] - _placements(other, is_case)[k] for k in (0, 1)]
    difference = float(gaps[0].mean())
    variance = float(gaps[0].var(ddof=1) / num_cases + gaps[1].var(ddof=1) / num_controls)
    error = math.sqrt(variance)
    p_value = 1.0 if error == 0 else math.erfc(abs(difference) / error / math.sqrt(2))
    return DeLong(difference=difference, standard_error=error, p_value=p_value)


def _placements(
    predictions: NDArray[np.float64], is_case: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each case the share of controls below it, of each control the share of cases above it; ties count half."""
    cases, controls = predictions[is_case], predictions[~is_case]
    everybody = _mid_ranks(predictions)
    below = (everybody[is_case] - _mid_ranks(cases)) / controls.size
    above = 1 - (everybody[~is_case] - _mid_ranks(controls)) / cases.size
    return below, above


def _mid_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
