"""Metrics of predicted probabilities, in numpy float64. Called by tasks and by evaluation.

Every function takes `probabilities` (N,) float64 in [0, 1] of label 1 and `labels` (N,) of 0 and 1, N >= 1.
"""

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]
Labels = NDArray[np.int64]

SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far from 0 and 1 in the log loss (as scikit-learn does)."""

NUM_CALIBRATION_BINS = 10

MAX_VALUES_AT_ONCE = 1 << 22
"""Of resamples times patients: 32 MiB an array of float64."""


def auc(probabilities: Probabilities, labels: Labels) -> float | None:
    """Area under the ROC curve: the chance that a case ranks above a control, ties counting half.

    Returns:
        None when only one class is there.
    """
    num_cases = int(labels.sum())
    num_controls = labels.size - num_cases
    if num_cases == 0 or num_controls == 0:
        return None
    # Mann-Whitney U from mid-ranks.
    _, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mid_ranks[inverse][labels == 1].sum())
    return (rank_sum - num_cases * (num_cases + 1) / 2) / (num_cases * num_controls)


def log_loss(probabilities: Probabilities, labels: Labels) -> float:
    """Mean negative log likelihood, in nats."""
    return float(np.mean(log_losses(probabilities, labels)))


def log_losses(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """(N,) negative log likelihoods, in nats; at most 36."""
    kept = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return -np.where(labels == 1, np.log(kept), np.log1p(-kept))


def brier(probabilities: Probabilities, labels: Labels) -> float:
    """Mean squared difference of probability and outcome (Brier 1950)."""
    return float(np.mean(squared_errors(probabilities, labels)))


def squared_errors(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """(N,) squared differences of probability and outcome."""
    errors: NDArray[np.float64] = (probabilities - labels) ** 2
    return errors


def accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Share of patients on the right side of one half (exactly one half predicts label 1)."""
    return float(np.mean(hits(probabilities, labels)))


def hits(probabilities: Probabilities, labels: Labels) -> NDArray[np.bool_]:
    """(N,) whether a patient is on the right side of one half."""
    right: NDArray[np.bool_] = (probabilities >= 0.5) == (labels == 1)  # noqa: PLR2004
    return right


def calibration_error(
    probabilities: Probabilities, labels: Labels, *, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Expected calibration error over bins of equal numbers of patients.

    Equal-mass bins, since equal-width ones are mostly empty for a small site (Nixon et al. 2019, "Measuring
    Calibration in Deep Learning", section 3.2). It is not debiased: 300 perfectly calibrated patients still
    show about 0.05. Patients with the same probability get their mean outcome, so that their order in the
    cohort does not matter.
    """
    _, inverse, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    outcomes = (np.bincount(inverse, weights=labels) / counts)[inverse]
    order = np.argsort(probabilities, kind="stable")
    bins = np.array_split(order, min(num_bins, labels.size))
    gaps = [abs(probabilities[b].sum() - outcomes[b].sum()) for b in bins]
    return float(sum(gaps) / labels.size)


def resampled_auc(
    probabilities: Probabilities, labels: Labels, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,) AUC with each patient counted `weights` (R, N) times; NaN where only one class is left.

    A probability that is no number is on the wrong side of everybody.
    """
    wrong = np.where(labels == 1, -np.inf, np.inf)
    probabilities = np.where(np.isnan(probabilities), wrong, probabilities)
    order = np.argsort(probabilities, kind="stable")
    _, starts = np.unique(probabilities[order], return_index=True)
    is_case = labels[order] == 1
    areas = np.full(len(weights), np.nan)
    step = max(1, MAX_VALUES_AT_ONCE // max(labels.size, 1))
    for first in range(0, len(weights) if labels.size else 0, step):
        drawn = weights[first : first + step, order]
        # By distinct probability, in ascending order: no pair of patients is ever stored, of which there are billions.
        cases = np.add.reduceat(drawn * is_case, starts, axis=1)
        controls = np.add.reduceat(drawn * ~is_case, starts, axis=1)
        won = (cases * (np.cumsum(controls, axis=1) - 0.5 * controls)).sum(axis=1)
        num_pairs = cases.sum(axis=1) * controls.sum(axis=1)
        areas[first : first + step] = np.divide(
            won, num_pairs, out=np.full(won.shape, np.nan), where=num_pairs > 0
        )
    return areas


def auc_interval(
    probabilities: Probabilities,
    labels: Labels,
    *,
    num_resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the AUC over patients, resampled within cases and controls.

    Within the classes, because a resample of a small site may hold one class only, where the AUC does not
    exist.

    Args:
        probabilities: (N,) of label 1.
        labels: (N,) of 0 and 1.
        num_resamples: bootstrap resamples, at least 1.
        seed: of numpy's PCG64.
        level: coverage in (0, 1).

    Returns:
        Lower and upper limit, or None when only one class is there.
    """
    cases, controls = probabilities[labels == 1], probabilities[labels == 0]
    if cases.size == 0 or controls.size == 0:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    weights = np.empty((num_resamples, labels.size))
    for code, members in ((1, cases), (0, controls)):
        chances = np.full(members.size, 1 / members.size)
        weights[:, labels == code] = rng.multinomial(members.size, chances, num_resamples)
    values = resampled_auc(probabilities, labels, weights)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
