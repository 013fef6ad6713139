"""Noised means: the noise is the event's, the denominator public, no value of a patient counts more than its bound."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.metrics import LOG_LOSS_BOUND, noisy_means
from fedhealth.privacy.accounting.plan import SitePlan, plan_site
from fedhealth.privacy.randomness import Randomness

from .studies import private_study

PRIVACY = {
    "noise_multiplier": 2.0,
    "release_metrics": "closing",
    "metrics_noise_multiplier": 5.0,
}


class Silence:
    """No noise at all: what the noise is added to."""

    def normals(self, count: int) -> NDArray[np.float64]:
        return np.zeros(count)


def plan(size: int = 7000, **privacy: Any) -> SitePlan:
    made = plan_site(private_study(PRIVACY | privacy), size)
    assert made is not None
    return made


def values(*numbers: float) -> NDArray[np.float64]:
    return np.array(numbers, dtype=np.float64)


def quiet(name: str, numbers: NDArray[np.float64], size: int = 70) -> float:
    return noisy_means({name: numbers}, names=[name], plan=plan(size), randomness=Silence())[name]


def test_the_noise_has_the_standard_deviation_that_the_event_says() -> None:
    made = plan(70_000)
    names = ["accuracy", "brier", "log_loss"]
    half = {
        "accuracy": np.full(10_000, 0.5),
        "brier": np.full(10_000, 0.5),
        "log_loss": np.full(10_000, 1.5),
    }
    randomness = Randomness.seeded_for_tests(bytes(32))
    drawn = [noisy_means(half, names=names, plan=made, randomness=randomness) for _ in range(4000)]
    for name, bound in (("accuracy", 1.0), ("brier", 1.0), ("log_loss", LOG_LOSS_BOUND)):
        noise = np.array([one[name] for one in drawn]) - bound / 2
        over_sensitivity = noise.std() * 10_000 / bound / math.sqrt(len(names))
        # 4000 draws: the standard error of a standard deviation is 1.1 %.
        assert over_sensitivity == pytest.approx(made.metrics_event().noise_multiplier, rel=0.05)
        assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(4000)


@pytest.mark.parametrize("worst", [1e38, math.inf, -math.inf, math.nan, -1e38])
def test_one_patient_moves_the_vector_of_sums_by_at_most_the_sensitivity(worst: float) -> None:
    names = ["accuracy", "brier", "log_loss"]
    before = {name: np.full(4, 0.25) for name in names}
    after = {name: np.append(before[name], worst) for name in names}
    bounds = np.array([1.0, 1.0, LOG_LOSS_BOUND])
    sums = [
        np.array(list(noisy_means(each, names=names, plan=plan(70), randomness=Silence()).values()))
        * 10
        / bounds
        for each in (before, after)
    ]
    assert np.linalg.norm(sums[1] - sums[0]) <= math.sqrt(len(names)) + 1e-12


def test_a_value_that_is_not_finite_counts_as_the_bound() -> None:
    assert quiet("log_loss", values(math.nan, math.inf, 0.0)) == pytest.approx(0.6)


def test_the_denominator_is_the_declared_size_and_not_the_true_one() -> None:
    assert quiet("accuracy", values(1, 1, 0)) == pytest.approx(0.2)


def test_results_stay_in_their_range() -> None:
    assert quiet("accuracy", np.ones(50)) == 1.0
    randomness = Randomness.seeded_for_tests(bytes(32))
    tiny = plan(7, metrics_noise_multiplier=1000.0)
    seen = [
        noisy_means({"log_loss": values()}, names=["log_loss"], plan=tiny, randomness=randomness)
        for _ in range(50)
    ]
    assert {0.0, LOG_LOSS_BOUND} >= {one["log_loss"] for one in seen} or all(
        0 <= one["log_loss"] <= LOG_LOSS_BOUND for one in seen
    )


def test_an_empty_validation_side_is_noise_like_any_other() -> None:
    randomness = Randomness.seeded_for_tests(bytes(32))
    made = plan(70)
    drawn = {
        noisy_means({"accuracy": values()}, names=["accuracy"], plan=made, randomness=randomness)[
            "accuracy"
        ]
        for _ in range(50)
    }
    assert len(drawn) > 10


def test_no_names_release_nothing() -> None:
    assert noisy_means({}, names=[], plan=plan(), randomness=Silence()) == {}


@pytest.mark.parametrize("names", [["auc"], ["accuracy", "accuracy"], ["train_loss"]])
def test_only_bounded_means_can_be_released_each_once(names: list[str]) -> None:
    given = {"accuracy": values(1.0), "auc": values(1.0), "train_loss": values(1.0)}
    with pytest.raises(PrivacyError) as caught:
        noisy_means(given, names=names, plan=plan(), randomness=Silence())
    assert caught.value.code == "FH-PRIVACY-040"


@pytest.mark.parametrize(
    "given",
    [
        {"accuracy": values(1.0)},
        {"accuracy": values(1.0), "brier": values(0.1, 0.2)},
        {"accuracy": np.ones((2, 2)), "brier": np.ones((2, 2))},
    ],
)
def test_values_that_do_not_fit_together_are_refused(given: dict[str, NDArray[np.float64]]) -> None:
    with pytest.raises(PrivacyError) as caught:
        noisy_means(given, names=["accuracy", "brier"], plan=plan(), randomness=Silence())
    assert caught.value.code == "FH-PRIVACY-041"


def test_a_plan_without_metrics_releases_none() -> None:
    silent = plan_site(private_study({"noise_multiplier": 2.0}), 70)
    assert silent is not None
    with pytest.raises(PrivacyError) as caught:
        noisy_means(
            {"accuracy": values(1.0)}, names=["accuracy"], plan=silent, randomness=Silence()
        )
    assert caught.value.code == "FH-PRIVACY-029"
