"""Sizes of a distributed mechanism: what is promised of them, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedhealth.contracts.aggregation import MAX_ROUNDING_LOSS
from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.site_level import SITES
from fedhealth.privacy.distributed.plan import least_distributed_noise, plan_distributed
from fedhealth.privacy.distributed.rounding import largest_squared_norm
from fedhealth.privacy.distributed.skellam import MAX_STD, skellam
from fedhealth.privacy.distributed.wrap_around import (
    MAX_PROBABILITY,
    SumShape,
    log_wrap_probability,
)
from fedhealth.privacy.randomness import Randomness

from .plans import make_plan


def wraps(changes: dict[str, Any], granularity: float) -> float:
    """The bound of the chance on that grid, from the plan's arguments only."""
    plan = make_plan(**changes)
    norm = plan.clipping_norm / granularity
    squared = largest_squared_norm(norm, plan.padded_dimension)
    shape = SumShape(
        dimension=plan.padded_dimension,
        norm=norm,
        max_contributions=plan.max_contributions,
        variance=plan.noise_multiplier**2 * squared / plan.num_honest * plan.num_sites,
    )
    return math.exp(log_wrap_probability(shape, plan.modulus_bits))


@pytest.mark.parametrize(
    "changes",
    [
        {"modulus_bits": 10},
        {"modulus_bits": 12, "dimension": 5000, "noise_multiplier": 0.3},
        {"modulus_bits": 14, "unit": "patient", "max_contributions": 320, "sampling_rate": 0.1},
        {"modulus_bits": 16, "dimension": 2**20, "num_sites": 40, "max_contributions": 40},
        {"modulus_bits": 10, "dimension": 1},
    ],
)
def test_the_grid_is_the_finest_that_does_not_wrap_around(changes: dict[str, Any]) -> None:
    granularity = make_plan(**changes).granularity
    assert wraps(changes, granularity) < MAX_PROBABILITY <= wraps(changes, granularity * 0.998)


def test_with_many_bits_the_noise_table_is_the_limit() -> None:
    plan = make_plan(modulus_bits=40)
    assert MAX_STD * 0.999 < math.sqrt(plan.local_variance) <= MAX_STD


def test_the_noise_of_the_fewest_honest_sites_is_what_is_claimed() -> None:
    """Drawn shares of three of the five sites have the variance of the event, and that is z times the largest norm."""
    plan = make_plan(modulus_bits=12, noise_multiplier=1.7)
    event = plan.event(split_id="s")
    assert event.noise_multiplier == pytest.approx(1.7, rel=1e-12)
    assert event.num_honest == 3
    assert event.l2_sensitivity**2 >= plan.squared_norm_bound
    source = Randomness.seeded_for_tests(bytes(32))
    drawn = sum(skellam(200_000, plan.local_variance, source) for _ in range(3))
    ratio = float(np.var(drawn)) / event.variance
    # 5 standard errors of a variance.
    assert abs(ratio - 1) < 5 * math.sqrt(2 / 200_000)
    assert plan.noise_std == pytest.approx(math.sqrt(event.variance) * plan.granularity)
    assert plan.noise_std >= 1.7 * plan.clipping_norm


def test_fewer_honest_sites_make_every_share_larger_and_the_account_the_same() -> None:
    few, many = (make_plan(num_honest=h, modulus_bits=16) for h in (1, 5))
    assert few.local_variance * few.granularity**2 > 4 * many.local_variance * many.granularity**2
    costs = [compose([p.event(10, split_id="s")], delta=1e-4).epsilon for p in (few, many)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)


@pytest.mark.parametrize("dimension", [1, 2, 3, 300, 2**20])
def test_norm_bounds_belong_to_whole_numbers(dimension: int) -> None:
    plan = make_plan(dimension=dimension)
    squared = plan.squared_norm_bound
    assert plan.l2_bound >= math.sqrt(squared) >= plan.clipping_norm / plan.granularity
    assert plan.l2_bound <= plan.l1_bound <= max(squared, plan.l2_bound)
    assert plan.l1_bound >= min(squared, math.sqrt(plan.padded_dimension * squared))
    assert plan.l2_bound * plan.granularity <= MAX_ROUNDING_LOSS * plan.clipping_norm


