"""The one flat vector: names, shapes and offsets are exact, and the digest is of its little-endian bytes."""

import hashlib

import numpy as np
import pytest

from fedhealth.contracts.tensors import TensorSpec, vector_bytes, vector_digest, vector_from_bytes
from fedhealth.errors import AggregationError

TENSORS = {
    "body.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(7.5, dtype=np.float32),
    "bias": np.array([-1.0, 2.0], dtype=np.float32),
}
SPEC = TensorSpec.of(TENSORS)


def test_tensors_come_back_from_the_vector_as_they_went_in() -> None:
    back = SPEC.unflatten(SPEC.flatten(TENSORS))
    assert list(back) == list(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].shape == tensor.shape


def test_offsets_have_no_gaps_and_a_scalar_is_one_element() -> None:
    assert [entry.offset for entry in SPEC.entries] == [0, 6, 7]
    assert (SPEC.num_elements, SPEC.num_bytes) == (9, 36)


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        ({k: v for k, v in TENSORS.items() if k != "bias"}, "FH-TENSOR-001"),
        (TENSORS | {"more": np.zeros(1, dtype=np.float32)}, "FH-TENSOR-001"),
        (TENSORS | {"bias": np.zeros(3, dtype=np.float32)}, "FH-TENSOR-002"),
    ],
)
def test_other_names_and_shapes_are_refused(tensors: dict[str, np.ndarray], code: str) -> None:
    with pytest.raises(AggregationError) as refused:
        SPEC.flatten(tensors)
    assert refused.value.code == code


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(AggregationError) as refused:
        SPEC.unflatten(np.zeros(8, dtype=np.float32))
    assert refused.value.code == "FH-TENSOR-003"


def test_the_digest_is_of_the_little_endian_bytes() -> None:
    vector = SPEC.flatten(TENSORS)
    expected = hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
    assert vector_digest(vector) == expected == vector_digest(vector.astype(">f4"))
    np.testing.assert_array_equal(vector_from_bytes(bytes(vector_bytes(vector))), vector)
