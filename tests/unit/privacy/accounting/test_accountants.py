"""Epsilons against closed forms that are written here, and the rules of composition."""

import math

import pytest
from scipy.special import log_ndtr

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting import accountants
from fedhealth.privacy.accounting.accountants import Spend, compose, rdp_bound
from fedhealth.privacy.accounting.events import (
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    Population,
    UnboundedRelease,
    Unit,
)


def sampled(
    rate: float,
    noise: float,
    steps: int,
    *,
    population: Population = "train",
    split: str = "s",
) -> PoissonSubsampledGaussian:
    return PoissonSubsampledGaussian(
        sampling_rate=rate,
        noise_multiplier=noise,
        steps=steps,
        population=population,
        split_id=split,
    )


def gaussian(
    noise: float,
    steps: int = 1,
    *,
    population: Population = "train",
    split: str = "s",
    unit: Unit = "patient",
) -> GaussianRelease:
    return GaussianRelease(
        unit=unit, noise_multiplier=noise, steps=steps, population=population, split_id=split
    )


def spend(*events: Event, delta: float = 1e-5) -> Spend:
    return compose(events, delta=delta)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """Balle and Wang 2018 (arXiv 1805.06530), theorem 8, solved for epsilon by bisection."""
    mu = 1 / noise

    def slack(epsilon: float) -> float:
        first = math.exp(log_ndtr(mu / 2 - epsilon / mu))
        return first - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))

    return bisect(slack, delta)


def sampled_epsilon(rate: float, noise: float, delta: float) -> float:
    """One sampled step: hockey-stick divergences of (1-q) N(0) + q N(1) and N(0), both ways, by hand."""
    var = noise**2

    def tail(x: float, mean: float) -> float:
        return math.exp(log_ndtr((mean - x) / noise))

    def slack(epsilon: float) -> float:
        cut = var * math.log((math.expm1(epsilon) + rate) / rate) + 0.5
        removed = (1 - rate) * tail(cut, 0) + rate * tail(cut, 1) - math.exp(epsilon) * tail(cut, 0)
        left = math.expm1(-epsilon) + rate
        if left <= 0:
            return removed
        cut = var * math.log(left / rate) + 0.5
        mixed = (1 - rate) * (1 - tail(cut, 0)) + rate * (1 - tail(cut, 1))
        return max(removed, 1 - tail(cut, 0) - math.exp(epsilon) * mixed)

    return bisect(slack, delta)


def bisect(slack: object, delta: float) -> float:
    assert callable(slack)
    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slack(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize(
    ("noise", "steps"), [(1.0, 1), (2.0, 30), (20.0, 4), (0.5, 3), (1000.0, 7), (300.0, 10**6)]
)
def test_unsampled_steps_have_the_closed_form_epsilon_of_one_gaussian(
    noise: float, steps: int, delta: float
) -> None:
    exact = gaussian_epsilon(noise / math.sqrt(steps), delta)
    result = spend(gaussian(noise, steps), delta=delta)
    assert exact * (1 - 1e-6) <= result.epsilon <= exact * 1.005 + 1e-5
    assert result.epsilon_rdp >= exact


@pytest.mark.parametrize(
    ("rate", "noise"), [(0.1, 1.0), (0.3, 0.6), (0.01, 2.0), (0.8, 5.0), (0.05, 40.0)]
)
def test_one_sampled_step_has_the_epsilon_of_its_two_hockey_sticks(
    rate: float, noise: float
) -> None:
    exact = sampled_epsilon(rate, noise, 1e-4)
    result = spend(sampled(rate, noise, 1), delta=1e-4).epsilon
    assert exact * (1 - 1e-6) <= result <= exact * 1.01 + 1e-6


@pytest.mark.parametrize(
    ("size", "batch", "steps", "noise", "known"),
    [
        (200, 32, 300, 1.0, (19.1, 17.0)),
        (200, 32, 300, 2.0, (6.24, 5.54)),
        (1000, 64, 600, 1.5, (5.30, 4.79)),
        (60, 16, 300, 4.0, (4.20, 3.66)),
    ],
)
def test_known_studies_keep_their_epsilons(
    size: int, batch: int, steps: int, noise: float, known: tuple[float, float]
) -> None:
    result = spend(sampled(batch / size, noise, steps), delta=0.1 / size)
    assert (result.epsilon_rdp, result.epsilon) == pytest.approx(known, rel=0.003)


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 30), (5.0, 3), (50.0, 9)])
def test_zero_concentrated_privacy_is_an_upper_bound(noise: float, steps: int) -> None:
    rho = steps / (2 * noise**2)  # Bun and Steinke 2016 (arXiv 1605.02065), proposition 1.3
    bound = rho + 2 * math.sqrt(rho * math.log(1e5))
    result = spend(gaussian(noise, steps))
    assert result.epsilon <= bound
    assert result.epsilon_rdp <= bound * 1.01


