"""Cryptographic randomness for sampling and noise: a ChaCha20 keystream, made into numbers with numpy.

Called by the private training steps, by noised metrics and by strategies. A seed that somebody can guess lets
them subtract the noise, so the key comes from the operating system, is never shown and never leaves the process;
a fork gets another one. Tests give a seed, and `generator` then says so in the ledger.
"""

import hashlib
import os
from fractions import Fraction
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numpy.typing import NDArray

from fedhealth.contracts.local_training import NoiseGenerator
from fedhealth.errors import PrivacyError

KEY_BYTES = 32
_WORD_BYTES = 8
_STREAM_BYTES = 2**36
"""Keystream under one nonce: well below the 2**38 bytes at which the 32-bit block counter would wrap (RFC 8439,
section 2.8)."""
_CHUNK_PAIRS = 2**16
"""Box-Muller works on this many pairs at a time, so that temporaries stay in the cache."""
_UNIT_53 = 2.0**-53


class Randomness:
    """One stream of random numbers, for one thread. Made by `from_os`, or in tests by `seeded_for_tests`.

    It cannot be copied or pickled: two copies would draw the same noise, and the difference of what they
    noised would be free of it.
    """

    __slots__ = ("_cipher", "_key", "_left_bytes", "_pid", "_stream", "generator")

    def __init__(self, key: bytes, *, generator: NoiseGenerator) -> None:
        self.generator: NoiseGenerator = generator
        self._begin(key)

    @classmethod
    def from_os(cls) -> "Randomness":
        """A stream with a fresh key from the operating system."""
        return cls(os.urandom(KEY_BYTES), generator="chacha20")

    @classmethod
    def seeded_for_tests(cls, seed: bytes) -> "Randomness":
        """A repeatable stream. Never for patients: who knows the seed can take the noise away.

        Raises:
            PrivacyError: FH-PRIVACY-050 the seed is not 32 bytes.
        """
        if len(seed) != KEY_BYTES:
            raise PrivacyError(
                "FH-PRIVACY-050",
                f"a seed of {len(seed)} bytes was given, not {KEY_BYTES}.",
                why="It is the key of ChaCha20.",
                fix="Give 32 bytes, in tests only.",
            )
        return cls(seed, generator="seeded_for_tests")

    def uniform_bits(self, count: int) -> NDArray[np.uint64]:
        """(count,) uint64, every bit uniform and independent."""
        return np.frombuffer(self._keystream(count * _WORD_BYTES), dtype="<u8").astype(
            np.uint64, copy=False
        )

    def bernoulli(self, count: int, rate: float) -> NDArray[np.bool_]:
        """(count,) bool, each true with probability `rate`, independently.

        The rate is exact for every float of at least 2**-11, and low by less than 2**-64 below that: a 64-bit word is
        compared with floor(rate * 2**64), worked out in whole numbers. As many words are drawn at every rate.

        Raises:
            PrivacyError: FH-PRIVACY-051 the rate is not in [0, 1].
        """
        if not 0.0 <= rate <= 1.0:
            raise PrivacyError(
                "FH-PRIVACY-051", f"a sampling rate of {rate} is not between 0 and 1."
            )
        words = self.uniform_bits(count)
        threshold = int(Fraction(rate) * 2**64)
        if threshold == 2**64:
            return np.ones(count, dtype=np.bool_)
        below: NDArray[np.bool_] = words < np.uint64(threshold)
        return below

    def normals(self, count: int) -> NDArray[np.float64]:
        """(count,) float64 standard normals (Box and Muller 1958), from 53-bit uniforms.

        The largest is 8.6: beyond it lies a mass of 2**-53. A float cannot hold all reals: this is not hardened
        against an adversary who studies the last bits of a noised value (Mironov 2012).
        """
        result = np.empty(count + count % 2, dtype=np.float64)
        for start in range(0, result.size, 2 * _CHUNK_PAIRS):
            part = result[start : start + 2 * _CHUNK_PAIRS]
            half = part.size // 2
            words = self.uniform_bits(part.size) >> np.uint64(11)
            radius = np.sqrt(-2.0 * np.log((words[:half] + np.uint64(1)) * _UNIT_53))
            angle = words[half:] * (2.0 * np.pi * _UNIT_53)
            np.multiply(radius, np.cos(angle), out=part[:half])
            np.multiply(radius, np.sin(angle), out=part[half:])
        return result[:count]

    def _keystream(self, size: int) -> bytes:
        if self._pid != os.getpid():
            self._begin(self._key_after_fork())
        if size > self._left_bytes:
            self._next_stream()
        self._left_bytes -= size
        return self._cipher.update(bytes(size))

    def _key_after_fork(self) -> bytes:
        if self.generator == "chacha20":
            return os.urandom(KEY_BYTES)
        return hashlib.sha256(self._key + f"fork:{os.getpid()}".encode()).digest()

    def _begin(self, key: bytes) -> None:
        self._pid = os.getpid()
        self._key = key
        self._stream = 0
        self._next_stream()

    def _next_stream(self) -> None:
        # 4 bytes of block counter, from 0, then 12 of nonce (RFC 8439, section 2.3).
        nonce = bytes(4) + self._stream.to_bytes(12, "little")
        cipher = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None)
        self._cipher: CipherContext = cipher.encryptor()
        self._left_bytes = _STREAM_BYTES
        self._stream += 1

    def __repr__(self) -> str:
        return f"Randomness(generator={self.generator!r})"

    def __reduce__(self) -> NoReturn:
        raise PrivacyError(
            "FH-PRIVACY-052",
            "a stream of noise cannot be copied or pickled.",
            why="Two copies would draw the same noise, and their difference would have none.",
            fix="Make a new one with Randomness.from_os().",
        )
