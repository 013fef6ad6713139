"""Predictions for held-out patients, what they are worth, and how two models differ on the same patients.

Called by `evaluation`, `tuned_alone` and `site evaluate`. Nothing of it leaves the site.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhealth.data.batch import PatientDataset
from fedhealth.models.judgement import primary_metric, record_values, resampled_metric
from fedhealth.models.metrics import auc_interval
from fedhealth.models.protocol import Predictions, ShapedTask, Task
from fedhealth.statistics.judged import Judged
from fedhealth.training.learner import Learner

NUM_BOOTSTRAP_RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutScores:
    """A model's predictions for the test records of one site, in the cohort's order.

    Attributes:
        probabilities: (N,) float64 of label 1; for other than binary tasks (N, ...), what the task predicts.
        labels: (N,) int64 of 0 and 1, or (N, ...) as the task's.
        owners: (N,) int64, whose record it is: 0 .. number of patients - 1.
        metrics: the task's metrics of them.
        task: what judges them; None stands for a binary task.
        strata: (N,) int64, within which patients are resampled; None: the labels.
    """

    probabilities: Predictions = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    owners: NDArray[np.int64] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)
    task: Task | None = field(default=None, repr=False)
    strata: NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def primary_metric(self) -> str:
        """Name of the metric that models are compared by first."""
        return primary_metric(self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """Metrics on a site's test patients; None where undefined (AUC with one class, all with no patient).

    `value` is that of the task's first metric, whose name is `metric`, with a 95 % bootstrap interval over patients;
    `auc`, `auc_low` and `auc_high` are the same where that metric is the AUC. `metrics` holds all of them. The
    calibration error is not debiased: a perfectly calibrated model shows about 0.05 with 300 patients, and more with
    fewer.
    """

    __test__ = False  # not a pytest class, whatever its name looks like

    num_patients: int
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    calibration_error: float | None = None
    metric: str = "auc"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One model's metric minus another's on the same patients, with a 95 % interval over patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Two models on the same test patients; None where a metric is undefined or not the task's.

    `primary` is the difference in the task's first metric, whose name is `metric`; `auc` is the same for a binary
    task.
    """

    num_patients: int
    auc: Difference | None = None
    log_loss: Difference | None = None
    metric: str = "auc"
    primary: Difference | None = None


def scores_on(learner: Learner, dataset: PatientDataset, *, batch_size: int) -> HeldOutScores:
    """Predict and judge. Raises as `Learner.predict`."""
    predictions = learner.predict(dataset, batch_size=batch_size)
    labels = dataset.labels.numpy()
    rows, owner_of_row = dataset.records_of(range(dataset.num_patients))
    owners = np.empty(len(dataset), dtype=np.int64)
    owners[rows.numpy()] = owner_of_row.numpy()
    return HeldOutScores(
        probabilities=predictions,
        labels=labels,
        owners=owners,
        metrics=learner.task.metrics(predictions, labels) if len(dataset) else {},
        task=learner.task,
        strata=dataset.strata.numpy(),
    )


def judged_of(scores: HeldOutScores, patient_numbers: NDArray[np.int64] | None = None) -> Judged:
    """The scores as statistics take them: patients are resampled within the stratum of their first record.

    Args:
        scores: of one model.
        patient_numbers: (patients,) a number for each owner that stays the same in other splits; the owners
            themselves without.
    """
    _, first_rows, inverse = np.unique(scores.owners, return_index=True, return_inverse=True)
    owners = scores.owners if patient_numbers is None else patient_numbers[scores.owners]
    strata = scores.labels if scores.strata is None else scores.strata
    return Judged(
        predictions=scores.probabilities,
        labels=scores.labels,
        patients=owners,
        strata=strata[first_rows][inverse],
    )


def result_of(scores: HeldOutScores, *, seed: int) -> TestResult:
    """The table row of these predictions; `seed` is the bootstrap's."""
    metric = scores.primary_metric
    if scores.owners.size == 0:
        return TestResult(num_patients=0, metric=metric)
    low, high = _interval(scores, seed) or (None, None)
    value = scores.metrics.get(metric)
    is_auc = metric == "auc"
    return TestResult(
        num_patients=num_patients(scores),
        auc=value if is_auc else None,
        auc_low=low if is_auc else None,
        auc_high=high if is_auc else None,
        log_loss=scores.metrics.get("log_loss"),
        brier=scores.metrics.get("brier"),
        calibration_error=scores.metrics.get("calibration_error"),
        metric=metric,
        value=value,
        low=low,
        high=high,
        metrics=dict(scores.metrics),
    )


