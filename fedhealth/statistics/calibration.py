"""Whether probabilities mean what they say: slope, intercept, and what a perfectly calibrated model would show.

All functions take (N,) probabilities of label 1 and (N,) labels of 0 and 1.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.models.metrics import NUM_CALIBRATION_BINS, calibration_error

FURTHEST_LOGIT: Final = 16.0
"""Log odds are cut here (1e-7) before they are fitted: a probability of exactly 0 has none."""
MAX_STEPS: Final = 50
MAX_COEFFICIENT: Final = 50.0
"""A slope beyond this is a separated sample, whose likelihood has no maximum."""
NUM_DRAWS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationFit:
    """Logistic recalibration (Cox 1958; van Calster et al. 2016, "A calibration hierarchy", section 2).

    Attributes:
        slope: of the log odds: 1 is right, below 1 predictions are too extreme, above 1 too timid.
        intercept: with the slope held at 1: 0 is right, above 0 the risk is underestimated on the whole.
    """

    slope: float
    intercept: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationNull:
    """The calibration error, and what it would be by chance if every probability were exactly right.

    Attributes:
        error: expected calibration error over bins of equal numbers of patients, not debiased.
        expected: mean of it under perfect calibration.
        high: its 95 % quantile under perfect calibration.
        p_value: share of draws with at least the error that was seen, (1 + count) / (1 + draws).
    """

    error: float
    expected: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPoint:
    """One bin of a calibration plot: mean probability, share of cases, and a 95 % Wilson interval of that share."""

    predicted: float
    observed: float
    low: float
    high: float
    num_patients: int


def fit_calibration(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> CalibrationFit | None:
    """Slope and intercept by maximum likelihood.

    Returns:
        None where there is no finite maximum: one class, one probability for all, or a sample that is separated.
    """
    if labels.size == 0 or labels.min() == labels.max():
        return None
    logits = log_odds(probabilities)
    if np.ptp(logits) == 0:
        return None
    both = _logistic(np.column_stack([np.ones_like(logits), logits]), labels, np.zeros_like(logits))
    level = _logistic(np.ones((logits.size, 1)), labels, logits)
    if both is None or level is None:
        return None
    return CalibrationFit(slope=float(both[1]), intercept=float(level[0]))


def fit_platt(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[float, float] | None:
    """Intercept and slope of recalibrated log odds, intercept + slope * logit(p), by maximum likelihood.

    Platt 1999, "Probabilistic outputs for support vector machines", without his smoothed targets.

    Returns:
        None as `fit_calibration`.
    """
    if labels.size == 0 or labels.min() == labels.max():
        return None
    logits = log_odds(probabilities)
    if np.ptp(logits) == 0:
        return None
    found = _logistic(
        np.column_stack([np.ones_like(logits), logits]), labels, np.zeros_like(logits)
    )
    return None if found is None else (float(found[0]), float(found[1]))


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    """The inverse temperature b of softmax(b log p), by maximum likelihood (Guo et al. 2017, section 4.2).

    Args:
        probabilities: (N, K) of the classes.
        labels: (N,) class indices.

    Returns:
        None without a finite positive maximum: nobody, no mistake, or ranks that are worse than chance.
    """
    if labels.size == 0:
        return None
    logits = np.log(np.maximum(probabilities, np.exp(-FURTHEST_LOGIT)))
    own = logits[np.arange(labels.size), labels]
    if (own >= logits.max(axis=1)).all():
        return None  # the likelihood grows with b without end
    found = 1.0
    for _ in range(MAX_STEPS):
        chances = softened(probabilities, found)
        mean = (chances * logits).sum(axis=1)
        spread = (chances * (logits - mean[:, None]) ** 2).sum()
        if spread <= 0:
            return None
        step = float((own - mean).sum() / spread)
        # The likelihood is concave in b; a full step from far away may leave (0, MAX_COEFFICIENT).
        found += float(np.clip(step, -0.5 * found, found))
        if found > MAX_COEFFICIENT or found < 1 / MAX_COEFFICIENT:
            return None
        if abs(step) < 1e-10:  # noqa: PLR2004 - well below what is shown
            return found
    return None


def softened(probabilities: NDArray[np.float64], inverse: float) -> NDArray[np.float64]:
    """(N, K) softmax(b log p), of the inverse temperature b."""
    logits = inverse * np.log(np.maximum(probabilities, np.exp(-FURTHEST_LOGIT)))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
    return shares


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) logits, cut at `FURTHEST_LOGIT`."""
    odds = np.log(np.maximum(probabilities, 1e-300)) - np.log(np.maximum(1 - probabilities, 1e-300))
    cut: NDArray[np.float64] = np.clip(odds, -FURTHEST_LOGIT, FURTHEST_LOGIT)
    return cut


