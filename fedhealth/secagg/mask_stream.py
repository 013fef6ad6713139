"""From a 32-byte seed to a mask as long as the model: a ChaCha20 keystream (RFC 8439), added a chunk at a time.

A mask is uniform modulo 2**bits: words of 32 or 64 keystream bits, of which the sum's modulus keeps the low ones.
"""

from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

Words = NDArray[np.uint32] | NDArray[np.uint64]
CHUNK: Final = 1 << 17
"""Words in one go: memory beside the vector is O(CHUNK), and a chunk stays in a core's L2 cache."""
_NONCE: Final = bytes(16)  # a seed makes one mask: block counter and nonce are zero


def word_type(modulus_bits: int) -> "np.dtype[np.uint32] | np.dtype[np.uint64]":
    """uint32 while the modulus fits in it, uint64 else."""
    return np.dtype(np.uint32) if modulus_bits <= 32 else np.dtype(np.uint64)  # noqa: PLR2004


def add_mask(words: Words, seed: bytes, sign: Literal[1, -1]) -> None:
    """Add the mask of `seed` to `words` in place, or take it away. Arithmetic is modulo the word's size.

    Args:
        words: (n,) uint32 or uint64, contiguous.
        seed: 32 bytes, used for one mask of one manifest only.
        sign: 1 to add, -1 to take away.
    """
    stream = Cipher(algorithms.ChaCha20(seed, _NONCE), mode=None).encryptor()
    size = words.dtype.itemsize
    zeros, buffer = bytes(CHUNK * size), bytearray(CHUNK * size)
    little = words.dtype.newbyteorder("<")
    operate = np.add if sign == 1 else np.subtract
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK]
        count = stream.update_into(memoryview(zeros)[: part.size * size], buffer)
        mask = np.frombuffer(buffer, dtype=little, count=count // size)
        operate(part, mask, out=part)


def reduce_words(words: Words, modulus_bits: int) -> None:
    """Keep the low bits of every word, in place."""
    if modulus_bits < 8 * words.dtype.itemsize:
        np.bitwise_and(words, words.dtype.type((1 << modulus_bits) - 1), out=words)