def _interval(scores: HeldOutScores, seed: int) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the task's first metric; None where it is undefined."""
    if not isinstance(scores.task, ShapedTask):
        return auc_interval(
            np.asarray(scores.probabilities, dtype=np.float64),
            scores.labels,
            num_resamples=NUM_BOOTSTRAP_RESAMPLES,
            seed=seed,
        )
    weights = _bootstrap_weights(scores, NUM_BOOTSTRAP_RESAMPLES, seed)
    values = resampled_metric(scores.task, scores.probabilities, scores.labels, weights)
    values = values[np.isfinite(values)]
    if scores.metrics.get(scores.primary_metric) is None or values.size == 0:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(
    one: HeldOutScores,
    other: HeldOutScores,
    *,
    seed: int,
    num_resamples: int = NUM_BOOTSTRAP_RESAMPLES,
) -> PairedDifference:
    """`one` minus `other` in the task's first metric and log loss, percentile bootstrap over patients within strata.

    Both models are judged on the same resampled patients, so what makes a patient hard for both cancels. Strata are
    classes, or seen and censored events (of a patient's first record; masks have none): a resample of a small site
    may else hold one class only, where the AUC does not exist. All records of a patient are drawn together.

    Raises:
        ValueError: the two were not judged on the same patients.
    """
    same = np.array_equal(one.labels, other.labels) and np.array_equal(one.owners, other.owners)
    if not same:
        raise ValueError("paired scores are of the same records in the same order")
    if one.owners.size == 0:
        return PairedDifference(num_patients=0, metric=one.primary_metric)
    weights = _bootstrap_weights(one, num_resamples, seed)
    primary = _primary_difference(one, other, weights)
    return PairedDifference(
        num_patients=num_patients(one),
        auc=primary if one.primary_metric == "auc" else None,
        log_loss=_log_loss_difference(one, other, weights),
        metric=one.primary_metric,
        primary=primary,
    )


def num_patients(scores: HeldOutScores) -> int:
    """Patients behind the scores; a patient may have several records."""
    return int(np.unique(scores.owners).size)


def _bootstrap_weights(scores: HeldOutScores, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """(R, N): how often each record is in each resample."""
    rng = np.random.Generator(np.random.PCG64(seed))
    _, first_rows, owners = np.unique(scores.owners, return_index=True, return_inverse=True)
    weights = np.zeros((num_resamples, first_rows.size))
    strata = (scores.labels if scores.strata is None else scores.strata)[first_rows]
    for stratum in np.unique(strata):
        (patients,) = np.nonzero(strata == stratum)
        chances = np.full(patients.size, 1 / patients.size)
        weights[:, patients] = rng.multinomial(patients.size, chances, num_resamples)
    return weights[:, owners]


def _primary_difference(
    one: HeldOutScores, other: HeldOutScores, weights: NDArray[np.float64]
) -> Difference | None:
    everybody = np.ones((1, one.owners.size))
    values, resampled = (_resampled(one, w) - _resampled(other, w) for w in (everybody, weights))
    # A resample may be without a pair to compare; those that have one count.
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(values[0]) or resampled.size == 0:
        return None
    return _difference(float(values[0]), resampled)


def _resampled(scores: HeldOutScores, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return resampled_metric(scores.task, scores.probabilities, scores.labels, weights)


def _log_loss_difference(
    one: HeldOutScores, other: HeldOutScores, weights: NDArray[np.float64]
) -> Difference | None:
    """None where the task has no log loss, as with Cox's model and masks."""
    losses = [
        record_values(s.task, s.probabilities, s.labels).get("log_loss") for s in (one, other)
    ]
    if losses[0] is None or losses[1] is None:
        return None
    gaps = losses[0] - losses[1]
    return _difference(float(gaps.mean()), weights @ gaps / weights.sum(axis=1))


def _difference(value: float, resampled: NDArray[np.float64]) -> Difference:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value=value, low=float(low), high=float(high))
