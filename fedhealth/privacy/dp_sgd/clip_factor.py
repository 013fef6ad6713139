"""The factor that brings a patient's gradient to the clipping norm. Called by both ways to get clipped gradients."""

import torch
from torch import Tensor

ROUNDING_MARGIN = 1e-5
"""Gradients are aimed this much (relatively) below the clipping norm. The norm and the weighted sum are worked out
in float32 and in different orders: they differ by about 1e-6 on a large convolution."""

_SMALLEST_NORM = torch.finfo(torch.float64).tiny


def clip_factors(squared_norms: Tensor, *, clipping_norm: float) -> Tensor:
    """min(1, C / norm) of each patient (Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1).

    Args:
        squared_norms: (...) float64, over all trained tensors together.
        clipping_norm: C.

    Returns:
        (...) float64, 0 or in [`LEAST_FACTOR`, 1]; 0 where the squared norm is not finite (a NaN is not clipped by
        a factor, and an error would tell the server that such a patient is there) and where the factor is so
        small that float32 would not keep it.
    """
    norms = squared_norms.sqrt().clamp(min=_SMALLEST_NORM)
    factors = (clipping_norm * (1 - ROUNDING_MARGIN) / norms).clamp(max=1.0)
    return torch.where(torch.isfinite(squared_norms) & (factors >= LEAST_FACTOR), factors, 0.0)


LEAST_FACTOR = 1e-12
"""A gradient so much longer than the clipping norm comes from weights that no training makes, but that a hostile
server can send. Near 1e-38 float32 rounds a factor by up to its double: such a patient adds nothing instead."""

LARGEST_VALUE = 1e15
"""Of a layer's input, for the same reason: an output gradient is scaled before it is multiplied with the input, and
the rounding of a scaled one below 1e-38 would grow with the input."""


def beyond_float32(values: Tensor) -> Tensor:
    """(R,) bool: rows that hold a value whose products float32 would not keep.

    Args:
        values: (R, ...), finite or not.
    """
    if not values.is_floating_point() or values.numel() == 0:  # an embedding's input is codes
        return torch.zeros(values.shape[0], dtype=torch.bool, device=values.device)
    if float(torch.linalg.vector_norm(values, float("inf"))) <= LARGEST_VALUE:
        return torch.zeros(values.shape[0], dtype=torch.bool, device=values.device)
    return ~(values.flatten(1).abs().amax(dim=1) <= LARGEST_VALUE)  # also true for NaN


CANCELLATION = 1e-3
"""See `against_cancellation`; float32 rounding of 1e-7 then stays below 1e-4 of the clipping norm."""


def against_cancellation(squared_norms: Tensor, magnitudes: Tensor) -> Tensor:
    """Squared norms, raised where a gradient is a small rest of large terms that cancel.

    Where a row's gradient is never made, its norm comes from a formula, and the sum from another one whose float32
    rounding is relative to the terms, not to their sum. A patient whose terms cancel a thousandfold is therefore
    clipped as if a thousandth of them were left.

    Args:
        squared_norms: (R,) float64.
        magnitudes: (R,) float64, sum of the norms of a gradient's terms.
    """
    return torch.maximum(squared_norms, (CANCELLATION * magnitudes).square())
