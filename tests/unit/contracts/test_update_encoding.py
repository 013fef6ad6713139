"""What the 8-bit form of an update refuses, and how small it is."""

import numpy as np
import pytest

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import (
    BUCKET,
    decode_change,
    encode_change,
    encoded_size,
    encoding_of,
)
from fedhealth.errors import AggregationError

SPEC = TensorSpec.of({"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.float32)})
ORIGIN = np.ones(7, np.float32)


def message(scales: list[float], levels: list[int]) -> bytes:
    return np.array(scales, "<f4").tobytes() + np.array(levels, np.int8).tobytes()


def zeros(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.zeros(count, np.uint64)


def test_a_message_of_the_form_is_the_model_plus_scale_times_level_over_127() -> None:
    back = decode_change(message([127.0, 12.7], [1, -2, 0, 127, 10, 0, -127]), ORIGIN, SPEC)
    np.testing.assert_allclose(back, [2, -1, 1, 13.7, 2, 1, -11.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", "FH-TENSOR-005"),
        (message([1, 1], [0] * 6), "FH-TENSOR-005"),
        (message([1, 1], [0] * 8), "FH-TENSOR-005"),
        (message([1], [0] * 7), "FH-TENSOR-005"),
        (ORIGIN.tobytes(), "FH-TENSOR-005"),
        (message([np.nan, 1], [0] * 7), "FH-TENSOR-005"),
        (message([np.inf, 1], [0] * 7), "FH-TENSOR-005"),
        (message([1, -np.inf], [0] * 7), "FH-TENSOR-005"),
        (message([1, -1], [0] * 7), "FH-TENSOR-005"),
        (message([-0.0, 1], [0] * 7), "FH-TENSOR-005"),
        (message([1, 1], [-128, 0, 0, 0, 0, 0, 0]), "FH-TENSOR-005"),
        (message([0, 1], [1, 0, 0, 0, 0, 0, 0]), "FH-TENSOR-005"),
    ],
)
def test_bytes_that_are_never_written_are_refused(payload: bytes, code: str) -> None:
    with pytest.raises(AggregationError) as refused:
        decode_change(payload, ORIGIN, SPEC)
    assert refused.value.code == code


def test_a_vector_that_is_not_on_the_spec_is_refused() -> None:
    for origin, new in ((ORIGIN[:-1], ORIGIN), (ORIGIN, ORIGIN[:-1])):
        with pytest.raises(AggregationError, match="FH-TENSOR-003"):
            encode_change(origin, new, SPEC, zeros)
    with pytest.raises(AggregationError, match="FH-TENSOR-003"):
        decode_change(message([1, 1], [0] * 7), ORIGIN[:-1], SPEC)


def test_a_change_that_float32_cannot_hold_is_refused() -> None:
    most = np.float32(3e38)
    with pytest.raises(AggregationError, match="FH-TENSOR-004"):
        encode_change(np.full(7, -most), np.full(7, most), SPEC, zeros)


def test_a_model_of_large_tensors_takes_a_quarter_of_float32_and_half_a_percent() -> None:
    large = TensorSpec.of({f"t{i}": np.zeros((64, 1000), np.float32) for i in range(3)})
    assert encoded_size(large, "float32") == 4 * 192_000
    assert encoded_size(large, "int8") == 192_000 + 4 * 3 * -(-64_000 // BUCKET)
    assert encoded_size(large, "float32") / encoded_size(large, "int8") > 3.98


def test_the_studys_bits_name_the_form() -> None:
    assert (encoding_of(32), encoding_of(8)) == ("float32", "int8")
