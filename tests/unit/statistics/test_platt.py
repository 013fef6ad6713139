import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from fedhealth.statistics.calibration import fit_platt, fit_temperature, log_odds, softened


def test_platt_is_logistic_regression_on_log_odds() -> None:
    rng = np.random.default_rng(3)
    probabilities = rng.uniform(0.02, 0.98, 400)
    labels = (rng.random(400) < 1 / (1 + np.exp(-0.4 - 0.6 * log_odds(probabilities)))).astype(int)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    oracle.fit(log_odds(probabilities)[:, None], labels)
    found = fit_platt(probabilities, labels)
    assert found == pytest.approx((oracle.intercept_[0], oracle.coef_[0, 0]), abs=1e-4)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [([0.2, 0.8], [1, 1]), ([0.5, 0.5], [0, 1]), ([0.2, 0.8], [0, 1]), ([], [])],
    ids=["one class", "one probability", "separated", "nobody"],
)
def test_without_a_finite_maximum_nothing_is_fitted(
    probabilities: list[float], labels: list[int]
) -> None:
    assert fit_platt(np.array(probabilities, dtype=float), np.array(labels, dtype=int)) is None


def overconfident(inverse: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    true = rng.dirichlet(np.ones(4), 600)
    labels = np.array([rng.choice(4, p=row) for row in true])
    return softened(true, inverse), labels


@pytest.mark.parametrize("inverse", [0.3, 1.0, 3.0])
def test_a_temperature_is_the_maximum_of_the_likelihood(inverse: float) -> None:
    probabilities, labels = overconfident(inverse)

    def loss(value: float) -> float:
        chances = softened(probabilities, value)[np.arange(labels.size), labels]
        return float(-np.log(chances).sum())

    oracle = minimize_scalar(loss, bounds=(0.02, 20), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(probabilities, labels) == pytest.approx(oracle.x, abs=1e-5)


def test_a_temperature_keeps_ranks_and_sums() -> None:
    probabilities, _ = overconfident(2.0)
    softer = softened(probabilities, 0.5)
    assert np.allclose(softer.sum(axis=1), 1)
    assert (np.argsort(softer, axis=1) == np.argsort(probabilities, axis=1)).all()
    assert np.allclose(softened(probabilities, 1.0), probabilities, atol=1e-6)


def test_no_temperature_fits_nobody_no_mistake_or_worse_than_chance() -> None:
    sure = np.array([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2]])
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int)) is None
    assert fit_temperature(sure, np.array([0, 1])) is None
    assert fit_temperature(sure, np.array([2, 0])) is None
    assert fit_temperature(np.full((2, 3), 1 / 3), np.array([0, 1])) is None
