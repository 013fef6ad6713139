"""A small 3D convolutional encoder of MONAI blocks, for any grid of at least 8 voxels a side.

Called by `multimodal` (one encoder a volume modality) and by `pretraining`. Shape legend: B patients,
C channels, D, H, W voxels along i, j, k, E embedding size.
"""

from collections.abc import Sequence

from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

CHANNELS_PER_GROUP = 4
"""GroupNorm over groups of four channels: fewer and a group of one voxel-poor channel is all noise."""


class ImageEncoder(nn.Module):
    """Blocks of Conv3d (3x3x3, stride 2), GroupNorm, ReLU; global average pooling; a linear projection.

    GroupNorm and not BatchNorm: no patient's features depend on another patient, and there is no running
    statistic that would have to travel (Wu and He 2018, "Group Normalization", section 3). The last block
    has no normalisation, so that the size of what it found reaches the pooling.

    Args:
        widths: channels of each block, multiples of 4; three blocks shrink the grid by 8.
        embedding_size: E.
    """

    def __init__(self, widths: Sequence[int], embedding_size: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*_blocks(widths))
        self.projection = nn.Linear(widths[-1], embedding_size)

    def features(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803 - shape suffix
        """Pooled features (B, widths[-1]) before the projection, from volumes (B, 1, D, H, W) float32."""
        # A mean, not AdaptiveAvgPool3d: the backward of that one is not deterministic on CUDA.
        features_BC: Tensor = self.blocks(volumes_B1DHW).mean(dim=(2, 3, 4))  # noqa: N806
        return features_BC

    def forward(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803
        """Embeddings (B, E) from volumes (B, 1, D, H, W) float32, z-scored."""
        embeddings_BE: Tensor = self.projection(self.features(volumes_B1DHW))  # noqa: N806
        return embeddings_BE


def _blocks(widths: Sequence[int]) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    previous = 1
    for index, width in enumerate(widths):
        is_last = index == len(widths) - 1
        blocks.append(
            Convolution(
                spatial_dims=3,
                in_channels=previous,
                out_channels=width,
                strides=2,
                kernel_size=3,
                adn_ordering="A" if is_last else "NA",
                norm=("group", {"num_groups": width // CHANNELS_PER_GROUP}),
                act="relu",
            )
        )
        previous = width
    return blocks
