"""The 8-bit form of an update, against a second writing of it and against what its mean must be."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import BUCKET, decode_change, encode_change, encoded_size
from fedhealth.privacy.randomness import Randomness

SHAPES = st.lists(
    st.lists(st.integers(1, 60), max_size=2).map(tuple), min_size=1, max_size=6
)  # up to 3600 values: one bucket and several


def spec_of(shapes: list[tuple[int, ...]]) -> TensorSpec:
    return TensorSpec.of({f"t{i}": np.zeros(s, np.float32) for i, s in enumerate(shapes)})


def words(seed: int, size: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, size=size, dtype=np.uint64)


def written_again(
    origin: NDArray[np.float32],
    new: NDArray[np.float32],
    spec: TensorSpec,
    random: NDArray[np.uint64],
) -> tuple[bytes, list[float]]:
    """The form's definition, value by value in Python's numbers; bytes, and what is read back."""
    scales, levels, back = [], [], []
    for entry in spec.entries:
        for start in range(entry.offset, entry.offset + entry.num_elements, BUCKET):
            end = min(start + BUCKET, entry.offset + entry.num_elements)
            change = [float(new[i]) - float(origin[i]) for i in range(start, end)]
            largest = max(abs(x) for x in change)
            scale = np.float32(largest)
            if float(scale) < largest:
                scale = np.nextafter(scale, np.float32(np.inf))
            scales.append(scale)
            for i, x in zip(range(start, end), change, strict=True):
                u = (int(random[i]) >> 11) / 2**53
                level = 0 if scale == 0 else min(127, int(np.floor(x / float(scale) * 127 + u)))
                levels.append(level)
                moved = np.float32(float(origin[i]) + float(scale) / 127 * level)
                back.append(float(moved) if level else float(origin[i]))
    return np.array(scales, "<f4").tobytes() + np.array(levels, np.int8).tobytes(), back


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(0, 2**32), st.sampled_from([0.0, 1e-45, 1e-8, 1.0, 1e30]))
def test_bytes_and_what_is_read_back_are_the_definitions(
    shapes: list[tuple[int, ...]], seed: int, size: float
) -> None:
    spec, rng = spec_of(shapes), np.random.default_rng(seed)
    origin = rng.normal(size=spec.num_elements).astype(np.float32)
    new = (origin + size * rng.normal(size=origin.size)).astype(np.float32)
    random = words(seed, origin.size)
    given_words = iter(np.split(random, range(1, random.size)))

    def bits(count: int) -> NDArray[np.uint64]:
        return np.concatenate([next(given_words) for _ in range(count)])

    payload = encode_change(origin, new, spec, bits)
    expected, back = written_again(origin, new, spec, random)
    assert payload == expected
    assert len(payload) == encoded_size(spec, "int8")
    assert decode_change(payload, origin, spec).tolist() == back


def test_what_is_read_back_has_the_changes_mean() -> None:
    """A sum of n rounded values is within 6 standard deviations: each has at most half a step."""
    spec = spec_of([(40,), (BUCKET + 3,)])
    rng = np.random.default_rng(7)
    origin = np.zeros(spec.num_elements, np.float32)
    new = rng.standard_t(2, size=origin.size).astype(np.float32)
    randomness, repeats = Randomness.seeded_for_tests(b"r" * 32), 2000
    total = np.zeros(origin.size)
    for _ in range(repeats):
        payload = encode_change(origin, new, spec, randomness.uniform_bits)
        total += decode_change(payload, origin, spec)
    ends = [0, 40, 40 + BUCKET, origin.size]
    for start, end in pairwise(ends):
        step = float(np.abs(new[start:end]).max()) / 127
        error = total[start:end] / repeats - new[start:end]
        assert np.abs(error).max() < 6 * step / 2 / repeats**0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2))
def test_a_tensor_that_did_not_move_is_read_back_bit_for_bit(seed: int, still: int) -> None:
    spec, rng = spec_of([(30,), (5, 5), (9,)]), np.random.default_rng(seed)
    origin = rng.normal(size=spec.num_elements).astype(np.float32)
    origin[::7] = -0.0
    new = (origin + rng.normal(size=origin.size)).astype(np.float32)
    entry = spec.entries[still]
    part = slice(entry.offset, entry.offset + entry.num_elements)
    new[part] = origin[part]
    payload = encode_change(origin, new, spec, lambda count: words(seed, count))
    assert decode_change(payload, origin, spec)[part].tobytes() == origin[part].tobytes()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_no_value_is_further_off_than_one_step(seed: int) -> None:
    spec, rng = spec_of([(50, 50)]), np.random.default_rng(seed)
    origin = np.zeros(spec.num_elements, np.float32)
    new = rng.normal(size=origin.size).astype(np.float32)
    back = decode_change(
        encode_change(origin, new, spec, lambda count: words(seed, count)), origin, spec
    )
    for start in range(0, origin.size, BUCKET):
        part = slice(start, start + BUCKET)
        step = float(np.abs(new[part]).max()) / 127
        assert np.abs(back[part] - new[part]).max() <= step * (1 + 1e-5)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_the_largest_change_of_a_bucket_fits_at_either_end_of_the_randomness(word: int) -> None:
    spec = spec_of([(2,)])
    origin, new = np.zeros(2, np.float32), np.array([3.0, -3.0], np.float32)
    payload = encode_change(origin, new, spec, lambda count: np.full(count, word, np.uint64))
    assert np.frombuffer(payload, np.int8, offset=4).tolist() in ([127, -127], [127, -126])
