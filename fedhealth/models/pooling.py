"""Poolings whose backward pass is deterministic on every device. Called by `monai_backbones`.

torch has no deterministic backward of MaxPool3d, AvgPool3d and AdaptiveAvgPool3d on CUDA, and the same study, site and
round give the same update. Both window poolings are separable, so that windows are taken along one axis at a time.
"""

import torch
from torch import Tensor, nn


class WindowMax(nn.Module):
    """Maximum over windows of 3 with stride 2 and padding 1 along every spatial axis, as MaxPool2d and MaxPool3d.

    Equal maxima share the gradient, where torch's own give it to the first; after a ReLU such ties are zeros, which
    pass nothing on.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, *sides) to (B, C, *(side + 1) // 2)."""
        for axis in range(2, inputs.dim()):
            sides = list(inputs.shape)
            sides[axis] = 1
            edge = inputs.new_full(sides, -torch.inf)
            padded = torch.cat([edge, inputs, edge], dim=axis)
            inputs = padded.unfold(axis, 3, 2).amax(dim=-1)
        return inputs


class WindowMean(nn.Module):
    """Mean over windows of 2 with stride 2 along every spatial axis, as AvgPool2d and AvgPool3d."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, *sides) to (B, C, *side // 2)."""
        for axis in range(2, inputs.dim()):
            inputs = inputs.unfold(axis, 2, 2).mean(dim=-1)
        return inputs


class GlobalMean(nn.Module):
    """Mean over all spatial axes, kept as axes of one."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, *sides) to (B, C, 1, ...)."""
        return inputs.mean(dim=tuple(range(2, inputs.dim())), keepdim=True)
