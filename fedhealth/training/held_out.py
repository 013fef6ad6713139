"""Predictions for held-out patients, what they are worth, and how two models differ on the same patients.

Called by `evaluation`, `tuned_alone` and `site evaluate`. Nothing of it leaves the site.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedhealth.data.batch import PatientDataset
from fedhealth.models.metrics import SMALLEST_PROBABILITY, auc, auc_interval
from fedhealth.training.learner import Learner

NUM_BOOTSTRAP_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutScores:
    """A model's predictions for the test records of one site, in the cohort's order.

    Attributes:
        probabilities: (N,) float64 of label 1.
        labels: (N,) int64 of 0 and 1.
        owners: (N,) int64, whose record it is: 0 .. number of patients - 1.
        metrics: the task's metrics of them.
    """

    probabilities: NDArray[np.float64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    owners: NDArray[np.int64] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """Metrics on a site's test patients; None where undefined (AUC with one class, all with no patient).

    `auc_low` and `auc_high` are a 95 % bootstrap interval over patients. The calibration error is not debiased:
    a perfectly calibrated model shows about 0.05 with 300 patients, and more with fewer.
    """

    __test__ = False  # not a pytest class, whatever its name looks like

    num_patients: int
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    calibration_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One model's metric minus another's on the same patients, with a 95 % interval over patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Two models on the same test patients; None where a metric is undefined."""

    num_patients: int
    auc: Difference | None = None
    log_loss: Difference | None = None


def scores_on(learner: Learner, dataset: PatientDataset, *, batch_size: int) -> HeldOutScores:
    """Predict and judge. Raises as `Learner.predict`."""
    probabilities = learner.predict(dataset, batch_size=batch_size)
    labels = dataset.labels.numpy()
    rows, owner_of_row = dataset.records_of(range(dataset.num_patients))
    owners = np.empty(labels.size, dtype=np.int64)
    owners[rows.numpy()] = owner_of_row.numpy()
    return HeldOutScores(
        probabilities=probabilities,
        labels=labels,
        owners=owners,
        metrics=learner.task.metrics(probabilities, labels) if labels.size else {},
    )


def result_of(scores: HeldOutScores, *, seed: int) -> TestResult:
    """The table row of these predictions; `seed` is the bootstrap's."""
    if scores.labels.size == 0:
        return TestResult(num_patients=0)
    low, high = auc_interval(
        scores.probabilities, scores.labels, num_resamples=NUM_BOOTSTRAP_RESAMPLES, seed=seed
    ) or (None, None)
    return TestResult(
        num_patients=num_patients(scores),
        auc=scores.metrics.get("auc"),
        auc_low=low,
        auc_high=high,
        log_loss=scores.metrics.get("log_loss"),
        brier=scores.metrics.get("brier"),
        calibration_error=scores.metrics.get("calibration_error"),
    )


def paired_difference(
    one: HeldOutScores,
    other: HeldOutScores,
    *,
    seed: int,
    num_resamples: int = NUM_BOOTSTRAP_RESAMPLES,
) -> PairedDifference:
    """`one` minus `other` in AUC and log loss, percentile bootstrap over patients within each class.

    Both models are judged on the same resampled patients, so what makes a patient hard for both cancels. Within
    classes (of a patient's first record), because a resample of a small site may hold one class only, where the
    AUC does not exist. All records of a patient are drawn together.

    Raises:
        ValueError: the two were not judged on the same patients.
    """
    same = np.array_equal(one.labels, other.labels) and np.array_equal(one.owners, other.owners)
    if not same:
        raise ValueError("paired scores are of the same records in the same order")
    if one.labels.size == 0:
        return PairedDifference(num_patients=0)
    weights = _bootstrap_weights(one, num_resamples, seed)
    losses = _losses(one) - _losses(other)
    return PairedDifference(
        num_patients=num_patients(one),
        auc=_auc_difference(one, other, weights),
        log_loss=_difference(float(losses.mean()), weights @ losses / weights.sum(axis=1)),
    )


def num_patients(scores: HeldOutScores) -> int:
    """Patients behind the scores; a patient may have several records."""
    return int(np.unique(scores.owners).size)


def _bootstrap_weights(scores: HeldOutScores, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, N): how often each record is in each resample."""
    rng = np.random.Generator(np.random.PCG64(seed))
    _, first_rows, owners = np.unique(scores.owners, return_index=True, return_inverse=True)
    weights = np.zeros((num_resamples, first_rows.size))
    for label in (0, 1):
        (patients,) = np.nonzero(scores.labels[first_rows] == label)
        if patients.size:
            chances = np.full(patients.size, 1 / patients.size)
            weights[:, patients] = rng.multinomial(patients.size, chances, num_resamples)
    return weights[:, owners]


def _auc_difference(
    one: HeldOutScores, other: HeldOutScores, weights: NDArray[np.float64]
) -> Difference | None:
    areas = [auc(scores.probabilities, scores.labels) for scores in (one, other)]
    if areas[0] is None or areas[1] is None:
        return None
    case_weights, control_weights = (weights[:, one.labels == label] for label in (1, 0))
    won = np.einsum("rj,rj->r", case_weights @ (_wins(one) - _wins(other)), control_weights)
    num_pairs = case_weights.sum(axis=1) * control_weights.sum(axis=1)
    # Only patients whose records differ in label can leave a resample without a pair.
    return _difference(areas[0] - areas[1], won[num_pairs > 0] / num_pairs[num_pairs > 0])


def _wins(scores: HeldOutScores) -> NDArray[np.float64]:
    """(cases, controls): 1 where the case ranks above the control, half for a tie."""
    cases = scores.probabilities[scores.labels == 1][:, None]
    controls = scores.probabilities[scores.labels == 0]
    wins: NDArray[np.float64] = (cases > controls) + 0.5 * (cases == controls)
    return wins


def _losses(scores: HeldOutScores) -> NDArray[np.float64]:
    """(N,) negative log likelihoods in nats, kept finite as `metrics.log_loss` does."""
    kept = np.clip(scores.probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return np.where(scores.labels == 1, -np.log(kept), -np.log1p(-kept))


def _difference(value: float, resampled: NDArray[np.float64]) -> Difference:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value=value, low=float(low), high=float(high))
