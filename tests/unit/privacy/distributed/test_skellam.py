"""The sampler against scipy's Skellam distribution, and its table against mpmath."""

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ive

from fedhealth.errors import PrivacyError
from fedhealth.privacy.distributed.skellam import MAX_STD, Table, _guide, skellam, table_of
from fedhealth.privacy.randomness import Randomness

SEED = bytes(32)
LOWEST_P = 1e-4
"""With fixed seeds these tests are not flaky."""


def seeded(tag: int = 0) -> Randomness:
    return Randomness.seeded_for_tests(bytes([tag]) * 32)


def p_value(drawn: NDArray[np.int64], variance: float) -> float:
    """Chi-squared over bins of at least 20 expected draws; tails in one bin each."""
    last = int(12 * np.sqrt(variance)) + 20
    chances = stats.skellam.pmf(np.arange(-last, last + 1), variance / 2, variance / 2)
    expected = chances * drawn.size
    edges = [0]
    for index in range(1, 2 * last + 1):
        if expected[edges[-1] : index].sum() >= 20 and expected[index:].sum() >= 20:
            edges.append(index)
    observed = np.bincount(np.clip(drawn + last, 0, 2 * last), minlength=2 * last + 1)
    sums = np.add.reduceat(expected, edges)
    # scipy's pmf loses some digits at large variances: 1e-6 of the mass at most.
    assert sums.sum() == pytest.approx(drawn.size, rel=1e-6)
    scaled = sums * (drawn.size / sums.sum())
    return float(stats.chisquare(np.add.reduceat(observed, edges), scaled).pvalue)


@pytest.mark.parametrize("variance", [0.01, 0.3, 2.0, 50.0, 1e3, 1e5])
def test_draws_have_the_distribution(variance: float) -> None:
    assert p_value(skellam(1_000_000, variance, seeded()), variance) > LOWEST_P


def test_the_test_would_see_a_wrong_variance() -> None:
    assert p_value(skellam(1_000_000, 51.5, seeded()), 50.0) < LOWEST_P


@pytest.mark.parametrize("variance", [0.3, 50.0, 1e5])
def test_the_sum_of_shares_has_the_distribution_of_the_summed_variance(variance: float) -> None:
    source = seeded(1)
    total = sum((skellam(500_000, variance / 5, source) for _ in range(5)), np.zeros(500_000, int))
    assert p_value(total, variance) > LOWEST_P


def test_the_largest_variance_has_its_moments() -> None:
    drawn = skellam(1_000_000, MAX_STD**2, seeded()).astype(np.float64)
    # 5 standard errors each; the variance of a variance is 2 v^2 / n.
    assert abs(drawn.mean()) < 5 * MAX_STD / 1000
    assert abs(drawn.var() / MAX_STD**2 - 1) < 5 * np.sqrt(2) / 1000


def whole(table: Table) -> list[int]:
    return [int(h) << 64 | int(w) for h, w in zip(table.high, table.low, strict=True)]


@pytest.mark.parametrize("variance", [1e-3, 0.3, 7.25, 50.0, 1234.5])
def test_thresholds_are_cumulative_probabilities_to_128_bits(variance: float) -> None:
    table = table_of(variance)
    with mpmath.workdps(80):
        v = mpmath.mpf(variance)
        exact = [mpmath.exp(-v) * mpmath.besseli(k, v) for k in range(table.last + 60)]
        below = mpmath.fsum(exact[table.last + 1 :])
        assert below < mpmath.mpf(2) ** -130
        cumulative = below
        for k, found in zip(range(-table.last, table.last), whole(table), strict=True):
            cumulative += exact[abs(k)]
            assert 0 <= cumulative * 2**128 - found <= 1 + mpmath.mpf(2) ** -60
        assert k == table.last - 1


def test_a_large_table_agrees_with_scipys_bessel_function() -> None:
    """Six standard deviations around the centre, where a float64 has all digits."""
    variance = 1e7
    table = table_of(variance)
    chances = np.diff(np.array(whole(table), dtype=object)) / 2**128
    orders = np.arange(0, 18_000)
    centre = chances[table.last - 1 :][: orders.size].astype(np.float64)
    np.testing.assert_allclose(centre, ive(orders, variance), rtol=1e-9)


@pytest.mark.parametrize("variance", [0.3, 50.0])
def test_the_guide_changes_no_draw(variance: float) -> None:
    table = table_of(variance)
    thresholds = whole(table)
    source = np.random.default_rng(3)
    near = [int(h) + step for h in table.high for step in (-1, 1)]
    words = [int(w) for w in source.integers(0, 2**64, 500, dtype=np.uint64)]
    for word in [w for w in [*words, *near] if 0 <= w < 2**64 and w not in set(table.high)]:
        expected = sum(t <= word << 64 for t in thresholds) - table.last
        assert skellam(1, variance, Words([word])).tolist() == [expected]


class Words(Randomness):
    """Gives out these words, in their order."""

    __slots__ = ("_words",)

    def __init__(self, words: list[int]) -> None:
        super().__init__(SEED, generator="seeded_for_tests")
        self._words = words

    def uniform_bits(self, count: int) -> NDArray[np.uint64]:
        taken, self._words = self._words[:count], self._words[count:]
        assert len(taken) == count
        return np.array(taken, dtype=np.uint64)


@pytest.mark.parametrize("within", [0, 1, 2**55, 2**56 - 1])
def test_a_bucket_of_words_with_a_threshold_in_it_is_left_to_the_search(within: int) -> None:
    """At its first and its last word too: one threshold, in the fifth of 256 buckets."""
    guide, shift = _guide(np.array([(4 << 56) + within], dtype=np.uint64))
    assert shift == 56
    assert guide.tolist() == [0] * 4 + [-1] + [1] * 251


@pytest.mark.parametrize("variance", [0.3, 50.0])
def test_a_word_on_a_threshold_is_decided_by_64_more_bits(variance: float) -> None:
    table = table_of(variance)
    thresholds = whole(table)
    for index in range(0, len(thresholds), 5):
        word, low = int(table.high[index]), int(table.low[index])
        for more in {0, max(low - 1, 0), low, min(low + 1, 2**64 - 1), 2**64 - 1}:
            expected = sum(t <= (word << 64 | more) for t in thresholds) - table.last
            drawn = skellam(2, variance, Words([word, 2**63, more]))
            assert drawn.tolist() == [expected, skellam(1, variance, Words([2**63]))[0]]


@pytest.mark.parametrize(("word", "sign"), [(0, -1), (2**64 - 1, 1)])
def test_the_ends_of_the_range_give_large_numbers_and_no_error(word: int, sign: int) -> None:
    (drawn,) = skellam(1, 50.0, Words([word, 2**63]))
    assert 40 < sign * drawn <= table_of(50.0).last


def test_a_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        table_of(0.3).high[0] = 0


def test_no_draws_are_no_draws() -> None:
    assert skellam(0, 1.0, seeded()).shape == (0,)


@pytest.mark.parametrize(
    ("variance", "code"),
    [
        (0.0, "FH-PRIVACY-104"),
        (-1.0, "FH-PRIVACY-104"),
        (float("nan"), "FH-PRIVACY-104"),
        (float("inf"), "FH-PRIVACY-104"),
        (MAX_STD**2 * 1.001, "FH-PRIVACY-105"),
    ],
)
def test_a_variance_without_a_table_is_refused(variance: float, code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        skellam(1, variance, seeded())
    assert caught.value.code == code
