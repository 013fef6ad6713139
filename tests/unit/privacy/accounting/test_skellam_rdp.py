"""The bound for Skellam noise against Renyi divergences that are summed up here, term by term."""

import math
from functools import lru_cache
from itertools import product

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.accountants import RDP, RDP_ORDERS, compose, rdp_bound
from fedhealth.privacy.accounting.calibration import least_noise
from fedhealth.privacy.accounting.events import (
    DistributedSkellam,
    Event,
    GaussianRelease,
    PoissonSubsampledGaussian,
    UnboundedRelease,
    merge_events,
    parse_event,
)
from fedhealth.privacy.accounting.skellam_rdp import (
    SkellamSum,
    plain_bound,
    sampled_bound,
    skellam_curve,
)

Logs = NDArray[np.float64]
WIDE = 2500
"""Numbers on either side that are summed over: the integrand peaks near order times shift."""


@lru_cache
def log_chances(variance: float) -> Logs:
    """Of -WIDE, ..., WIDE, from mpmath's Bessel function with 40 digits."""
    with mpmath.workdps(40):
        v = mpmath.mpf(variance)
        half = [float(mpmath.log(mpmath.besseli(k, v)) - v) for k in range(WIDE + 1)]
    return np.array(half[:0:-1] + half)


def shifted(variance: float, shift: int) -> tuple[Logs, Logs]:
    """Log probabilities of Skellam(shift) and Skellam(0), where both are known."""
    chances = log_chances(variance)
    return chances[: chances.size - shift], chances[shift:]


def divergence(order: float, p: Logs, q: Logs) -> float:
    """Renyi's, of p from q, both as log probabilities."""
    terms = order * p - (order - 1) * q
    assert max(terms[0], terms[-1]) < terms.max() - 40
    return float(np.logaddexp.reduce(terms)) / (order - 1)


def plain(order: int, shift: int, variance: float) -> float:
    orders = np.array([float(order)])
    return float(plain_bound(orders, l1=shift, l2=shift, variance=variance)[0])


ORDERS = (2, 3, 4, 6, 10, 32, 100, 256)
SHIFTS = (1, 2, 3, 5, 9)
VARIANCES = (0.1, 0.3, 0.7, 1.0, 2.5, 6.0, 20.0, 75.0, 400.0)


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_bound_is_above_the_exact_divergence(variance: float) -> None:
    for order, shift in product(ORDERS, SHIFTS):
        if order * shift > WIDE / 2:
            continue
        exact = divergence(order, *shifted(variance, shift))
        assert plain(order, shift, variance) >= exact * (1 - 1e-9)


@pytest.mark.parametrize("variance", VARIANCES)
def test_both_directions_have_the_same_divergence(variance: float) -> None:
    moved, still = shifted(variance, 3)
    assert divergence(7, moved, still) == pytest.approx(divergence(7, still, moved), rel=1e-9)


@pytest.mark.parametrize("order", [2, 8, 32])
def test_with_much_noise_it_is_the_gaussians(order: int) -> None:
    exact = divergence(order, *shifted(400.0, 5))
    assert plain(order, 5, 400.0) == pytest.approx(exact, rel=0.05)
    huge = plain(order, 1000, 1e10)
    assert huge == pytest.approx(order * 1000**2 / 2e10, rel=1e-6)


def test_the_bound_is_the_theorems() -> None:
    """Worked by hand: once the first, once the second of the two is the smaller one."""
    bound = plain_bound(np.array([2.0, 3.0]), l1=10.0, l2=4.0, variance=100.0)
    assert bound[0] == pytest.approx(0.16 + (3 * 16 + 60) / 40_000)
    assert bound[1] == pytest.approx(0.24 + (5 * 16 + 60) / 40_000)
    assert plain(2, 1, 0.5) == pytest.approx(2.0 + 3.0)


def sampled(order: int, rate: float, shift: int, variance: float) -> float:
    orders = np.arange(2.0, order + 1)
    curve = plain_bound(orders, l1=shift, l2=shift, variance=variance)
    return sampled_bound(order, rate, curve)


