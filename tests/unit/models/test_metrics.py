import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from fedhealth.models import metrics


def _cohort(seed: int, count: int = 80) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties.
    probabilities = np.round(rng.random(count), 1)
    labels = (rng.random(count) < 0.2 + 0.6 * probabilities).astype(np.int64)
    labels[:2] = 0, 1
    return probabilities, labels


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    probabilities, labels = _cohort(seed)
    assert metrics.auc(probabilities, labels) == pytest.approx(roc_auc_score(labels, probabilities))
    assert metrics.log_loss(probabilities, labels) == pytest.approx(log_loss(labels, probabilities))
    assert metrics.brier(probabilities, labels) == pytest.approx(
        brier_score_loss(labels, probabilities)
    )
    assert metrics.accuracy(probabilities, labels) == pytest.approx(
        accuracy_score(labels, probabilities >= 0.5)
    )


@pytest.mark.parametrize("label", [0, 1])
def test_auc_does_not_exist_with_one_class(label: int) -> None:
    labels = np.full(5, label, dtype=np.int64)
    assert metrics.auc(np.linspace(0, 1, 5), labels) is None
    assert metrics.auc_interval(np.linspace(0, 1, 5), labels, num_resamples=10, seed=1) is None


def test_certain_and_wrong_has_a_finite_log_loss() -> None:
    assert metrics.log_loss(np.array([0.0, 1.0]), np.array([1, 0])) < 40


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_metrics_stay_in_their_range_and_ignore_the_order(rows: list[tuple[float, int]]) -> None:
    probabilities = np.array([row[0] for row in rows])
    labels = np.array([row[1] for row in rows], dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(rows))
    for name in ("auc", "brier", "calibration_error", "accuracy"):
        function = getattr(metrics, name)
        value, shuffled = (
            function(probabilities, labels),
            function(probabilities[order], labels[order]),
        )
        if value is None:
            continue
        assert 0 <= value <= 1 + 1e-12
        assert value == pytest.approx(shuffled, abs=1e-9)


def test_calibration_error_is_the_gap_when_all_bins_are_off_by_the_same() -> None:
    probabilities = np.repeat([0.3, 0.7], 50)
    labels = np.concatenate([np.arange(50) < 10, np.arange(50) < 30]).astype(np.int64)
    assert metrics.calibration_error(probabilities, labels, num_bins=2) == pytest.approx(0.1)


def test_a_calibrated_model_has_a_small_calibration_error() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.random(20_000)
    labels = (rng.random(20_000) < probabilities).astype(np.int64)
    assert metrics.calibration_error(probabilities, labels) < 0.02


def test_the_interval_agrees_with_a_plain_stratified_bootstrap() -> None:
    probabilities, labels = _cohort(3)
    found = metrics.auc_interval(probabilities, labels, num_resamples=4000, seed=1)
    assert found is not None
    rng = np.random.default_rng(2)
    values = []
    for _ in range(2000):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in (0, 1)]
        )
        values.append(roc_auc_score(labels[rows], probabilities[rows]))
    np.testing.assert_allclose(found, np.quantile(values, [0.025, 0.975]), atol=0.01)


def test_the_interval_is_a_pure_function_of_its_seed() -> None:
    probabilities, labels = _cohort(4)
    first, again = (
        metrics.auc_interval(probabilities, labels, num_resamples=200, seed=9) for _ in range(2)
    )
    assert first == again


def test_the_resampled_auc_of_many_patients_needs_no_pair_of_them() -> None:
    """40 000 patients have 400 million pairs; by hand over the pairs of a few, ties and an absent class included."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 40)
    probabilities = np.round(rng.random(40), 1)
    weights = rng.integers(0, 3, (6, 40)).astype(float)
    weights[5, labels == 1] = 0
    cases, controls = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    won = (probabilities[cases][:, None] > probabilities[controls]) + 0.5 * (
        probabilities[cases][:, None] == probabilities[controls]
    )
    for row, found in zip(
        weights[:5], metrics.resampled_auc(probabilities, labels, weights), strict=False
    ):
        pairs = np.outer(row[cases], row[controls])
        assert found == pytest.approx((pairs * won).sum() / pairs.sum(), abs=1e-12)
    assert np.isnan(metrics.resampled_auc(probabilities, labels, weights)[5])
    many = np.tile(labels, 1000)
    once = metrics.resampled_auc(rng.random(many.size), many, np.ones((2, many.size)))
    assert once == pytest.approx([0.5, 0.5], abs=0.02)


def test_a_probability_that_is_no_number_ranks_on_the_wrong_side() -> None:
    labels = np.array([1, 0, 1, 0])
    once = np.ones((1, 4))
    assert metrics.resampled_auc(np.array([0.9, 0.1, np.nan, 0.2]), labels, once)[
        0
    ] == pytest.approx(0.5)
    assert metrics.resampled_auc(np.array([0.9, np.nan, 0.8, 0.2]), labels, once)[
        0
    ] == pytest.approx(0.5)
