"""The banded Toeplitz mechanism against dense matrices."""

from math import comb

import numpy as np
import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.matrix_mechanism import (
    coefficients,
    inverse_coefficients,
    prefix_error,
    row_noise,
    row_sums,
    sensitivity,
)

SHAPES = [(1, 1), (1, 7), (2, 7), (3, 7), (7, 7), (9, 7), (5, 40), (40, 40)]


def dense(bands: int, num_rounds: int) -> np.ndarray:
    matrix = np.zeros((num_rounds, num_rounds))
    for row in range(num_rounds):
        for column in range(max(0, row - bands + 1), row + 1):
            k = row - column
            matrix[row, column] = comb(2 * k, k) / 4**k
    return matrix


def test_coefficients_are_central_binomials_over_powers_of_four() -> None:
    np.testing.assert_allclose(coefficients(30), dense(30, 30)[:, 0], rtol=1e-13)
    np.testing.assert_allclose(coefficients(5), [1, 1 / 2, 3 / 8, 5 / 16, 35 / 128])


def test_all_bands_are_the_square_root_of_the_prefix_sums() -> None:
    whole = dense(12, 12)
    np.testing.assert_allclose(whole @ whole, np.tril(np.ones((12, 12))), atol=1e-12)


@pytest.mark.parametrize(("bands", "num_rounds"), SHAPES)
def test_row_sums_and_sensitivity_are_those_of_the_dense_matrix(
    bands: int, num_rounds: int
) -> None:
    wanted = dense(bands, num_rounds) @ np.ones(num_rounds)
    np.testing.assert_allclose(row_sums(bands, num_rounds), wanted, rtol=1e-12)
    assert sensitivity(bands, num_rounds) == pytest.approx(np.linalg.norm(wanted), rel=1e-12)


@pytest.mark.parametrize(("bands", "num_rounds"), SHAPES)
def test_noise_of_a_row_is_that_of_the_dense_inverse(bands: int, num_rounds: int) -> None:
    inverse = np.linalg.inv(dense(bands, num_rounds))
    np.testing.assert_allclose(inverse_coefficients(bands, num_rounds), inverse[:, 0], atol=1e-12)
    np.testing.assert_allclose(
        row_noise(bands, num_rounds), np.linalg.norm(inverse, axis=1), rtol=1e-10
    )


@pytest.mark.parametrize(("bands", "num_rounds"), SHAPES)
def test_prefix_error_is_that_of_the_dense_matrices(bands: int, num_rounds: int) -> None:
    matrix = dense(bands, num_rounds)
    prefix = np.tril(np.ones((num_rounds, num_rounds))) @ np.linalg.inv(matrix)
    errors = np.linalg.norm(prefix, axis=1) * np.linalg.norm(matrix @ np.ones(num_rounds))
    found = prefix_error(bands, num_rounds)
    assert found.last == pytest.approx(errors[-1], rel=1e-10)
    assert found.root_mean_square == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-10)


@pytest.mark.parametrize("num_rounds", [2, 10, 30, 100])
def test_with_every_site_in_every_round_independent_noise_is_never_worse(num_rounds: int) -> None:
    plain = prefix_error(1, num_rounds)
    assert plain.last == pytest.approx(num_rounds, rel=1e-12)
    for bands in range(2, num_rounds + 1):
        found = prefix_error(bands, num_rounds)
        assert found.last >= plain.last
        assert found.root_mean_square >= plain.root_mean_square


def test_figures_of_the_document() -> None:
    """docs/explanation/site-level-privacy.md, over the number of rounds."""
    shown = {
        1: (1.000, 0.719),
        2: (1.007, 0.735),
        4: (1.030, 0.777),
        8: (1.083, 0.864),
        16: (1.172, 1.003),
        30: (1.179, 1.094),
    }
    for bands, (last, mean) in shown.items():
        found = prefix_error(bands, 30)
        assert found.last / 30 == pytest.approx(last, abs=5e-4)
        assert found.root_mean_square / 30 == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize("bands", [0, -1])
def test_no_band_is_no_mechanism(bands: int) -> None:
    with pytest.raises(PrivacyError) as caught:
        coefficients(bands)
    assert caught.value.code == "FH-PRIVACY-084"
