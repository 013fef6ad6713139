"""Shamir's secret sharing of 32-byte seeds: any `threshold` shares give the seed, fewer say nothing about it.

Shamir 1979, "How to share a secret", CACM 22(11). Arithmetic is modulo a prime above 2**256, so that every seed is
one field element.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from fedhealth.secagg.refusals import MaskingError

PRIME: Final = 2**256 + 297
"""The smallest prime above 2**256."""
SEED_BYTES: Final = 32
SHARE_BYTES: Final = 33
"""A field element, big-endian."""


def split(seed: bytes, *, threshold: int, num_shares: int) -> list[bytes]:
    """Shares 1 to `num_shares` of a seed, 33 bytes each; share k is the polynomial's value at k.

    Coefficients come from the operating system's generator, uniform below the prime.

    Raises:
        MaskingError: FH-SECAGG-001 the seed is not 32 bytes, or not 1 <= threshold <= num_shares.
    """
    if len(seed) != SEED_BYTES or not 1 <= threshold <= num_shares:
        raise MaskingError(
            "FH-SECAGG-001",
            f"{len(seed)} bytes cannot be split {threshold} out of {num_shares}.",
            why="A share set of that kind could not give the seed back, or would give it to anybody.",
        )
    coefficients = [int.from_bytes(seed, "big")]
    coefficients += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return [
        _evaluate(coefficients, point).to_bytes(SHARE_BYTES, "big")
        for point in range(1, num_shares + 1)
    ]


def combine(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The seed from shares by their number; all of them must lie on one polynomial.

    Args:
        shares: at least `threshold`; more are held against the polynomial of the first ones.
        threshold: of `split`.

    Raises:
        MaskingError: FH-SECAGG-002 too few shares, or a share or the result is no field element that can be one;
            FH-SECAGG-003 the shares contradict each other.
    """
    points = sorted(shares)
    values = {point: int.from_bytes(shares[point], "big") for point in points}
    is_wrong = any(
        len(shares[point]) != SHARE_BYTES or values[point] >= PRIME or point < 1 for point in points
    )
    if len(points) < threshold or threshold < 1 or is_wrong:
        raise MaskingError(
            "FH-SECAGG-002",
            f"{len(points)} shares do not give a seed that was split for {threshold}.",
            why="A mask that cannot be removed leaves a sum of noise.",
        )
    first, rest = tuple(points[:threshold]), points[threshold:]
    if any(_value_at(point, first, values) != values[point] for point in rest):
        raise _contradiction()
    secret = _value_at(0, first, values)
    if secret >= 2 ** (8 * SEED_BYTES):
        raise _contradiction()
    return secret.to_bytes(SEED_BYTES, "big")


def _evaluate(coefficients: Sequence[int], point: int) -> int:
    """Horner's rule modulo the prime."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _value_at(place: int, points: tuple[int, ...], values: Mapping[int, int]) -> int:
    """Of the polynomial through these points, modulo the prime (Lagrange)."""
    factors = zip(_factors(place, points), points, strict=True)
    return sum(factor * values[point] for factor, point in factors) % PRIME


@lru_cache(maxsize=512)
def _factors(place: int, points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's factors: all seeds of a round are put together from the same sites' shares."""
    factors = []
    for point in points:
        numerator, denominator = 1, 1
        for other in points:
            if other != point:
                numerator = numerator * (place - other) % PRIME
                denominator = denominator * (point - other) % PRIME
        factors.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(factors)


def _contradiction() -> MaskingError:
    return MaskingError(
        "FH-SECAGG-003",
        "shares of one seed contradict each other.",
        why="A site gave a wrong share; a mask that is removed with it would leave noise in the sum.",
        fix="The round is void. Look at which sites answered in its record.",
    )
