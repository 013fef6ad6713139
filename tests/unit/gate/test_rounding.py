"""Updates that leave in 8 bits: after clipping, inside the norm, readable, and the same bytes when sent again."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import UniformBits, decode_change, encode_change
from fedhealth.errors import GateRefusedError, PrivacyError
from fedhealth.gate.frozen import Frozen
from fedhealth.gate.gate import (
    ReleaseTerms,
    UpdateClip,
    refusal_code,
    release_again,
    release_update,
)
from fedhealth.gate.outbound import OutboundUpdate
from fedhealth.gate.rounding import Rounding

ORIGIN = np.linspace(-1, 1, 1500).astype(np.float32)
SPEC = TensorSpec.of({"a.weight": ORIGIN[:1400].reshape(14, 100), "b.bias": ORIGIN[1400:]})


def bits(seed: int = 0) -> UniformBits:
    stream = np.random.PCG64(seed)
    return lambda count: np.asarray(stream.random_raw(count), np.uint64)


def terms(seed: int = 0, **more: Any) -> ReleaseTerms:
    return ReleaseTerms(
        spec=SPEC,
        metrics=(),
        metric_digits=3,
        rounding=Rounding(origin=ORIGIN, bits=bits(seed)),
        **more,
    )


def release(new: NDArray[np.float32], agreed: ReleaseTerms) -> OutboundUpdate:
    return release_update(SPEC.unflatten(new), train_metrics={}, evaluate_metrics={}, terms=agreed)


def moved(seed: int, size: float = 0.1) -> NDArray[np.float32]:
    change = np.random.default_rng(seed).standard_t(3, ORIGIN.size) * size
    return (ORIGIN + change).astype(np.float32)


def test_an_update_leaves_as_scales_and_bytes_with_their_own_digest() -> None:
    released = release(moved(1), terms(seed=5))
    assert bytes(released.payload) == encode_change(ORIGIN, moved(1), SPEC, bits(5))
    assert len(released.payload) == 1500 + 4 * 3
    assert released.digest == hashlib.sha256(released.payload).hexdigest()
    assert (released.encoding, released.num_elements) == ("int8", 1500)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(1e-3, 10.0))
def test_what_is_read_is_never_longer_than_the_clipping_norm(seed: int, norm: float) -> None:
    """Rounding alone makes a clipped update longer: see the next test."""
    released = release(moved(seed), terms(seed, clip=UpdateClip(origin=ORIGIN, norm=norm)))
    read = decode_change(bytes(released.payload), ORIGIN, SPEC).astype(np.float64)
    assert np.linalg.norm(read - ORIGIN) <= norm
    # Nor is it made much shorter: one step of rounding for each value is all that it can lose.
    change = moved(seed).astype(np.float64) - ORIGIN
    steps = np.abs(change).max() / 127 * np.sqrt(change.size)
    shortened = min(norm, np.linalg.norm(change))
    assert np.linalg.norm(read - ORIGIN) >= shortened - steps * shortened / np.linalg.norm(change)


def test_rounding_without_the_second_clip_would_be_longer() -> None:
    change = moved(3).astype(np.float64) - ORIGIN
    clipped = (ORIGIN + change / np.linalg.norm(change)).astype(np.float32)
    lengths = [
        np.linalg.norm(
            decode_change(encode_change(ORIGIN, clipped, SPEC, bits(i)), ORIGIN, SPEC)
            - ORIGIN.astype(np.float64)
        )
        for i in range(20)
    ]
    assert max(lengths) > 1.0001


def test_a_norm_that_float32_does_not_resolve_is_refused() -> None:
    for norm in (1e-7, 1e-30):
        agreed = terms(clip=UpdateClip(origin=ORIGIN, norm=norm))
        with pytest.raises((GateRefusedError, PrivacyError), match=r"FH-GATE-014|FH-PRIVACY-081"):
            release(moved(1), agreed)


def test_a_frozen_tensor_is_read_back_bit_for_bit() -> None:
    new, part = moved(2), slice(1400, 1500)
    origin = ORIGIN.copy()
    origin[1450] = -0.0
    new[part] = origin[part]
    frozen = Frozen(names=frozenset({"b.bias"}), origin=origin, ranges=(part,))
    agreed = ReleaseTerms(
        spec=SPEC,
        metrics=(),
        metric_digits=3,
        clip=UpdateClip(origin=origin, norm=0.5),
        frozen=frozen,
        rounding=Rounding(origin=origin, bits=bits()),
    )
    read = decode_change(bytes(release(new, agreed).payload), origin, SPEC)
    assert frozen.is_kept_by(read)


def test_a_change_that_float32_does_not_hold_is_refused() -> None:
    low, high = (np.full(1500, value, np.float32) for value in (-3e38, 3e38))
    agreed = ReleaseTerms(
        spec=SPEC,
        metrics=(),
        metric_digits=3,
        rounding=Rounding(origin=low, bits=bits()),
    )
    with pytest.raises(GateRefusedError) as refused:
        release(high, agreed)
    assert refused.value.code == "FH-GATE-003"
    assert refusal_code(refused.value) is DropCode.NON_FINITE


def test_a_sealed_update_in_8_bits_leaves_again_as_the_same_bytes() -> None:
    first = release(moved(1), terms())
    payload = bytes(first.payload)
    again = release_again(payload, first.digest, {}, {}, num_rounded=1500)
    assert isinstance(again, OutboundUpdate)
    assert (again.encoding, again.num_elements, bytes(again.payload)) == ("int8", 1500, payload)
    with pytest.raises(GateRefusedError, match="FH-GATE-008"):
        release_again(payload[:-1], first.digest, {}, {}, num_rounded=1500)
