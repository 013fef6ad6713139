"""The weight gradient of Conv1d, Conv2d and Conv3d by row, three ways. Called by `layer_rules`.

Which way is cheapest depends on the number of output positions and the kernel; the limits were measured on a CPU
(`benchmarks/dp_step.py`, ADR 0011). Shape legend: R rows, C channels in, O channels out, G groups, T output
positions, K numbers of a patch.
"""

from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhealth.privacy.dp_sgd.clip_factor import against_cancellation

Gradients = dict[str, Tensor]

_MAX_GRAM_POSITIONS = 8
"""Up to here the products of patches are smaller than the weight: 0.1 s instead of 8 s on a 512-to-512 layer."""
_MAX_ALONE_POSITIONS = 64
"""Up to here a grouped convolution is slower than one convolution a row."""
_LARGE_KERNEL = 7**3
_MAX_ROW_ELEMENTS = 1 << 25
"""128 MiB of float32: more is not kept, but made twice."""

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvolutionRule:
    """Any stride, padding, dilation and groups (Rochette et al. 2019, arXiv 1912.06015, for the grouped way)."""

    def reason_against(self, layer: nn.Module) -> str | None:  # noqa: ARG002 - the protocol's shape
        """Always possible."""
        return None

    def row_gradients(
        self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor
    ) -> Gradients | None:
        """(R, *shape) each, unless there are few positions or the rows' gradients would not fit."""
        conv = cast("_Convolution", layer)
        num_positions = output_gradients.shape[2:].numel()
        too_large = conv.weight.numel() * inputs.shape[0] > _MAX_ROW_ELEMENTS
        if too_large or num_positions <= _MAX_GRAM_POSITIONS:
            return None
        found: Gradients = {}
        if conv.weight.requires_grad:
            kernel = prod(conv.kernel_size)
            alone = kernel >= _LARGE_KERNEL or num_positions <= _MAX_ALONE_POSITIONS
            way = _rows_alone if alone else _rows_as_groups
            found["weight"] = way(conv, inputs, output_gradients)
        if conv.bias is not None and conv.bias.requires_grad:
            found["bias"] = output_gradients.flatten(2).sum(2)
        return found

    def one_at_a_time(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> bool:  # noqa: ARG002
        """Where rows' gradients would not fit, and there are too many positions for Gram matrices."""
        return output_gradients.shape[2:].numel() > _MAX_GRAM_POSITIONS

    def squared_norms(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Tensor:
        """(R,) float64, from Gram matrices of patches: for few positions."""
        conv = cast("_Convolution", layer)
        total = torch.zeros(inputs.shape[0], dtype=torch.float64, device=inputs.device)
        if conv.weight.requires_grad:
            total += _gram_norms(conv, inputs, output_gradients)
        if conv.bias is not None and conv.bias.requires_grad:
            g_ROT = output_gradients.flatten(2)  # noqa: N806
            magnitudes = torch.linalg.vector_norm(g_ROT, dim=1, dtype=torch.float64).sum(1)
            total += against_cancellation(_squares(g_ROT.sum(2)), magnitudes)
        return total

    def gradients(self, layer: nn.Module, inputs: Tensor, output_gradients: Tensor) -> Gradients:
        """One convolution over all rows."""
        conv = cast("_Convolution", layer)
        found: Gradients = {}
        if conv.weight.requires_grad:
            found["weight"] = _weight_gradient(conv, inputs, output_gradients)
        if conv.bias is not None and conv.bias.requires_grad:
            found["bias"] = output_gradients.flatten(2).sum((0, 2))
        return found


def _weight_gradient(
    conv: _Convolution,
    inputs: Tensor,
    output_gradients: Tensor,
    *,
    weight: Tensor | None = None,
    groups: int | None = None,
) -> Tensor:
    padded, padding = _padded(conv, inputs)
    num_dims = len(conv.kernel_size)
    found: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        output_gradients,
        padded,
        conv.weight.detach() if weight is None else weight,
        None,
        list(conv.stride),
        padding,
        list(conv.dilation),
        False,  # transposed; torch takes positions only
        [0] * num_dims,
        conv.groups if groups is None else groups,
        [False, True, False],
    )
    return cast("Tensor", found[1])


def _rows_as_groups(conv: _Convolution, inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """One convolution of R * G groups: (R, O, C / G, ...)."""
    num_rows = inputs.shape[0]
    weight = conv.weight.detach()
    stacked = weight.repeat(num_rows, *([1] * (weight.dim() - 1)))
    found = _weight_gradient(
        conv,
        inputs.reshape(1, -1, *inputs.shape[2:]),
        output_gradients.reshape(1, -1, *output_gradients.shape[2:]),
        weight=stacked,
        groups=num_rows * conv.groups,
    )
    return found.view(num_rows, *weight.shape)


def _rows_alone(conv: _Convolution, inputs: Tensor, output_gradients: Tensor) -> Tensor:
    return torch.stack(
        [
            _weight_gradient(conv, inputs[row : row + 1], output_gradients[row : row + 1])
            for row in range(inputs.shape[0])
        ]
    )


def _gram_norms(conv: _Convolution, inputs: Tensor, output_gradients: Tensor) -> Tensor:
    """Sum of (patches patches^T) * (g g^T), in float64: positions may cancel."""
    num_rows, groups = inputs.shape[0], conv.groups
    patches_RGTK = _patches(conv, inputs).double()  # noqa: N806
    g_RGTO = (  # noqa: N806
        output_gradients.reshape(num_rows, groups, conv.out_channels // groups, -1).mT.double()
    )
    products = (patches_RGTK @ patches_RGTK.mT) * (g_RGTO @ g_RGTO.mT)
    magnitudes = (patches_RGTK.norm(dim=3) * g_RGTO.norm(dim=3)).sum((1, 2))
    return against_cancellation(products.sum((1, 2, 3)).clamp(min=0), magnitudes)


def _patches(conv: _Convolution, inputs: Tensor) -> Tensor:
    """(R, G, T, K): what each output position sees, K = C / G times the kernel's size."""
    x, padding = _padded(conv, inputs)
    both_sides = [side for pad in reversed(padding) for side in (pad, pad)]
    x = functional.pad(x, both_sides)
    num_dims = len(conv.kernel_size)
    for dim in range(num_dims):
        reach = (conv.kernel_size[dim] - 1) * conv.dilation[dim] + 1
        x = x.unfold(2 + dim, reach, conv.stride[dim])[..., :: conv.dilation[dim]]
    num_rows, num_positions = x.shape[0], x.shape[2 : 2 + num_dims].numel()
    grouped = x.reshape(num_rows, conv.groups, -1, num_positions, prod(conv.kernel_size))
    return grouped.transpose(2, 3).flatten(3)


def _padded(conv: _Convolution, inputs: Tensor) -> tuple[Tensor, list[int]]:
    """Inputs and the zero padding that is left to the convolution: none where it is named or not of zeros."""
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return inputs, list(conv.padding)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides: list[int] = conv._reversed_padding_repeated_twice  # noqa: SLF001 - as conv.forward itself
    return functional.pad(inputs, sides, mode=mode), [0] * len(conv.kernel_size)


def _squares(gradient: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
    return norms.square()
