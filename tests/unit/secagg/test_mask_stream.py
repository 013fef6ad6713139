"""A mask is ChaCha20's keystream as RFC 8439 has it, added word by word."""

import os
import struct
import tracemalloc

import numpy as np
import pytest

from fedhealth.secagg.mask_stream import CHUNK, add_mask, reduce_words, word_type


def rotated(value: int, by: int) -> int:
    return (value << by | value >> (32 - by)) & 0xFFFFFFFF


def quarter_round(state: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[x] = (state[x] + state[y]) & 0xFFFFFFFF
        state[z] = rotated(state[z] ^ state[x], by)


def keystream_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """RFC 8439, section 2.3, in Python's whole numbers."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter]
    start += struct.unpack("<3I", nonce)
    state = start[:]
    for _ in range(10):
        for column in range(4):
            quarter_round(state, column, 4 + column, 8 + column, 12 + column)
        for a in range(4):
            quarter_round(state, a, 4 + (a + 1) % 4, 8 + (a + 2) % 4, 12 + (a + 3) % 4)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(state, start, strict=True)))


def keystream(key: bytes, size: int, start: int = 0) -> bytes:
    """From a place that is a multiple of 64 on."""
    blocks = range(start // 64, -(-(start + size) // 64))
    return b"".join(keystream_block(key, block, bytes(12)) for block in blocks)[:size]


def test_the_oracle_gives_the_block_of_rfc_8439() -> None:
    block = keystream_block(bytes(range(32)), 1, bytes.fromhex("000000090000004a00000000"))
    assert block.hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


def test_a_mask_of_the_zero_seed_is_the_first_test_vector_of_rfc_8439() -> None:
    words = np.zeros(16, dtype=np.uint32)
    add_mask(words, bytes(32), 1)
    assert words.tobytes().hex() == (  # appendix A.1, test vector 1
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1000])
def test_words_become_the_words_plus_the_keystream(kind: type, count: int) -> None:
    seed = os.urandom(32)
    plain = np.random.default_rng(0).integers(0, np.iinfo(kind).max, count, dtype=kind)
    words, size = plain.copy(), np.dtype(kind).itemsize
    add_mask(words, seed, 1)
    stream = keystream(seed, count * size)
    modulus = 2 ** (8 * size)
    for index in range(count):
        mask = int.from_bytes(stream[index * size : (index + 1) * size], "little")
        assert int(words[index]) == (int(plain[index]) + mask) % modulus


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_the_stream_goes_on_from_chunk_to_chunk(kind: type, count: int) -> None:
    seed, size = bytes(range(32)), np.dtype(kind).itemsize
    words = np.zeros(count, dtype=kind)
    add_mask(words, seed, 1)
    raw = words.tobytes()
    for place in (0, CHUNK * size - 64, CHUNK * size, 2 * CHUNK * size):
        part = raw[place : place + 64]
        assert part == keystream(seed, len(part), place)
    last = (len(raw) - 1) // 64 * 64
    assert raw[last:] == keystream(seed, len(raw) - last, last)
    add_mask(words, seed, -1)
    assert not words.any()


def test_two_masks_of_a_pair_cancel_in_any_word_size() -> None:
    seed = os.urandom(32)
    for kind in (np.uint32, np.uint64):
        first, second = np.full(99, 5, dtype=kind), np.full(99, 6, dtype=kind)
        add_mask(first, seed, 1)
        add_mask(second, seed, -1)
        assert set((first + second).tolist()) == {11}


def test_a_mask_takes_no_more_memory_than_a_few_chunks() -> None:
    words = np.zeros(40 * CHUNK, dtype=np.uint64)
    tracemalloc.start()
    add_mask(words, bytes(32), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        peak < 4 * CHUNK * 8
    )  # zeros, keystream, and room for what Python needs; the vector is ten times that


@pytest.mark.parametrize("bits", [1, 7, 31, 32, 33, 63, 64])
def test_the_low_bits_are_what_is_kept(bits: int) -> None:
    kind = word_type(bits)
    values = np.random.default_rng(bits).integers(0, np.iinfo(kind).max, 50, dtype=kind)
    words = values.copy()
    reduce_words(words, bits)
    assert words.tolist() == [int(value) % 2**bits for value in values]


def test_words_are_as_small_as_the_modulus_allows() -> None:
    assert [word_type(bits) for bits in (1, 32, 33, 64)] == [
        np.uint32, np.uint32, np.uint64, np.uint64
    ]  # fmt: skip
