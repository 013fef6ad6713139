"""Words of some bits as bytes without gaps, and back: eight words of b bits are b bytes.

Little-endian: word i takes the bits i*b to i*b+b-1 of the stream. Work goes 64 words at a time, which are b whole
64-bit lanes, and a chunk of those at a time, so that memory beside the result does not grow with it.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.secagg.mask_stream import Words, word_type
from fedhealth.secagg.refusals import MaskingError

GROUP: Final = 8
"""Words whose bytes come out even."""
_LANE_BITS: Final = 64
_WORDS: Final = 64
"""Words whose lanes come out even."""
_CHUNK: Final = 1 << 10
"""Times 64 words in one go: what a chunk needs stays in a core's cache."""
_Lanes = NDArray[np.uint64]


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` words of `bits` bits; the last group of eight is filled up with zeros."""
    return -(-count // GROUP) * bits


def pack(words: Words, bits: int) -> bytes:
    """(n,) words below 2**bits as `packed_size` bytes."""
    size = packed_size(words.size, bits)
    out = np.zeros((-(-words.size // _WORDS), bits), dtype="<u8")
    for start in range(0, out.shape[0], _CHUNK):
        part = words[start * _WORDS : (start + _CHUNK) * _WORDS].astype(np.uint64)
        missing = -part.size % _WORDS
        if missing:
            part = np.concatenate([part, np.zeros(missing, dtype=np.uint64)])
        columns = np.ascontiguousarray(part.reshape(-1, _WORDS).T)
        out[start : start + columns.shape[1]] = _to_lanes(columns, bits).T
    return out.reshape(-1).view(np.uint8)[:size].tobytes()


def unpack(data: bytes | memoryview, *, count: int, bits: int) -> Words:
    """The words again, (count,) uint32 or uint64.

    Raises:
        MaskingError: FH-SECAGG-004 another number of bytes, or a filled-up place is not zero.
    """
    words: Words = np.zeros(count, dtype=word_type(bits))
    add_packed(words, data, bits)
    return words


def add_packed(total: Words, data: bytes | memoryview, bits: int) -> None:
    """Add packed words to a sum in place, modulo the sum's word size; without ever holding them all.

    Args:
        total: (n,) uint32 or uint64.
        data: of n words.
        bits: of one word.

    Raises:
        MaskingError: FH-SECAGG-004 another number of bytes, or a filled-up place is not zero; `total` is as before.
    """
    if len(data) != packed_size(total.size, bits):
        raise MaskingError(
            "FH-SECAGG-004",
            f"{len(data)} bytes do not hold {total.size} words of {bits} bits.",
            why="A vector of another length belongs to another model.",
        )
    last = total.size // _WORDS * _WORDS
    if any(part[total.size - last :].any() for _, part in _chunks(data, bits, first=last)):
        raise MaskingError("FH-SECAGG-004", "the bytes after the last word are not zero.")
    for start, part in _chunks(data, bits):
        place = total[start : start + part.size]
        np.add(place, part[: place.size].astype(total.dtype), out=place)


def _chunks(data: bytes | memoryview, bits: int, *, first: int = 0) -> Iterator[tuple[int, _Lanes]]:
    """Where each chunk of words begins, and its words; from `first` on, a multiple of 64."""
    raw = np.frombuffer(data, dtype=np.uint8)
    stride = bits * _LANE_BITS // 8
    for start in range(first // _WORDS, -(-raw.size // stride), _CHUNK):
        part = raw[start * stride : (start + _CHUNK) * stride]
        missing = -part.size % stride
        if missing:
            part = np.concatenate([part, np.zeros(missing, dtype=np.uint8)])
        lanes = np.ascontiguousarray(part.view("<u8").reshape(-1, bits).T)
        yield start * _WORDS, np.ascontiguousarray(_from_lanes(lanes, bits).T).reshape(-1)


def _to_lanes(columns: _Lanes, bits: int) -> _Lanes:
    """(64, g) words as (bits, g) lanes."""
    lanes = np.zeros((bits, columns.shape[1]), dtype=np.uint64)
    for index in range(_WORDS):
        lane, shift = divmod(index * bits, _LANE_BITS)
        lanes[lane] |= columns[index] << np.uint64(shift)
        if shift + bits > _LANE_BITS:
            lanes[lane + 1] |= columns[index] >> np.uint64(_LANE_BITS - shift)
    return lanes


def _from_lanes(lanes: _Lanes, bits: int) -> _Lanes:
    """(bits, g) lanes as (64, g) words."""
    columns = np.empty((_WORDS, lanes.shape[1]), dtype=np.uint64)
    mask = np.uint64((1 << bits) - 1)
    for index in range(_WORDS):
        lane, shift = divmod(index * bits, _LANE_BITS)
        np.right_shift(lanes[lane], np.uint64(shift), out=columns[index])
        if shift + bits > _LANE_BITS:
            columns[index] |= lanes[lane + 1] << np.uint64(_LANE_BITS - shift)
        columns[index] &= mask
    return columns