def test_a_patient_with_two_contributions_counts_twice() -> None:
    plan = make_plan(
        unit="patient", sampling_rate=0.25, max_contributions=100, generator="chacha20"
    )
    once = plan.event(7, split_id="s1", population="train")
    twice = plan.event(7, split_id="s1", population="train", sensitivity_factor=2)
    assert twice.l2_sensitivity == 2 * once.l2_sensitivity
    assert twice.l1_sensitivity == 2 * once.l1_sensitivity
    assert (once.sampler, once.sampling_rate, once.unit) == ("poisson", 0.25, "patient")
    assert (once.steps, once.population, once.split_id) == (7, "train", "s1")
    assert once.generator == "chacha20"
    with pytest.raises(PrivacyError) as caught:
        plan.event(split_id="s1", sensitivity_factor=0)
    assert caught.value.code == "FH-PRIVACY-108"


def test_the_share_of_a_site_level_release_is_that_of_the_event() -> None:
    plan = make_plan()
    event = plan.event(split_id=SITES)
    share = plan.share
    assert (event.unit, event.population, event.sampler) == ("site", "all", "none")
    assert (share.l1_sensitivity, share.l2_sensitivity) == (
        event.l1_sensitivity,
        event.l2_sensitivity,
    )
    assert (share.variance, share.num_honest) == (event.variance, event.num_honest)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"num_honest": 0}, "FH-PRIVACY-106"),
        ({"num_honest": 6}, "FH-PRIVACY-106"),
        ({"modulus_bits": 0}, "FH-PRIVACY-107"),
        ({"modulus_bits": 63}, "FH-PRIVACY-107"),
        ({"dimension": 0}, "FH-PRIVACY-108"),
        ({"dimension": 2**33}, "FH-PRIVACY-108"),
        ({"clipping_norm": 0.0}, "FH-PRIVACY-108"),
        ({"clipping_norm": math.inf}, "FH-PRIVACY-108"),
        ({"clipping_norm": math.nan}, "FH-PRIVACY-108"),
        ({"clipping_norm": 1e-300}, "FH-PRIVACY-108"),
        ({"noise_multiplier": 0.0}, "FH-PRIVACY-108"),
        ({"noise_multiplier": math.nan}, "FH-PRIVACY-108"),
        ({"max_contributions": 4}, "FH-PRIVACY-108"),
        ({"sampling_rate": 0.5}, "FH-PRIVACY-108"),
        ({"unit": "patient", "sampling_rate": 0.0}, "FH-PRIVACY-108"),
        ({"unit": "patient", "sampling_rate": 1.1}, "FH-PRIVACY-108"),
        ({"unit": "patient", "max_contributions": 0}, "FH-PRIVACY-108"),
        ({"modulus_bits": 6}, "FH-PRIVACY-109"),
        ({"modulus_bits": 12, "dimension": 2**20}, "FH-PRIVACY-109"),
        ({"noise_multiplier": 1e6}, "FH-PRIVACY-109"),
        ({"unit": "patient", "max_contributions": 10**8}, "FH-PRIVACY-109"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        make_plan(**changes)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"modulus_bits": 6}, "more bits"), ({"noise_multiplier": 1e6}, "Use less noise")],
)
def test_a_refusal_says_what_would_help(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        make_plan(**changes)
    assert hint in caught.value.fix


SEARCH: dict[str, Any] = {
    "delta": 1e-4,
    "dimension": 10_000,
    "clipping_norm": 0.5,
    "num_sites": 5,
    "num_honest": 3,
    "modulus_bits": 24,
}


@pytest.mark.parametrize(
    ("target", "steps", "options"),
    [
        (8.0, 30, {"unit": "site", "max_contributions": 5}),
        (1.0, 30, {"unit": "site", "max_contributions": 5}),
        (3.0, 400, {"unit": "patient", "max_contributions": 200, "sampling_rate": 0.05}),
    ],
)
def test_the_least_noise_meets_the_target_and_a_little_less_does_not(
    target: float, steps: int, options: dict[str, Any]
) -> None:
    noise = least_distributed_noise(target_epsilon=target, steps=steps, **SEARCH, **options)

    def epsilon(multiplier: float) -> float:
        known = {name: value for name, value in SEARCH.items() if name != "delta"}
        plan = plan_distributed(noise_multiplier=multiplier, **known, **options)
        return compose([plan.event(steps, split_id="s")], delta=1e-4).epsilon

    assert float(f"{noise:.4g}") == noise
    assert epsilon(noise) <= target < epsilon(noise * 0.999)


def test_noise_that_is_needed_and_does_not_fit_is_an_error() -> None:
    options = {"unit": "site", "max_contributions": 5, "steps": 1000} | SEARCH
    with pytest.raises(PrivacyError) as caught:
        least_distributed_noise(target_epsilon=0.1, **options | {"modulus_bits": 12})
    assert caught.value.code == "FH-PRIVACY-109"
    with pytest.raises(PrivacyError) as caught:
        least_distributed_noise(target_epsilon=0.0, **options)
    assert caught.value.code == "FH-PRIVACY-015"


@pytest.mark.parametrize(
    ("variance", "limit"), [(0.5, 4), (20.0, 14), (400.0, 64), (1000.0, 128), (30_000.0, 512)]
)
def test_the_tail_of_the_noise_is_below_its_bound_and_not_far(variance: float, limit: int) -> None:
    """Against scipy's exact tail of a Skellam number; both sides, one coordinate, next to no signal."""
    shape = SumShape(dimension=1, norm=1e-9, max_contributions=1, variance=variance)
    bits = limit.bit_length()
    threshold = 2 ** (bits - 1)
    exact = 2 * stats.skellam.sf(threshold - 1, variance / 2, variance / 2)
    rounding = math.exp(log_wrap_probability(shape, bits))
    assert exact <= rounding
    # Chernoff bounds are about t * std too large, and one step of rounding is in the bound.
    assert math.log(rounding) <= math.log(exact) * 0.5 + 3


def test_the_bound_is_the_written_one() -> None:
    """On a grid of t, where the least of all bounds is found by trying; a rotation of much signal, and a short one."""
    for norm, count, variance, bits in (
        (100.0, 3, 50.0, 9),
        (0.5, 300, 2.0, 10),
        (1e-3, 2, 900.0, 8),
    ):
        size, limit = 64, 2 ** (bits - 1)
        t = np.geomspace(1e-4, 20, 20_000)
        signal = np.minimum(t**2 * (count * norm) ** 2 / (2 * size), t * count * norm)
        accept = 1 - math.exp(-0.5)
        rounding = np.minimum(count * (t**2 / 8 - math.log(accept)), t * count)
        noise = variance * (np.cosh(t) - 1)
        wanted = (signal + rounding + noise - t * limit).min() + math.log(2 * size)
        shape = SumShape(dimension=size, norm=norm, max_contributions=count, variance=variance)
        assert log_wrap_probability(shape, bits) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("count", [1, 5, 300])
def test_the_bound_holds_for_rotated_and_rounded_sums_without_noise(count: int) -> None:
    """All contributions the same, at a modulus where sums do wrap around now and then."""
    size, trials, norm = 8, 20_000, 40.0
    rng = np.random.default_rng(count)
    vector = rng.normal(size=size)
    vector *= norm / np.linalg.norm(vector)
    signs = rng.choice([-1.0, 1.0], (trials, size))
    matrix = (
        1.0
        / math.sqrt(size)
        * np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)])
    )
    rotated = signs * vector @ matrix
    floor = np.floor(rotated)
    sums = count * floor + rng.binomial(count, rotated - floor)
    shape = SumShape(dimension=size, norm=norm, max_contributions=count, variance=1e-9)
    for bits in range(3, 20):
        limit = 2 ** (bits - 1)
        frequency = float(np.mean((sums >= limit).any(axis=1) | (sums < -limit).any(axis=1)))
        assert frequency <= math.exp(log_wrap_probability(shape, bits))