def calibration_null(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    seed: int,
    num_draws: int = NUM_DRAWS,
) -> CalibrationNull | None:
    """Parametric bootstrap of perfect calibration: outcomes are drawn from the probabilities themselves.

    The plain error of a small site is never near zero, so it is shown next to this (Vaicenavicius et al. 2019,
    "Evaluating model calibration in classification", section 5, consistency resampling).

    Returns:
        None without a patient.
    """
    if labels.size == 0:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = (rng.random((num_draws, labels.size)) < probabilities).astype(np.int64)
    errors = np.array([calibration_error(probabilities, row) for row in drawn])
    error = calibration_error(probabilities, labels)
    return CalibrationNull(
        error=error,
        expected=float(errors.mean()),
        high=float(np.quantile(errors, 0.95)),
        p_value=float((1 + (errors >= error - 1e-12).sum()) / (1 + num_draws)),
    )


def calibration_points(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    num_bins: int = NUM_CALIBRATION_BINS,
    num_repeats: int = 1,
) -> list[CalibrationPoint]:
    """Bins of equal numbers of records, in order of their probability; at least ten records a bin.

    Where the records of several resplits are put together, `num_repeats` is their number: an interval is then as
    wide as one resplit's records make it.
    """
    bins = min(num_bins, max(labels.size // 10, 1))
    order = np.argsort(probabilities, kind="stable")
    points = []
    for rows in np.array_split(order, bins):
        if rows.size == 0:
            continue
        observed = float(labels[rows].mean())
        low, high = wilson(observed, rows.size / num_repeats)
        points.append(
            CalibrationPoint(
                predicted=float(probabilities[rows].mean()),
                observed=observed,
                low=low,
                high=high,
                num_patients=int(rows.size),
            )
        )
    return points


def wilson(share: float, count: float, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval of a share of `count` patients (Wilson 1927)."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def _logistic(
    design: NDArray[np.float64], labels: NDArray[np.int64], offset: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Coefficients by Newton's method with halved steps; None without a finite maximum."""
    found = np.zeros(design.shape[1])
    value = _log_likelihood(design, labels, offset, found)
    for _ in range(MAX_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(offset + design @ found, -500, 500)))
        gradient = design.T @ (labels - chances)
        curvature = design.T @ (design * (chances * (1 - chances))[:, None])
        try:
            step = np.linalg.solve(curvature, gradient)
        except np.linalg.LinAlgError:
            return None
        while (tried := _log_likelihood(design, labels, offset, found + step)) < value - 1e-12:
            step = step / 2
        found, value = found + step, tried
        if np.abs(found).max() > MAX_COEFFICIENT:
            return None
        if np.abs(step).max() < 1e-10:  # noqa: PLR2004 - well below what is shown
            return found
    return None


def _log_likelihood(
    design: NDArray[np.float64],
    labels: NDArray[np.int64],
    offset: NDArray[np.float64],
    found: NDArray[np.float64],
) -> float:
    logits = offset + design @ found
    return float((labels * logits - np.logaddexp(0, logits)).sum())
