"""How an update is written as bytes: the whole model in float32, or its change in 8 bits a value.

The site's gate writes, the server reads. The 8-bit form, ``int8``, is QSGD (Alistarh, Grubic, Li, Tomioka, Vojnovic
2017, arXiv 1610.02132, sections 3.1 and 4) with s = 127 levels, buckets of at most 1024 values, and each bucket scaled
by its largest absolute value. A change x of a bucket with scale m becomes the number ``floor(127 x / m + u)`` with
u uniform in [0, 1): its mean is ``127 x / m``, so that what is read back has the mean x.

Layout, little-endian: a float32 scale for each bucket, then an int8 for each value. A bucket never goes over the end of
a tensor: a small tensor is not written in the steps of a large one, and one that did not move is read as it was.
"""

from collections.abc import Callable, Iterator
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import AggregationError

UpdateEncoding = Literal["float32", "int8"]
UniformBits = Callable[[int], NDArray[np.uint64]]
"""Gives (count,) uint64, every bit uniform and independent."""

LEVELS: Final = 127
"""Largest whole number: -128 is never written."""
BUCKET: Final = 1024
"""Values a scale: 0.4 % on top, and the largest of 1024 normal numbers is 3.2 standard deviations on average."""
_UNIT_53: Final = 2.0**-53
_BUCKETS_AT_ONCE: Final = 64


def encoding_of(update_bits: int) -> UpdateEncoding:
    """What `federation.update_bits` asks for."""
    return "int8" if update_bits == 8 else "float32"  # noqa: PLR2004 - the key's own value


def encoded_size(spec: TensorSpec, encoding: UpdateEncoding) -> int:
    """Bytes of every update of that spec."""
    if encoding == "float32":
        return spec.num_bytes
    return 4 * len(_bucket_starts(spec)) + spec.num_elements


def encode_change(
    origin: NDArray[np.float32], new: NDArray[np.float32], spec: TensorSpec, bits: UniformBits
) -> bytes:
    """The change from `origin` to `new` in the form ``int8``.

    Args:
        origin: (n,) float32, finite: the model that came in.
        new: (n,) float32, finite: the model that is sent.
        spec: of both.
        bits: randomness of the rounding, a word for each value.

    Raises:
        AggregationError: FH-TENSOR-003 a vector is not on the spec, FH-TENSOR-004 the change does not fit in float32.
    """
    for vector in (origin, new):
        if vector.shape != (spec.num_elements,):
            raise _misfit("FH-TENSOR-003", f"a vector of shape {vector.shape} is not on the spec")
    buckets = _bucket_starts(spec)
    scales = np.empty(buckets.size, dtype="<f4")
    levels = np.empty(spec.num_elements, dtype=np.int8)
    for chosen, starts, part in _parts(buckets, spec.num_elements):
        change = np.subtract(new[part], origin[part], dtype=np.float64)
        scales[chosen] = largest = _rounded_up(np.maximum.reduceat(np.abs(change), starts))
        if not np.isfinite(largest).all():
            raise _misfit("FH-TENSOR-004", "a change is too large for float32")
        divisors = np.where(largest > 0, largest, 1).astype(np.float64)
        change /= np.repeat(divisors, np.diff(starts, append=change.size))
        change *= LEVELS
        change += (bits(change.size) >> np.uint64(11)) * _UNIT_53
        # 127 and the largest u of all add up to 128 in float64.
        levels[part] = np.minimum(np.floor(change), LEVELS)
    return scales.tobytes() + levels.tobytes()


def decode_change(
    payload: bytes | memoryview, origin: NDArray[np.float32], spec: TensorSpec
) -> NDArray[np.float32]:
    """The model behind an update in the form ``int8``: (n,) float32, maybe not finite where scale and model are huge.

    Where the written change is zero the value of `origin` comes back bit for bit.

    Raises:
        AggregationError: FH-TENSOR-003 `origin` is not on the spec, FH-TENSOR-005 it is not of this form: another size,
            a scale that is negative or not finite, a number that no scale goes with, or -128.
    """
    if origin.shape != (spec.num_elements,):
        raise _misfit("FH-TENSOR-003", f"a vector of shape {origin.shape} is not on the spec")
    buckets = _bucket_starts(spec)
    if len(payload) != encoded_size(spec, "int8"):
        raise _misfit("FH-TENSOR-005", "an 8-bit update has another size than its tensors")
    scales = np.frombuffer(payload, dtype="<f4", count=buckets.size)
    levels = np.frombuffer(payload, dtype=np.int8, offset=4 * buckets.size)
    if not np.isfinite(scales).all() or np.signbit(scales).any():
        raise _misfit("FH-TENSOR-005", "a scale of an 8-bit update is negative or not finite")
    model = np.array(origin, dtype=np.float32)
    for chosen, starts, part in _parts(buckets, spec.num_elements):
        change, level = model[part], levels[part]
        steps = np.repeat(
            scales[chosen].astype(np.float64) / LEVELS, np.diff(starts, append=level.size)
        )
        if (level < -LEVELS).any() or level[steps == 0].any():
            raise _misfit("FH-TENSOR-005", "an 8-bit update holds a number that is never written")
        moved = np.flatnonzero(level)
        with np.errstate(over="ignore"):  # the caller refuses what is not finite
            change[moved] += steps[moved] * level[moved]
    return model


def with_smaller_scales(payload: bytes, spec: TensorSpec, factor: float) -> bytes:
    """The same update with every change times a factor from 0 to 1, in the form ``int8``; rounded towards zero."""
    end = encoded_size(spec, "int8") - spec.num_elements
    wanted = np.frombuffer(payload[:end], dtype="<f4").astype(np.float64) * factor
    scales = wanted.astype(np.float32)
    high = scales.astype(np.float64) > wanted
    scales[high] = np.nextafter(scales[high], np.float32(0))
    return scales.astype("<f4").tobytes() + payload[end:]


def _bucket_starts(spec: TensorSpec) -> NDArray[np.intp]:
    starts = [
        np.arange(entry.offset, entry.offset + entry.num_elements, BUCKET) for entry in spec.entries
    ]
    return np.concatenate(starts).astype(np.intp)


def _parts(buckets: NDArray[np.intp], size: int) -> Iterator[tuple[slice, NDArray[np.intp], slice]]:
    """Some buckets at a time, so that float64 copies stay small: which, where each begins in the part, and the part."""
    for first in range(0, buckets.size, _BUCKETS_AT_ONCE):
        chosen = slice(first, min(first + _BUCKETS_AT_ONCE, buckets.size))
        begin = int(buckets[first])
        end = int(buckets[chosen.stop]) if chosen.stop < buckets.size else size
        yield chosen, buckets[chosen] - begin, slice(begin, end)


def _rounded_up(largest: NDArray[np.float64]) -> NDArray[np.float32]:
    """To float32. A value must not be above its own scale, or it would need level 128."""
    with np.errstate(over="ignore"):
        scales = largest.astype(np.float32)
    low = scales.astype(np.float64) < largest
    scales[low] = np.nextafter(scales[low], np.float32(np.inf))
    return scales


def _misfit(code: str, what: str) -> AggregationError:
    return AggregationError(
        code, f"{what}.", fix="Site and server must run the same study and release."
    )
