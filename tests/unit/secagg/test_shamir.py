"""Any threshold of shares gives the seed, fewer say nothing, a wrong one is found."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedhealth.secagg.refusals import MaskingError
from fedhealth.secagg.shamir import PRIME, SEED_BYTES, SHARE_BYTES, combine, split

seeds = st.binary(min_size=SEED_BYTES, max_size=SEED_BYTES)


def numbered(shares: list[bytes]) -> dict[int, bytes]:
    return dict(enumerate(shares, start=1))


def determinant(matrix: list[list[int]]) -> int:
    """Modulo the prime, by Gaussian elimination."""
    rows, result = [row[:] for row in matrix], 1
    for column in range(len(rows)):
        pivot = next((r for r in range(column, len(rows)) if rows[r][column] % PRIME), None)
        if pivot is None:
            return 0
        if pivot != column:
            rows[column], rows[pivot], result = rows[pivot], rows[column], -result
        result = result * rows[column][column] % PRIME
        inverse = pow(rows[column][column], -1, PRIME)
        for r in range(column + 1, len(rows)):
            factor = rows[r][column] * inverse
            rows[r] = [(a - factor * b) % PRIME for a, b in zip(rows[r], rows[column], strict=True)]
    return result % PRIME


def solve(points: list[int], values: list[int]) -> list[int]:
    """Coefficients of the polynomial through these points: the Vandermonde system, by Cramer's rule."""
    matrix = [[pow(point, power, PRIME) for power in range(len(points))] for point in points]
    inverse = pow(determinant(matrix), -1, PRIME)
    coefficients = []
    for column in range(len(points)):
        replaced = [
            [value if c == column else row[c] for c in range(len(points))]
            for row, value in zip(matrix, values, strict=True)
        ]
        coefficients.append(determinant(replaced) * inverse % PRIME)
    return coefficients


