"""Which coordinates of a model travel in a round, the same at every site: a random choice that the manifest makes.

Konecny et al. 2016 (arXiv 1610.05492), section 3, random mask: the mean of what travels, divided by the share that
travels, is an unbiased estimate of the whole mean update.
"""

import hashlib
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

_WORD: Final = 2**16
_BLOCK: Final = 1 << 18


def kept_coordinates(
    manifest_sha256: str, num_elements: int, kept_share: float
) -> NDArray[np.intp] | None:
    """Positions that travel, in order; None when all do. Every position is kept with the same chance, on its own.

    Args:
        manifest_sha256: names the round; the choice is public, and depends on all of the manifest.
        num_elements: of the model.
        kept_share: in (0, 1], in steps of 2**-16.
    """
    threshold = round(kept_share * _WORD)
    if threshold >= _WORD:
        return None
    key = hashlib.sha256(f"fedhealth/secagg/coordinates/1|{manifest_sha256}".encode()).digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    kept = []
    for start in range(0, num_elements, _BLOCK):
        count = min(_BLOCK, num_elements - start)
        words = np.frombuffer(stream.update(bytes(2 * count)), dtype="<u2")
        kept.append(np.flatnonzero(words < threshold) + start)
    return np.concatenate(kept) if kept else np.empty(0, dtype=np.intp)


def exact_share(kept_share: float) -> float:
    """The chance with which a position is kept, in steps of 2**-16: what the mean is divided by."""
    return min(1.0, round(kept_share * _WORD) / _WORD)
