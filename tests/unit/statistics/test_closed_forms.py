"""DeLong, Holm, precision-recall, calibration: against brute force, scikit-learn and scipy."""

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_curve

from fedhealth.statistics.calibration import (
    calibration_null,
    calibration_points,
    fit_calibration,
    wilson,
)
from fedhealth.statistics.delong import delong
from fedhealth.statistics.discrimination import average_precision, sensitivity_at_specificity
from fedhealth.statistics.holm import holm

from .conftest import Maker


def test_delong_is_the_sum_over_all_pairs(judged: Maker) -> None:
    one, other = judged(50, seed=1), judged(50, seed=1, noise=1)
    predictions = [np.round(j.predictions, 1) for j in (one, other)]
    found = delong(predictions[0], predictions[1], one.labels)
    assert found is not None
    cases, controls = np.flatnonzero(one.labels == 1), np.flatnonzero(one.labels == 0)
    wins = np.array(
        [
            [[(p[i] > p[j]) + 0.5 * (p[i] == p[j]) for j in controls] for i in cases]
            for p in predictions
        ]
    )
    by_case, by_control = wins.mean(axis=2), wins.mean(axis=1)
    covariance = np.cov(by_case) / cases.size + np.cov(by_control) / controls.size
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert found.difference == pytest.approx(wins[0].mean() - wins[1].mean(), abs=1e-12)
    assert found.standard_error == pytest.approx(variance**0.5, abs=1e-12)


def test_delong_needs_two_of_each_class(judged: Maker) -> None:
    scores = judged(10, seed=1)
    labels = np.zeros(10, dtype=np.int64)
    labels[0] = 1
    assert delong(scores.predictions, scores.predictions, labels) is None
    same = delong(scores.predictions, scores.predictions, scores.labels)
    assert same is not None
    assert (same.difference, same.standard_error, same.p_value) == (0, 0, 1)


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """A hypothesis is rejected if every intersection that holds it is (Marcus, Peritz and Gabriel 1976)."""
    values = [0.011, 0.02, 0.04, 0.005, 0.9]
    adjusted = holm(values)
    indices = range(len(values))
    for index in indices:
        closed = max(
            min(1.0, len(group) * min(values[k] for k in group))
            for size in range(1, len(values) + 1)
            for group in combinations(indices, size)
            if index in group
        )
        assert adjusted[index] == pytest.approx(closed)


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.5])


def test_average_precision_and_sensitivity_are_scikit_learns(judged: Maker) -> None:
    for decimals in (1, 6):
        scores = judged(200, seed=2)
        predictions = np.round(scores.predictions, decimals)
        assert average_precision(predictions, scores.labels) == pytest.approx(
            average_precision_score(scores.labels, predictions), abs=1e-12
        )
        fpr, tpr, _ = roc_curve(scores.labels, predictions, drop_intermediate=False)
        assert sensitivity_at_specificity(predictions, scores.labels) == pytest.approx(
            tpr[fpr <= 0.1 + 1e-12].max()
        )


def test_one_class_has_neither() -> None:
    none = np.zeros(4, dtype=np.int64)
    assert average_precision(np.full(4, 0.5), none) is None
    assert sensitivity_at_specificity(np.full(4, 0.5), none) is None
    assert sensitivity_at_specificity(np.full(4, 0.5), none + 1) is None


def test_the_calibration_fit_maximises_the_likelihood(judged: Maker) -> None:
    scores = judged(300, seed=3, noise=1)
    logits = np.log(scores.predictions / (1 - scores.predictions))

    def loss(found: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
        eta = found[0] + (found[1] if found.size > 1 else 1.0) * logits
        return float((np.logaddexp(0, eta) - scores.labels * eta).sum())

    found = fit_calibration(scores.predictions, scores.labels)
    assert found is not None
    assert found.slope == pytest.approx(minimize(loss, [0.0, 1.0], tol=1e-10).x[1], abs=1e-4)
    assert found.intercept == pytest.approx(minimize(loss, [0.0], tol=1e-10).x[0], abs=1e-4)


def test_probabilities_that_are_right_have_slope_one_and_intercept_zero() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=20_000)
    truth = 1 / (1 + np.exp(-logits))
    labels = (rng.random(20_000) < truth).astype(np.int64)
    right = fit_calibration(truth, labels)
    extreme = fit_calibration(1 / (1 + np.exp(-2 * logits - 1)), labels)
    assert right is not None
    assert extreme is not None
    assert (right.slope, right.intercept) == pytest.approx((1, 0), abs=0.06)
    assert extreme.slope == pytest.approx(0.5, abs=0.04)
    assert extreme.intercept < -0.5


def test_a_separated_or_one_sided_sample_has_no_fit() -> None:
    labels = np.array([0, 0, 1, 1])
    assert fit_calibration(np.array([0.1, 0.2, 0.8, 0.9]), labels) is None
    assert fit_calibration(np.full(4, 0.5), labels) is None
    assert fit_calibration(np.array([0.1, 0.2, 0.8, 0.9]), np.ones(4, dtype=np.int64)) is None


def test_a_calibrated_model_shows_an_error_that_its_null_explains() -> None:
    """The trap of science: 300 perfectly calibrated patients still show an error of about 0.05."""
    rng = np.random.default_rng(5)
    truth = 1 / (1 + np.exp(-rng.normal(size=300)))
    right = calibration_null(truth, (rng.random(300) < truth).astype(np.int64), seed=1)
    wrong = calibration_null(truth, (rng.random(300) < truth**3).astype(np.int64), seed=1)
    assert right is not None
    assert wrong is not None
    assert right.expected == pytest.approx(0.06, abs=0.02)
    assert right.p_value > 0.05
    assert wrong.error > wrong.high
    assert wrong.p_value < 0.01


def test_the_interval_of_a_share_is_scipys() -> None:
    found = binomtest(7, 20).proportion_ci(method="wilson")
    assert wilson(7 / 20, 20) == pytest.approx((found.low, found.high), abs=1e-9)


def test_points_hold_all_patients_in_order(judged: Maker) -> None:
    scores = judged(47, seed=6)
    points = calibration_points(scores.predictions, scores.labels)
    assert sum(point.num_patients for point in points) == 47
    assert min(point.num_patients for point in points) >= 10
    assert [p.predicted for p in points] == sorted(p.predicted for p in points)
    mean = sum(p.observed * p.num_patients for p in points) / 47
    assert mean == pytest.approx(scores.labels.mean())
