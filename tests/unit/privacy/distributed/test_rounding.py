"""Random rounding: unbiased, and never above the bound."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedhealth.errors import PrivacyError
from fedhealth.privacy.distributed import rounding
from fedhealth.privacy.distributed.rounding import (
    ACCEPTANCE,
    exact_squared_norm,
    largest_squared_norm,
    round_within,
)
from fedhealth.privacy.randomness import Randomness

LOOSE = 2**61
LOWEST_P = 1e-4
"""With fixed seeds these tests are not flaky."""


def seeded(tag: int = 0) -> Randomness:
    return Randomness.seeded_for_tests(bytes([tag]) * 32)


@pytest.mark.parametrize("value", [0.25, -0.25, 3.999, -17.5, 1e-3, 123456.75])
def test_the_upper_neighbour_has_the_chance_of_the_fraction(value: float) -> None:
    count = 200_000
    rounded = round_within(np.full(count, value), LOOSE, seeded())
    assert set(np.unique(rounded)) <= {math.floor(value), math.floor(value) + 1}
    ups = int((rounded == math.floor(value) + 1).sum())
    assert stats.binomtest(ups, count, value - math.floor(value)).pvalue > LOWEST_P


def test_whole_numbers_stay_as_they_are() -> None:
    values = np.arange(-1000.0, 1000.0)
    assert np.array_equal(round_within(values, LOOSE, seeded()), values)


@pytest.mark.parametrize("value", [-1e-300, -1e-17, 1e-300, -0.0])
def test_what_is_next_to_a_whole_number_is_rounded_to_it(value: float) -> None:
    assert not round_within(np.full(1000, value), LOOSE, seeded()).any()


def test_the_bound_is_kept_although_most_tries_are_above_it() -> None:
    values = np.full(64, 0.5)
    squared = [
        exact_squared_norm(round_within(values, 26, source)) for source in map(seeded, range(200))
    ]
    # 26 ups or fewer of 64 have a chance of 8 %.
    assert max(squared) <= 26
    assert stats.binom.cdf(26, 64, 0.5) < 0.1


def test_coordinates_are_rounded_independently() -> None:
    rounded = round_within(np.full(2**17, 0.5), LOOSE, seeded()).astype(np.float64)
    pairs = np.corrcoef(rounded[:-1], rounded[1:])[0, 1]
    assert abs(pairs) < 5 / math.sqrt(rounded.size)


@pytest.mark.parametrize("size", [1, 7, 256, 4096])
@pytest.mark.parametrize("norm", [0.3, 5.0, 300.0])
def test_a_try_is_inside_the_papers_bound_as_often_as_it_says(size: int, norm: float) -> None:
    direction = np.random.default_rng(size).normal(size=size)
    values = direction * (norm / np.linalg.norm(direction))
    bound = largest_squared_norm(norm, size)
    tries = 300
    source = seeded()
    inside = sum(
        exact_squared_norm(round_within(values, LOOSE, source)) <= bound for _ in range(tries)
    )
    assert stats.binomtest(inside, tries, ACCEPTANCE, alternative="less").pvalue > LOWEST_P


def test_the_bound_is_the_papers() -> None:
    """A hand-worked value; the paper's smaller one of two terms is always this one."""
    assert largest_squared_norm(10.0, 1024) == 100 + 256 + 10 + 16
    for norm in (0.0, 0.01, 1.0, 1e6):
        for size in (1, 2, 1024, 2**25):
            assert largest_squared_norm(norm, size) < (norm + math.sqrt(size)) ** 2


def test_no_rounding_inside_the_bound_is_an_error_and_not_a_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounding, "MAX_TRIES", 20)
    with pytest.raises(PrivacyError) as caught:
        round_within(np.full(64, 0.5), 0, seeded())
    assert caught.value.code == "FH-PRIVACY-103"


@pytest.mark.parametrize("value", [1e19, 1e300, -1e19])
def test_a_value_that_no_int64_holds_is_an_error(value: float) -> None:
    with pytest.raises(PrivacyError) as caught:
        round_within(np.array([value]), LOOSE, seeded())
    assert caught.value.code == "FH-PRIVACY-103"


@pytest.mark.parametrize(
    ("values", "bound", "code"),
    [
        (np.array([math.nan]), 10, "FH-PRIVACY-102"),
        (np.array([0.0, math.inf]), 10, "FH-PRIVACY-102"),
        (np.ones(3, dtype=np.float32), 10, "FH-PRIVACY-101"),
        (np.ones((1, 3)), 10, "FH-PRIVACY-101"),
        (np.ones(3), -1, "FH-PRIVACY-108"),
        (np.ones(3), 2**62, "FH-PRIVACY-108"),
    ],
)
def test_other_inputs_are_refused(values: NDArray[np.float64], bound: int, code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        round_within(values, bound, seeded())
    assert caught.value.code == code


@pytest.mark.parametrize(
    "values",
    [[], [0, 0], [3, -4], [2**31 - 1] * 9, [-(2**31)] * 5, [2**40, -(2**62)], [-(2**63), 1]],
)
def test_squared_norms_do_not_overflow(values: list[int]) -> None:
    array = np.array(values, dtype=np.int64)
    assert exact_squared_norm(array) == sum(value**2 for value in values)