@pytest.mark.parametrize("variance", [0.3, 4.0, 75.0])
@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.3, 0.9, 0.999])
def test_with_sampling_it_is_above_both_exact_divergences(rate: float, variance: float) -> None:
    for order, shift in product((2, 3, 8, 40), (1, 4)):
        moved, still = shifted(variance, shift)
        mixed = np.logaddexp(math.log1p(-rate) + still, math.log(rate) + moved)
        exact = max(divergence(order, mixed, still), divergence(order, still, mixed))
        bound = sampled(order, rate, shift, variance)
        assert exact * (1 - 1e-9) - 1e-14 <= bound <= plain(order, shift, variance)


@pytest.mark.parametrize("rate", [1e-3, 0.05])
def test_with_sampling_it_is_near_the_exact_one_at_order_two(rate: float) -> None:
    """At order 2 the bound is exact for the divergence that it starts from."""
    moved, still = shifted(75.0, 4)
    mixed = np.logaddexp(math.log1p(-rate) + still, math.log(rate) + moved)
    assert sampled(2, rate, 4, 75.0) == pytest.approx(divergence(2, mixed, still), rel=0.1)


def test_the_bound_with_sampling_is_the_theorems() -> None:
    """Zhu and Wang's, worked by hand at order 3; and the one from convexity where that is the smaller one."""
    q, (two, three) = 0.1, (0.2, 0.3)
    whole = 0.9**2 * 1.2 + 3 * q**2 * 0.9 * math.exp(two) + 3 * q**3 * math.exp(2 * three)
    assert sampled_bound(3, q, np.array([two, three])) == pytest.approx(math.log(whole) / 2)
    convex = 0.1 + 0.9 * math.exp(2 * three)
    assert sampled_bound(3, 0.9, np.array([two, three])) == pytest.approx(math.log(convex) / 2)


def test_at_rate_one_it_is_the_plain_one_and_near_it_no_more() -> None:
    for order in (2, 5, 64):
        assert sampled(order, 1.0, 2, 9.0) == plain(order, 2, 9.0)
        assert sampled(order, 1 - 1e-12, 2, 9.0) <= plain(order, 2, 9.0)


def test_a_curve_adds_up_over_steps_and_kinds() -> None:
    first = SkellamSum(rate=1.0, l1=9.0, l2=3.0, variance=40.0, steps=3)
    second = SkellamSum(rate=0.1, l1=4.0, l2=2.0, variance=40.0, steps=10)
    both = skellam_curve(RDP_ORDERS, [first, second])
    parts = [skellam_curve(RDP_ORDERS, [one._replace(steps=1)]) for one in (first, second)]
    np.testing.assert_allclose(both, 3 * parts[0] + 10 * parts[1], rtol=1e-12)
    plain_curve = plain_bound(np.array(RDP_ORDERS, float), l1=9.0, l2=3.0, variance=40.0)
    np.testing.assert_allclose(parts[0], plain_curve, rtol=1e-12)


def event(**changes: object) -> DistributedSkellam:
    given: dict[str, object] = {
        "unit": "patient",
        "l1_sensitivity": 2000.0,
        "l2_sensitivity": 100.0,
        "variance": 90_000.0,
        "num_honest": 3,
        "steps": 20,
        "population": "train",
        "split_id": "s",
    }
    return DistributedSkellam.model_validate(given | changes)


SAMPLED = PoissonSubsampledGaussian(
    sampling_rate=0.05, noise_multiplier=1.1, steps=300, split_id="s"
)
PLAIN = GaussianRelease(
    unit="patient", noise_multiplier=8.0, steps=5, population="validation", split_id="s"
)


def epsilon(*events: Event) -> float:
    return compose(events, delta=1e-5).epsilon


def test_a_sum_is_composed_by_rdp_and_is_near_the_gaussian_of_its_noise() -> None:
    result = compose([event()], delta=1e-5)
    gaussian = compose(
        [PLAIN.model_copy(update={"noise_multiplier": 3.0, "steps": 20})], delta=1e-5
    )
    assert result.accountant == RDP
    assert result.epsilon == result.epsilon_rdp == rdp_bound([event()], delta=1e-5)
    assert gaussian.epsilon_rdp < result.epsilon < gaussian.epsilon_rdp * 1.001


