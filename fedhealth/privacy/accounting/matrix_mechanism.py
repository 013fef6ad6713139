"""Noise that is correlated over rounds: sensitivity and error of the banded Toeplitz matrix mechanism.

Rounds release ``x_t + sigma * (C^-1 z)_t`` for ``x_t`` the sum of clipped updates and ``z_t`` independent standard
normals: post-processing of ``C x + sigma z`` (Denisov, McMahan, Rush, Smith, Guha Thakurta 2022,
arXiv 2202.08312). `C` is lower-triangular, Toeplitz, with the first `bands` coefficients of
``(1 - x)^(-1/2) = sum_k binom(2k, k) / 4^k x^k``, the square root of the prefix-sum matrix (Fichtenberger,
Henzinger, Upadhyay 2023, arXiv 2202.11205; banded: McKenna 2024, arXiv 2405.15913). One band is independent noise.

Participation is fixed: a site may contribute to every round. Its contributions of norm at most 1 change row t of
``C x`` by at most ``sum_{s <= t} C[t, s]``, since all coefficients are positive.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError

Row = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixError:
    """Standard deviation of the noise on the sum of the first t rounds, at a whole sensitivity of 1 times sigma.

    That is: over the rounds' sums, in clipping norms, for mechanisms whose whole account is one Gaussian
    release with noise multiplier 1.
    """

    last: float
    root_mean_square: float


def coefficients(bands: int) -> Row:
    """(bands,) float64: ``binom(2k, k) / 4^k`` for k below `bands`; the first is 1, all are positive.

    Raises:
        PrivacyError: FH-PRIVACY-084 fewer than one band.
    """
    if bands < 1:
        raise PrivacyError(
            "FH-PRIVACY-084",
            f"a mechanism of {bands} bands does not exist.",
            fix="Use 1 for independent noise, more for noise correlated over that many rounds.",
        )
    order = np.arange(1, bands, dtype=np.float64)
    return np.concatenate([[1.0], np.cumprod((2.0 * order - 1.0) / (2.0 * order))])


def row_sums(bands: int, num_rounds: int) -> Row:
    """(num_rounds,) float64 ``(C 1)_t``: the L2 sensitivity of row t for updates of norm at most 1."""
    sums = np.cumsum(coefficients(min(bands, num_rounds)))
    return sums[np.minimum(np.arange(num_rounds), sums.size - 1)]


def sensitivity(bands: int, num_rounds: int) -> float:
    """``||C 1||``: the L2 sensitivity of all rows together. Its account is the composition of the rows'."""
    return float(np.linalg.norm(row_sums(bands, num_rounds)))


def inverse_coefficients(bands: int, num_rounds: int) -> Row:
    """(num_rounds,) float64: first column of ``C^-1``, which is Toeplitz too but not banded."""
    forward = coefficients(bands)
    inverse = np.zeros(num_rounds, dtype=np.float64)
    inverse[:1] = 1.0
    for t in range(1, num_rounds):
        reach = min(t, bands - 1)
        inverse[t] = -np.dot(forward[1 : reach + 1], inverse[t - reach : t][::-1])
    return inverse


def row_noise(bands: int, num_rounds: int) -> Row:
    """(num_rounds,) float64: standard deviation of ``(C^-1 z)_t``, the noise of round t at sigma 1."""
    result: Row = np.sqrt(np.cumsum(inverse_coefficients(bands, num_rounds) ** 2))
    return result


def prefix_error(bands: int, num_rounds: int) -> PrefixError:
    """Error of the sums over the first 1, ..., num_rounds rounds, at equal privacy for every number of bands.

    No mechanism has a smaller error at the last round than independent noise, which has ``num_rounds``: by
    Cauchy and Schwarz ``||C 1|| * ||1' C^-1|| >= |1' C^-1 C 1| = num_rounds``.
    """
    columns = np.cumsum(inverse_coefficients(bands, num_rounds))  # of A C^-1, A the prefix sums
    variances = np.cumsum(columns**2)
    whole = sensitivity(bands, num_rounds)
    return PrefixError(
        last=whole * float(np.sqrt(variances[-1])),
        root_mean_square=whole * float(np.sqrt(variances.mean())),
    )
