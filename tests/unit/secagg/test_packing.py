"""Words as bytes without gaps: the little-endian digits of one large number for every group of eight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.secagg.mask_stream import word_type
from fedhealth.secagg.packing import pack, packed_size, unpack
from fedhealth.secagg.refusals import MaskingError


def big_number(values: list[int], bits: int) -> bytes:
    """The same with Python's own large numbers: eight words of b bits are a number of b bytes."""
    groups = [values[start : start + 8] for start in range(0, len(values), 8)]
    return b"".join(
        sum(value << (bits * place) for place, value in enumerate(group)).to_bytes(bits, "little")
        for group in groups
    )


@pytest.mark.parametrize("bits", range(1, 65))
def test_words_of_any_size_come_back_and_lie_where_they_should(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for count in (0, 1, 7, 8, 9, 17, 100):
        values = [int(v) % 2**bits for v in rng.integers(0, 2**64, count, dtype=np.uint64)]
        values[:3] = [2**bits - 1, 0, 2 ** (bits - 1)][: len(values)]
        words = np.array(values, dtype=np.uint64).astype(word_type(bits))
        packed = pack(words, bits)
        assert packed == big_number(values, bits)
        assert len(packed) == packed_size(count, bits)
        back = unpack(packed, count=count, bits=bits)
        assert back.dtype == word_type(bits)
        assert back.tolist() == values


@given(st.integers(1, 64), st.data())
@settings(max_examples=80, deadline=None)
def test_packing_is_undone_by_unpacking(bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    words = np.array(values, dtype=np.uint64).astype(word_type(bits))
    assert unpack(memoryview(pack(words, bits)), count=len(values), bits=bits).tolist() == values


@pytest.mark.parametrize("bits", [13, 40])
def test_a_vector_longer_than_a_chunk_is_packed_the_same(bits: int) -> None:
    count = 8 * (1 << 14) + 13
    values = np.random.default_rng(0).integers(0, 2**bits, count, dtype=np.uint64)
    words = values.astype(word_type(bits))
    packed = pack(words, bits)
    assert packed == big_number(values.tolist(), bits)
    np.testing.assert_array_equal(unpack(packed, count=count, bits=bits), words)


@pytest.mark.parametrize("bits", [1, 13, 32, 33, 64])
def test_another_number_of_bytes_is_refused(bits: int) -> None:
    packed = pack(np.ones(10, dtype=word_type(bits)), bits)
    for wrong in (packed[:-1], packed + b"\0", b"", packed + bytes(bits), packed[:bits]):
        with pytest.raises(MaskingError, match="FH-SECAGG-004"):
            unpack(wrong, count=10, bits=bits)


@pytest.mark.parametrize("bits", [1, 13, 32, 33, 63, 64])
def test_every_bit_after_the_last_word_must_be_zero(bits: int) -> None:
    packed = pack(np.ones(10, dtype=word_type(bits)), bits)
    number = int.from_bytes(packed[bits:], "little")
    for place in range(2 * bits, 8 * bits):
        spoilt = packed[:bits] + (number | 1 << place).to_bytes(bits, "little")
        with pytest.raises(MaskingError, match="FH-SECAGG-004"):
            unpack(spoilt, count=10, bits=bits)