def test_a_sampling_rate_of_one_is_the_plain_gaussian() -> None:
    assert spend(sampled(1.0, 2.0, 5)).epsilon == spend(gaussian(2.0, 5)).epsilon


def test_sampling_helps() -> None:
    assert spend(sampled(0.1, 2.0, 50)).epsilon < 0.5 * spend(gaussian(2.0, 50)).epsilon


def test_ten_rounds_cost_what_all_their_steps_cost_at_once() -> None:
    rounds = [sampled(0.1, 1.2, 30)] * 10
    assert spend(*rounds) == spend(sampled(0.1, 1.2, 300))


def test_two_runs_compose_and_are_not_their_maximum_nor_their_sum() -> None:
    one, other = sampled(0.1, 1.2, 100), sampled(0.2, 2.0, 100)
    alone = [spend(one).epsilon, spend(other).epsilon]
    both = spend(one, other).epsilon
    assert max(alone) * 1.05 < both < sum(alone)


def test_order_does_not_matter() -> None:
    events = [sampled(0.1, 1.2, 7), gaussian(9.0, population="all"), sampled(0.2, 2.0, 3)]
    assert spend(*events) == spend(*reversed(events))


def test_sides_of_one_split_are_disjoint_and_the_dearest_one_counts() -> None:
    train, validation = sampled(0.1, 1.2, 100), gaussian(3.0, population="validation")
    assert spend(train, validation).epsilon == spend(train).epsilon
    assert spend(train, gaussian(0.5, population="test")).epsilon == spend(gaussian(0.5)).epsilon


def test_what_all_patients_are_in_counts_on_every_side() -> None:
    train, everybody = sampled(0.1, 1.2, 100), gaussian(3.0, population="all")
    assert spend(train, everybody).epsilon == spend(train, gaussian(3.0)).epsilon
    assert spend(everybody).epsilon == spend(gaussian(3.0)).epsilon


def test_two_splits_of_the_same_patients_add_up_over_sides() -> None:
    train, validation = sampled(0.1, 1.2, 100), gaussian(3.0, population="validation", split="t")
    assert spend(train, validation).epsilon == spend(train, gaussian(3.0)).epsilon


def test_populations_mean_nothing_for_sites() -> None:
    events = [gaussian(3.0, unit="site", population=side) for side in ("train", "validation")]
    both = spend(*events)
    assert both.unit == "site"
    assert both.epsilon == spend(gaussian(3.0, 2, unit="site")).epsilon


def test_no_events_cost_nothing() -> None:
    assert (spend().epsilon, spend().epsilon_rdp, spend().unit) == (0.0, 0.0, "patient")


def test_an_unbounded_release_makes_epsilon_infinite() -> None:
    result = spend(sampled(0.1, 1.0, 1), UnboundedRelease(unit="patient", steps=1))
    assert result.epsilon == result.epsilon_rdp == math.inf
    assert rdp_bound([UnboundedRelease(unit="patient", steps=1)], delta=1e-5) == math.inf


def test_units_are_never_mixed() -> None:
    with pytest.raises(PrivacyError) as caught:
        spend(gaussian(3.0), gaussian(3.0, unit="site"))
    assert caught.value.code == "FH-PRIVACY-010"


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, 2.0, math.nan, math.inf])
def test_delta_lies_between_zero_and_one(delta: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        compose([gaussian(3.0)], delta=delta)
    assert caught.value.code == "FH-PRIVACY-011"


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(PrivacyError) as caught:
        compose([object()], delta=1e-5)  # type: ignore[list-item] - what is refused
    assert caught.value.code == "FH-PRIVACY-012"


def test_accountants_that_contradict_each_other_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accountants, "RDP_ORDERS", (2.0,))
    broken = accountants._rdp.__wrapped__
    monkeypatch.setattr(
        accountants, "_rdp", lambda mechanisms, delta: broken(mechanisms, delta) / 9
    )
    with pytest.raises(PrivacyError) as caught:
        spend(sampled(0.1234, 1.2, 77))
    assert caught.value.code == "FH-PRIVACY-013"


def test_orders_of_rdp_are_whole_numbers() -> None:
    assert all(isinstance(order, int) and order > 1 for order in accountants.RDP_ORDERS)


def test_an_epsilon_beyond_any_use_is_told_by_rdp_and_says_so() -> None:
    result = spend(gaussian(0.01, 100))
    assert result.accountant == "dp-accounting RDP"
    assert result.epsilon == result.epsilon_rdp >= gaussian_epsilon(0.1, 1e-5)


def test_a_spend_names_its_accountant_and_version() -> None:
    result = spend(gaussian(3.0))
    assert result.accountant == "dp-accounting PLD"
    assert result.accountant_version
    assert result.adjacency == "add_or_remove_one"
