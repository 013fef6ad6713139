"""An update in 8 bits a value, rounded at random after everything else: called by `gate.clear_update`.

Clipping and noise come first: a function of what is private already costs nothing more, and noise is sized for values
that nobody has rounded. Nothing of the rounding error is kept: an error memory would be private state.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.contracts.update_encoding import (
    UniformBits,
    decode_change,
    encode_change,
    with_smaller_scales,
)
from fedhealth.errors import AggregationError, GateRefusedError
from fedhealth.gate.refusal import refused
from fedhealth.privacy.update_clipping import (
    MARGIN,
    rounding_slack,
    squared_distance,
    squared_norm,
)

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Updates leave in 8 bits a value: as changes of `origin`, the incoming model. `bits` is the randomness."""

    origin: Vector = field(repr=False)
    bits: UniformBits = field(repr=False)


def in_8_bits(
    vector: Vector, spec: TensorSpec, rounding: Rounding, *, norm: float | None
) -> tuple[bytes, Vector]:
    """The bytes that leave, and the model that the server will read out of them.

    A rounded change may be longer than the change was. Where `norm` bounds it, all scales are made smaller until what
    is read is inside: what a receiver that clips again would do is done here.

    Raises:
        GateRefusedError: FH-GATE-003 what would be read is not finite, FH-GATE-014 it is longer than `norm` because
            float32 resolves no smaller change of this model.
    """
    try:
        payload = encode_change(rounding.origin, vector, spec, rounding.bits)
        read = decode_change(payload, rounding.origin, spec)
        if norm is not None:
            payload, read = _inside(payload, read, spec, rounding.origin, norm)
    except AggregationError as error:
        raise _not_finite() from error
    if not np.isfinite(read).all():
        raise _not_finite()
    return payload, read


def _inside(
    payload: bytes, read: Vector, spec: TensorSpec, origin: Vector, norm: float
) -> tuple[bytes, Vector]:
    length, limit = math.sqrt(squared_distance(origin, read)), norm * (1.0 - MARGIN)
    if length <= limit:
        return payload, read
    # Once for what was read, which the length is of, and once for what will be.
    slack = 2 * rounding_slack(math.sqrt(squared_norm(origin)), norm, origin.size)
    shorter = with_smaller_scales(payload, spec, max(0.0, limit - slack) / length)
    read = decode_change(shorter, origin, spec)
    if math.sqrt(squared_distance(origin, read)) > limit:
        raise GateRefusedError(
            "FH-GATE-014",
            "a rounded update is longer than the clipping norm.",
            why="Noise that is sized for the norm would not hide it. Nothing was sent.",
            fix="Raise `clipping_norm` in the study's strategy options.",
        )
    return shorter, read


def _not_finite() -> GateRefusedError:
    return refused("FH-GATE-003", "an update in 8 bits would hold a value that is not finite.")
