import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fedhealth.statistics.calibration import fit_platt, log_odds


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
