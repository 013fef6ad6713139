"""What stands in a federated model where the published network has BatchNorm. Called by `monai_backbones`.

BatchNorm mixes the patients of a batch and keeps running statistics, which would travel unclipped. GroupNorm is
trained in its place; or the statistics of a pretrained network are folded into a constant scale and shift.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedhealth.models.multimodal_options import CHANNELS_PER_GROUP

MAX_GROUPS = 32
"""Wu and He 2018, "Group Normalization", section 4.1."""


class FrozenBatchNorm(nn.Module):
    """y = scale * x + shift for each channel: BatchNorm in evaluation, its statistics folded in, never trained.

    Args:
        num_channels: C.
        eps: of the BatchNorm that it stands for.
    """

    def __init__(self, num_channels: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(num_channels), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(num_channels), requires_grad=False)

    def fold(self, *, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Set from a BatchNorm's four tensors, (C,) each."""
        with torch.no_grad():
            scale = weight.double() / (variance.double() + self.eps).sqrt()
            self.shift.copy_((bias.double() - mean.double() * scale).to(self.shift))
            self.scale.copy_(scale.to(self.scale))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, *sides) to the same."""
        shape = (1, -1, *([1] * (inputs.dim() - 2)))
        return inputs * self.scale.view(shape) + self.shift.view(shape)


def replace_batch_norm(network: nn.Module, *, frozen: bool) -> None:
    """Put GroupNorm, or frozen statistics, in the place of every BatchNorm, under the same name; draws nothing."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, _BatchNorm):
                setattr(parent, name, _instead(layer, frozen=frozen))


def _instead(norm: _BatchNorm, *, frozen: bool) -> nn.Module:
    channels = norm.num_features
    if frozen:
        return FrozenBatchNorm(channels, eps=norm.eps)
    most = max(1, min(MAX_GROUPS, channels // CHANNELS_PER_GROUP))
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels)