def test_the_conversion_to_epsilon_is_the_written_one() -> None:
    """Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), proposition 12: the least over orders."""
    wanted = min(
        20 * plain_bound(np.array([a]), l1=2000.0, l2=100.0, variance=90_000.0)[0]
        + math.log1p(-1 / a)
        - math.log(1e-5 * a) / (a - 1)
        for a in map(float, RDP_ORDERS)
    )
    assert epsilon(event()) == pytest.approx(wanted, rel=1e-12)


def test_sums_and_training_steps_of_one_side_add_up_and_rdp_is_the_headline() -> None:
    both = compose([event(), SAMPLED], delta=1e-5)
    assert both.accountant == RDP
    assert both.epsilon == both.epsilon_rdp
    alone = epsilon(event()), compose([SAMPLED], delta=1e-5).epsilon_rdp
    assert max(alone) < both.epsilon < sum(alone)


def test_the_other_side_of_the_split_does_not_pay() -> None:
    other = PLAIN.model_copy(update={"noise_multiplier": 50.0})
    assert epsilon(event(), other) == epsilon(event())
    expensive = PLAIN.model_copy(update={"noise_multiplier": 0.5})
    result = compose([event(), expensive], delta=1e-5)
    assert result.epsilon == epsilon(expensive)
    assert result.accountant != RDP


def test_half_the_variance_costs_more() -> None:
    assert epsilon(event(variance=45_000.0)) > epsilon(event()) * 1.3


@pytest.mark.parametrize(
    "more",
    [
        {"l2_sensitivity": 110.0},
        {"l1_sensitivity": 1e6},
        {"steps": 21},
        {"sampler": "poisson", "sampling_rate": 1.0, "variance": 89_000.0},
    ],
)
def test_what_tells_more_costs_more(more: dict[str, object]) -> None:
    assert epsilon(event(**more)) > epsilon(event())


def test_sampling_costs_less() -> None:
    assert epsilon(event(sampler="poisson", sampling_rate=0.1)) < epsilon(event()) * 0.3


def test_order_and_merging_change_nothing() -> None:
    parts = [event(steps=7), SAMPLED, event(steps=13), event(variance=1e5)]
    merged = merge_events(parts)
    assert [one.steps for one in merged] == [20, 300, 20]
    assert compose(parts, delta=1e-5) == compose(reversed(merged), delta=1e-5)


def test_the_least_noise_of_sums_is_found() -> None:
    def events(noise: float) -> tuple[Event]:
        return (event(variance=(noise * 100.0) ** 2),)

    noise = least_noise(events, target_epsilon=4.0, delta=1e-5)
    assert epsilon(*events(noise)) <= 4.0 < epsilon(*events(noise * 0.999))


def test_next_to_something_without_a_bound_there_is_none() -> None:
    unbounded = UnboundedRelease(unit="patient", steps=1)
    assert math.isinf(epsilon(event(), unbounded))


def test_units_are_not_mixed() -> None:
    with pytest.raises(PrivacyError) as caught:
        epsilon(event(), event(unit="site"))
    assert caught.value.code == "FH-PRIVACY-010"


def test_an_event_is_read_from_json_and_its_noise_multiplier_is_not_a_field() -> None:
    dumped = event().model_dump(mode="json")
    assert parse_event(dumped) == event()
    assert "noise_multiplier" not in dumped
    assert event().noise_multiplier == pytest.approx(3.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling_rate": 0.5},
        {"sampler": "poisson", "sampling_rate": 0.0},
        {"l1_sensitivity": 99.0},
        {"l2_sensitivity": 0.5},
        {"variance": 0.0},
        {"variance": math.inf},
        {"num_honest": 0},
        {"steps": 0},
        {"clipping_norm": 1.0},
        {"sampler": "shuffled"},
    ],
)
def test_a_contradiction_in_an_event_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        event(**changes)
    with pytest.raises(PrivacyError) as caught:
        parse_event(event().model_dump() | changes)
    assert caught.value.code == "FH-PRIVACY-001"
