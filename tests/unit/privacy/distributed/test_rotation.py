"""The random rotation against scipy's Hadamard matrix and the seed's keystream."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray
from scipy.linalg import hadamard

from fedhealth.errors import PrivacyError
from fedhealth.privacy.distributed.rotation import padded_dimension, rotate, rotate_back

SEED = bytes(range(32))


def signs(seed: bytes, count: int) -> NDArray[np.float64]:
    """From the keystream, bit by bit."""
    nonce = bytes(4) + b"rotate-signs"
    stream = Cipher(algorithms.ChaCha20(seed, nonce), mode=None).encryptor().update(bytes(count))
    return np.array([-1.0 if stream[i // 8] >> (7 - i % 8) & 1 else 1.0 for i in range(count)])


@pytest.mark.parametrize("size", [1, 2, 3, 8, 37, 64, 500, 1025])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_signs_then_scipys_hadamard_matrix(size: int, dtype: type) -> None:
    vector = np.random.default_rng(size).normal(size=size).astype(dtype)
    padded = padded_dimension(size)
    whole = np.zeros(padded)
    whole[:size] = vector
    expected = hadamard(padded) @ (signs(SEED, padded) * whole) / np.sqrt(padded)
    # float64 sums of at most 11 levels.
    np.testing.assert_allclose(rotate(vector, SEED), expected, atol=1e-13)


def test_a_large_vector_comes_back_and_keeps_its_norm() -> None:
    vector = np.random.default_rng(1).normal(size=200_001).astype(np.float32)
    rotated = rotate(vector, SEED)
    assert rotated.shape == (2**18,)
    norms = np.linalg.norm(rotated), np.linalg.norm(vector.astype(np.float64))
    assert norms[0] == pytest.approx(norms[1], rel=1e-13)
    np.testing.assert_allclose(rotate_back(rotated, SEED, vector.size), vector, atol=1e-12)


def test_one_large_value_is_spread_evenly() -> None:
    vector = np.zeros(1000)
    vector[17] = 1e6
    np.testing.assert_allclose(np.abs(rotate(vector, SEED)), 1e6 / 32, rtol=1e-12)


def test_other_seeds_rotate_otherwise_and_half_of_the_signs_change() -> None:
    vector = np.ones(2**14)
    assert not np.allclose(rotate(vector, SEED), rotate(vector, bytes(32)))
    # 8 standard deviations of a fair coin.
    assert abs(signs(SEED, 2**14).sum()) < 8 * 2**7


def test_the_input_is_left_as_it_is() -> None:
    vector = np.arange(10.0)
    rotated = rotate(vector, SEED)
    kept = rotated.copy()
    rotate_back(rotated, SEED, 10)
    assert np.array_equal(vector, np.arange(10.0))
    assert np.array_equal(rotated, kept)


@pytest.mark.parametrize(
    ("vector", "seed", "code"),
    [
        (np.ones(4), bytes(31), "FH-PRIVACY-100"),
        (np.ones(0), SEED, "FH-PRIVACY-101"),
        (np.ones((2, 2)), SEED, "FH-PRIVACY-101"),
        (np.ones(4, dtype=np.int64), SEED, "FH-PRIVACY-101"),
        (np.ones(4, dtype=np.float16), SEED, "FH-PRIVACY-101"),
    ],
)
def test_other_inputs_are_refused(vector: NDArray[np.float64], seed: bytes, code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        rotate(vector, seed)
    assert caught.value.code == code


@pytest.mark.parametrize(("size", "dimension"), [(8, 4), (8, 9), (6, 6), (1, 0)])
def test_only_a_rotation_of_that_dimension_is_turned_back(size: int, dimension: int) -> None:
    with pytest.raises(PrivacyError) as caught:
        rotate_back(np.ones(size), SEED, dimension)
    assert caught.value.code == "FH-PRIVACY-101"
