"""Words of some bits as bytes without gaps, and back: eight words of b bits are b bytes.

Little-endian within a group of eight: word i takes the bits i*b to i*b+b-1 of the group.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.secagg.mask_stream import Words, word_type
from fedhealth.secagg.refusals import MaskingError

GROUP: Final = 8
_CHUNK_GROUPS: Final = 1 << 14
_BYTE: Final = 8


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` words of `bits` bits; the last group is filled up with zeros."""
    return -(-count // GROUP) * bits


def pack(words: Words, bits: int) -> bytes:
    """(n,) words below 2**bits as `packed_size` bytes. 32 and 64 bits are the words themselves."""
    if bits == 8 * words.dtype.itemsize:
        return _padded(words).astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
    out = np.zeros((-(-words.size // GROUP), bits), dtype=np.uint8)
    for start in range(0, out.shape[0], _CHUNK_GROUPS):
        part = words[start * GROUP : (start + _CHUNK_GROUPS) * GROUP]
        group = _padded(part).astype(np.uint64).reshape(-1, GROUP)
        _pack_groups(group, bits, out[start : start + group.shape[0]])
    return out.tobytes()


def unpack(data: bytes | memoryview, *, count: int, bits: int) -> Words:
    """The words again, (count,) uint32 or uint64.

    Raises:
        MaskingError: FH-SECAGG-004 another number of bytes, or a filled-up place is not zero.
    """
    if len(data) != packed_size(count, bits):
        raise MaskingError(
            "FH-SECAGG-004",
            f"{len(data)} bytes do not hold {count} words of {bits} bits.",
            why="A vector of another length belongs to another model.",
        )
    kind = word_type(bits)
    if bits == 8 * kind.itemsize:
        words: Words = np.frombuffer(data, dtype=kind.newbyteorder("<")).astype(kind)  # type: ignore[assignment]  # one of the two kinds
    else:
        packed = np.frombuffer(data, dtype=np.uint8).reshape(-1, bits)
        words = np.empty(packed.shape[0] * GROUP, dtype=kind)
        groups = words.reshape(-1, GROUP)
        for start in range(0, packed.shape[0], _CHUNK_GROUPS):
            part = slice(start, start + _CHUNK_GROUPS)
            groups[part] = _unpack_groups(packed[part], bits)
    if words[count:].any():
        raise MaskingError("FH-SECAGG-004", "the bytes after the last word are not zero.")
    return words[:count]


def _padded(words: Words) -> Words:
    missing = -words.size % GROUP
    return np.concatenate([words, np.zeros(missing, dtype=words.dtype)]) if missing else words


def _pack_groups(group: NDArray[np.uint64], bits: int, out: NDArray[np.uint8]) -> None:
    """`group` is (g, 8); `out` is (g, bits), zero."""
    for index in range(GROUP):
        place, shift = divmod(index * bits, _BYTE)
        word = group[:, index]
        for byte in range(place, (index * bits + bits - 1) // _BYTE + 1):
            offset = _BYTE * (byte - place) - shift
            moved = word >> np.uint64(offset) if offset >= 0 else word << np.uint64(-offset)
            out[:, byte] |= moved.astype(np.uint8)


def _unpack_groups(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint64]:
    """(g, bits) bytes as (g, 8) words."""
    group = np.zeros((packed.shape[0], GROUP), dtype=np.uint64)
    for index in range(GROUP):
        place, shift = divmod(index * bits, _BYTE)
        for byte in range(place, (index * bits + bits - 1) // _BYTE + 1):
            offset = _BYTE * (byte - place) - shift
            part = packed[:, byte].astype(np.uint64)
            group[:, index] |= (
                part << np.uint64(offset) if offset >= 0 else part >> np.uint64(-offset)
            )
    group &= np.uint64((1 << bits) - 1)
    return group
