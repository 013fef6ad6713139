"""Spread a vector evenly over its coordinates with a public random rotation, and turn it back. Called by `encode`.

After the rotation no coordinate is large unless by a chance that `plan` bounds, whatever the update looks like, so a
small modulus holds the sum. Kairouz, Liu, Steinke 2021 (arXiv 2102.06387), section 4 and algorithm 1: ``H D / sqrt(n)``
with a Walsh-Hadamard matrix H and a diagonal D of random signs. The seed is public; no privacy rests on it.
"""

import math
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from fedhealth.errors import PrivacyError

SEED_BYTES: Final = 32
_NONCE: Final = bytes(4) + b"rotate-signs"
"""4 bytes of block counter, then 12 of nonce (RFC 8439, section 2.3): keeps these bits apart from other uses."""
_CHUNK: Final = 2**16
"""Signs in one go; a multiple of 8, as they are bits of bytes."""
_BLOCK: Final = 2**15
"""Elements that are transformed together: a block and its temporary stay in a core's L2 cache."""


def padded_dimension(dimension: int) -> int:
    """The next power of two: the length of a rotated vector.

    Raises:
        PrivacyError: FH-PRIVACY-101 the dimension is below 1.
    """
    if dimension < 1:
        raise PrivacyError("FH-PRIVACY-101", f"a vector of {dimension} elements cannot be rotated.")
    return 1 << (dimension - 1).bit_length()


def rotate(vector: NDArray[np.floating], seed: bytes) -> NDArray[np.float64]:
    """The rotated vector: same norm, no direction of its own.

    Args:
        vector: (d,) float32 or float64, d at least 1.
        seed: 32 bytes, public, drawn after the updates were fixed.

    Returns:
        (D,) float64, D the next power of two.

    Raises:
        PrivacyError: FH-PRIVACY-100 the seed is not 32 bytes, 101 the vector is not flat, empty or not of floats.
    """
    _check_seed(seed)
    if vector.ndim != 1 or vector.dtype not in (np.float32, np.float64):
        raise PrivacyError(
            "FH-PRIVACY-101",
            f"a vector of shape {vector.shape} and dtype {vector.dtype} cannot be rotated.",
        )
    rotated = np.zeros(padded_dimension(vector.size), dtype=np.float64)
    rotated[: vector.size] = vector
    _flip_signs(rotated[: vector.size], seed)
    _hadamard(rotated)
    return rotated


def rotate_back(rotated: NDArray[np.float64], seed: bytes, dimension: int) -> NDArray[np.float64]:
    """The vector that `rotate` made this of, up to float64 rounding.

    Args:
        rotated: (D,) float64, left as it is.
        seed: the one that it was rotated with.
        dimension: d, with D the next power of two.

    Returns:
        (d,) float64.

    Raises:
        PrivacyError: FH-PRIVACY-100 the seed is not 32 bytes, 101 the shape or dtype is another one.
    """
    _check_seed(seed)
    if rotated.shape != (padded_dimension(dimension),) or rotated.dtype != np.float64:
        raise PrivacyError(
            "FH-PRIVACY-101",
            f"a vector of shape {rotated.shape} and dtype {rotated.dtype} is no rotation of {dimension} elements.",
        )
    whole = rotated.copy()
    _hadamard(whole)
    vector = whole[:dimension].copy()
    _flip_signs(vector, seed)
    return vector


def _check_seed(seed: bytes) -> None:
    if len(seed) != SEED_BYTES:
        raise PrivacyError(
            "FH-PRIVACY-100",
            f"a rotation seed of {len(seed)} bytes was given, not {SEED_BYTES}.",
            why="It is a key of ChaCha20; all sites of a round use the same one.",
            fix="Give 32 random bytes, new ones in every round.",
        )


def _flip_signs(vector: NDArray[np.float64], seed: bytes) -> None:
    """Change signs in place where the keystream of the seed has a 1."""
    cipher = Cipher(algorithms.ChaCha20(seed, _NONCE), mode=None).encryptor()
    for start in range(0, vector.size, _CHUNK):
        part = vector[start : start + _CHUNK]
        stream = np.frombuffer(cipher.update(bytes(-(-part.size // 8))), dtype=np.uint8)
        is_negative = np.unpackbits(stream, count=part.size).view(np.bool_)
        np.negative(part, out=part, where=is_negative)


def _hadamard(vector: NDArray[np.float64]) -> None:
    """Orthonormal Walsh-Hadamard transform in place.

    ``H_rc = H_r (x) H_c`` (Sylvester): columns of the vector as an (r, c) table are transformed, then its rows, each
    in blocks that fit in the cache.
    """
    bits = vector.size.bit_length() - 1
    table = vector.reshape(1 << bits // 2, -1)
    scale = 1.0 / math.sqrt(vector.size)
    for side in (table, table.T):
        width = max(1, _BLOCK // side.shape[0])
        for start in range(0, side.shape[1], width):
            block = np.array(side[:, start : start + width], order="C")
            _butterflies(block)
            side[:, start : start + width] = block
    vector *= scale


def _butterflies(block: NDArray[np.float64]) -> None:
    """Unscaled transform of every column of a C-contiguous (n, w) block, in place, n a power of two."""
    half = 1
    while half < block.shape[0]:
        pairs = block.reshape(-1, 2, half * block.shape[1])
        upper, lower = pairs[:, 0], pairs[:, 1]
        difference = upper - lower
        upper += lower
        lower[...] = difference
        half *= 2
