"""From updates to whole numbers and back: clipped, unbiased, hidden by noise, never wrapped around."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError
from fedhealth.privacy.distributed.encode import add_noise, decode, encode
from fedhealth.privacy.distributed.rounding import exact_squared_norm
from fedhealth.privacy.randomness import Randomness

from .plans import make_plan


def seeded(tag: int = 0) -> Randomness:
    return Randomness.seeded_for_tests(tag.to_bytes(32, "little"))


def rotation_seed(number: int) -> bytes:
    return number.to_bytes(32, "big")


def update(size: int, norm: float, tag: int = 0) -> NDArray[np.float32]:
    direction = np.random.default_rng(tag).normal(size=size)
    return (direction * norm / np.linalg.norm(direction)).astype(np.float32)


@pytest.mark.parametrize("norm", [1e-20, 0.3, 1.0, 1.0000001, 50.0, 1e30])
@pytest.mark.parametrize("bits", [10, 24])
def test_a_contribution_never_exceeds_the_norm_that_noise_is_sized_for(
    norm: float, bits: int
) -> None:
    plan = make_plan(modulus_bits=bits)
    for number in range(20):
        ints = encode(update(300, norm), plan, rotation_seed(number), seeded(number))
        assert exact_squared_norm(ints) <= plan.squared_norm_bound
        assert int(np.abs(ints).sum()) <= plan.l1_bound
        assert ints.shape == (512,)
        assert ints.dtype == np.int64


def test_an_update_beyond_the_norm_is_clipped_and_keeps_its_direction() -> None:
    plan = make_plan(modulus_bits=40)
    long, short = update(300, 70.0), update(300, 1.0)
    found = decode(encode(long, plan, rotation_seed(1), seeded()), plan, rotation_seed(1))
    # Each coordinate is off by one grid step at most, before the rotation back.
    assert np.linalg.norm(found - short) < plan.granularity * math.sqrt(plan.padded_dimension)


def test_an_update_inside_the_norm_stays_as_it_is() -> None:
    plan = make_plan(modulus_bits=40)
    short = update(300, 0.2)
    found = decode(encode(short, plan, rotation_seed(1), seeded()), plan, rotation_seed(1))
    assert np.linalg.norm(found - short) < plan.granularity * math.sqrt(plan.padded_dimension)


@pytest.mark.parametrize("dimension", [1, 2, 300])
def test_zeros_stay_zeros(dimension: int) -> None:
    plan = make_plan(dimension=dimension)
    zeros = np.zeros(dimension, dtype=np.float32)
    ints = encode(zeros, plan, rotation_seed(0), seeded())
    assert not ints.any()
    assert not decode(ints, plan, rotation_seed(0)).any()


@pytest.mark.parametrize("bits", [11, 24])
def test_the_decoded_sum_is_the_sum_of_clipped_updates_in_the_mean(bits: int) -> None:
    plan = make_plan(dimension=50, modulus_bits=bits)
    updates = [update(50, norm, tag) for tag, norm in enumerate([0.1, 0.9, 1.0, 30.0, 1e6])]
    expected = sum(u.astype(np.float64) / max(1.0, float(np.linalg.norm(u))) for u in updates)
    trials, source = 2000, seeded()
    errors = np.empty((trials, 50))
    for number in range(trials):
        seed = rotation_seed(number)
        sites = [add_noise(encode(u, plan, seed, source), plan, source) for u in updates]
        errors[number] = decode(sum(sites[1:], sites[0]), plan, seed) - expected
    # Five sites added noise, three are counted on; rounding adds a variance of at most 1/4 for each site.
    steps = plan.local_variance * 5
    std = plan.granularity * math.sqrt(steps)
    most = plan.granularity * math.sqrt(steps + 5 / 4)
    assert np.abs(errors.mean(axis=0)).max() < 5 * most / math.sqrt(trials)
    assert std * 0.98 < errors.std() < most * 1.02


@pytest.mark.parametrize("shape", ["one value", "constant", "random", "alternating"])
def test_equal_updates_of_all_sites_do_not_wrap_around(shape: str) -> None:
    """The worst case of the bound: every site at the clipping norm in one direction, on the finest grid."""
    size = 1000
    vectors = {
        "one value": np.eye(1, size)[0],
        "constant": np.ones(size),
        "random": np.random.default_rng(0).normal(size=size),
        "alternating": np.resize([1.0, -1.0], size),
    }
    plan = make_plan(dimension=size, modulus_bits=11, noise_multiplier=0.5)
    limit = 2 ** (plan.modulus_bits - 1)
    vector = (vectors[shape] * 10.0).astype(np.float32)
    source = seeded()
    largest = 0
    for number in range(300):
        seed = rotation_seed(number)
        sites = [add_noise(encode(vector, plan, seed, source), plan, source) for _ in range(5)]
        total = sum(sites[1:], sites[0])
        wrapped = (total + limit) % (2 * limit) - limit
        assert np.array_equal(wrapped, total)
        largest = max(largest, int(np.abs(total).max()))
    # The modulus is not wasted: such sums use most of its range.
    assert largest > 0.6 * limit


def test_a_modulus_two_bits_shorter_than_planned_would_wrap_around() -> None:
    plan = make_plan(dimension=1000, modulus_bits=11, noise_multiplier=0.5)
    vector, source = np.ones(1000, dtype=np.float32), seeded()
    sites = [
        add_noise(encode(vector, plan, rotation_seed(1), source), plan, source) for _ in range(5)
    ]
    assert np.abs(sum(sites[1:], sites[0])).max() >= 2 ** (plan.modulus_bits - 3)


def test_many_patients_of_a_site_share_one_noise() -> None:
    plan = make_plan(
        unit="patient", max_contributions=200, sampling_rate=0.1, modulus_bits=32, dimension=40
    )
    source, seed = seeded(), rotation_seed(5)
    patients = [update(40, 2.0, tag) for tag in range(40)]
    total = np.zeros(plan.padded_dimension, dtype=np.int64)
    for one in patients:
        total += encode(one, plan, seed, source)
    noised = add_noise(total, plan, source)
    expected = sum(one.astype(np.float64) / 2.0 for one in patients)
    error = decode(noised, plan, seed) - expected
    one_share = plan.granularity * math.sqrt(plan.local_variance)
    assert one_share * 0.6 < error.std() < one_share * 1.5


def test_noise_differs_between_sites_and_is_not_in_the_encoding() -> None:
    plan = make_plan()
    zeros = np.zeros(512, dtype=np.int64)
    first, second = (add_noise(zeros, plan, seeded(tag)) for tag in (1, 2))
    assert not np.array_equal(first, second)
    assert not zeros.any()


def test_noise_from_another_generator_than_the_ledger_names_is_refused() -> None:
    plan = replace(make_plan(), generator="chacha20")
    zeros = np.zeros(512, dtype=np.int64)
    with pytest.raises(PrivacyError) as caught:
        add_noise(zeros, plan, seeded())
    assert caught.value.code == "FH-PRIVACY-111"
    assert add_noise(zeros, plan, Randomness.from_os()).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(bad: float) -> None:
    vector = update(300, 1.0)
    vector[7] = bad
    with pytest.raises(PrivacyError) as caught:
        encode(vector, make_plan(), rotation_seed(0), seeded())
    assert caught.value.code == "FH-PRIVACY-102"


def test_the_largest_finite_update_is_clipped() -> None:
    plan = make_plan()
    vector = np.full(300, np.finfo(np.float32).max)
    ints = encode(vector, plan, rotation_seed(0), seeded())
    assert exact_squared_norm(ints) <= plan.squared_norm_bound


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(0, dtype=np.float32),
        np.zeros(299, dtype=np.float32),
        np.zeros((300, 1), dtype=np.float32),
        np.zeros(300, dtype=np.float64),
        np.zeros(300, dtype=np.int64),
    ],
)
def test_another_shape_or_dtype_is_refused(vector: NDArray[np.float32]) -> None:
    with pytest.raises(PrivacyError) as caught:
        encode(vector, make_plan(), rotation_seed(0), seeded())
    assert caught.value.code == "FH-PRIVACY-101"


@pytest.mark.parametrize(
    "ints", [np.zeros(300, dtype=np.int64), np.zeros(512), np.zeros((512, 1), dtype=np.int64)]
)
def test_sums_of_another_shape_or_dtype_are_refused(ints: NDArray[np.int64]) -> None:
    plan = make_plan()
    for refuses in (
        lambda: add_noise(ints, plan, seeded()),
        lambda: decode(ints, plan, rotation_seed(0)),
    ):
        with pytest.raises(PrivacyError) as caught:
            refuses()
        assert caught.value.code == "FH-PRIVACY-101"


def test_one_element_is_enough() -> None:
    plan = make_plan(dimension=1, modulus_bits=30)
    ints = encode(np.array([-5.0], dtype=np.float32), plan, rotation_seed(3), seeded())
    (found,) = decode(ints, plan, rotation_seed(3))
    assert found == pytest.approx(-1.0, abs=plan.granularity)