def is_prime(number: int) -> bool:
    """Miller and Rabin's test with 40 fixed bases: a composite passes with less than 4**-40."""
    twos = (number - 1 & 1 - number).bit_length() - 1
    odd = (number - 1) >> twos
    for base in range(2, 42):
        value = pow(base, odd, number)
        if value in {1, number - 1}:
            continue
        if not any((value := value * value % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_smallest_prime_field_that_holds_every_seed() -> None:
    assert [is_prime(n) for n in (561, 2**127 - 1, 2**255 - 19, 2**255 - 21)] == [
        False, True, True, False
    ]  # fmt: skip
    assert [n for n in range(2**256, PRIME + 1) if is_prime(n)] == [PRIME]


@given(seeds, st.data())
@settings(max_examples=60, deadline=None)
def test_any_threshold_of_shares_gives_the_seed(seed: bytes, data: st.DataObject) -> None:
    num = data.draw(st.integers(1, 9))
    threshold = data.draw(st.integers(1, num))
    shares = numbered(split(seed, threshold=threshold, num_shares=num))
    points = data.draw(st.lists(st.sampled_from(sorted(shares)), unique=True, min_size=threshold))
    assert combine({point: shares[point] for point in points}, threshold=threshold) == seed


@given(seeds, st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_shares_are_the_values_of_a_polynomial_that_the_vandermonde_system_gives(
    seed: bytes, threshold: int, more: int
) -> None:
    shares = split(seed, threshold=threshold, num_shares=threshold + more)
    values = [int.from_bytes(share, "big") for share in shares]
    coefficients = solve(list(range(1, threshold + 1)), values[:threshold])
    assert coefficients[0] == int.from_bytes(seed, "big")
    for point, value in enumerate(values, start=1):
        assert sum(c * point**power for power, c in enumerate(coefficients)) % PRIME == value


@given(seeds, seeds, st.integers(2, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_one_share_too_few_fits_every_other_seed_as_well(
    seed: bytes, other: bytes, threshold: int, data: st.DataObject
) -> None:
    shares = numbered(split(seed, threshold=threshold, num_shares=8))
    known = data.draw(
        st.lists(
            st.sampled_from(sorted(shares)),
            unique=True,
            min_size=threshold - 1,
            max_size=threshold - 1,
        )
    )
    values = [int.from_bytes(shares[point], "big") for point in known]
    # One polynomial of the right degree goes through what is known and through the other seed: what was seen is as
    # likely under it as under the true one, because every coefficient above the seed is uniform.
    coefficients = solve([0, *known], [int.from_bytes(other, "big"), *values])
    assert len(coefficients) == threshold
    for point, value in zip(known, values, strict=True):
        assert sum(c * point**power for power, c in enumerate(coefficients)) % PRIME == value


def test_shares_of_one_seed_differ_every_time() -> None:
    seed = os.urandom(SEED_BYTES)
    seen = {split(seed, threshold=2, num_shares=3)[0] for _ in range(50)}
    assert len(seen) == 50


def test_the_coefficients_that_hide_a_seed_are_uniform_below_the_prime() -> None:
    counts = np.zeros((2, 16), dtype=int)
    for _ in range(2000):
        values = [int.from_bytes(s, "big") for s in split(bytes(32), threshold=3, num_shares=3)]
        for power, coefficient in enumerate(solve([1, 2, 3], values)[1:]):
            counts[power][min(15, coefficient >> 252)] += 1
    # Of the highest four bits; by chance a correct split fails once in ten million.
    assert min(stats.chisquare(row).pvalue for row in counts) > 1e-7


@given(seeds, st.data())
@settings(max_examples=40, deadline=None)
def test_a_wrong_share_among_more_than_the_threshold_is_found(
    seed: bytes, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, 5))
    num = data.draw(st.integers(threshold + 1, 7))
    shares = numbered(split(seed, threshold=threshold, num_shares=num))
    point = data.draw(st.integers(1, num))
    flipped = int.from_bytes(shares[point], "big") ^ (1 << data.draw(st.integers(0, 255)))
    shares[point] = flipped.to_bytes(SHARE_BYTES, "big")
    with pytest.raises(MaskingError, match=r"FH-SECAGG-00[23]"):  # 002: it left the field
        combine(shares, threshold=threshold)


def test_a_sum_that_is_no_seed_is_a_contradiction() -> None:
    above = (2**256 + 1).to_bytes(SHARE_BYTES, "big")  # in the field, but not 32 bytes
    with pytest.raises(MaskingError, match="FH-SECAGG-003"):
        combine({1: above, 2: above}, threshold=1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda shares: {1: shares[1]},
        lambda _: {},
        lambda shares: shares | {2: shares[2][:-1]},
        lambda shares: shares | {2: shares[2] + b"\0"},
        lambda shares: shares | {2: b""},
        lambda shares: shares | {2: PRIME.to_bytes(SHARE_BYTES, "big")},
        lambda shares: shares | {2: b"\xff" * SHARE_BYTES},
        lambda shares: shares | {0: shares[1]},
        lambda shares: shares | {-1: shares[1]},
    ],
)
def test_malformed_or_missing_shares_are_refused(spoil) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    shares = numbered(split(bytes(SEED_BYTES), threshold=2, num_shares=3))
    with pytest.raises(MaskingError, match="FH-SECAGG-002"):
        combine(spoil(shares), threshold=2)


@pytest.mark.parametrize(
    ("size", "threshold", "num"), [(31, 2, 3), (33, 2, 3), (32, 0, 3), (32, 4, 3), (32, 1, 0)]
)
def test_a_seed_is_not_split_in_a_way_that_cannot_be_undone(
    size: int, threshold: int, num: int
) -> None:
    with pytest.raises(MaskingError, match="FH-SECAGG-001"):
        split(bytes(size), threshold=threshold, num_shares=num)


@pytest.mark.parametrize("seed", [bytes(32), b"\xff" * 32, bytes(31) + b"\1"])
def test_extreme_seeds_come_back(seed: bytes) -> None:
    shares = numbered(split(seed, threshold=3, num_shares=5))
    for points in itertools.combinations(shares, 3):
        assert combine({point: shares[point] for point in points}, threshold=3) == seed
