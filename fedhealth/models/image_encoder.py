"""Encoders of a volume modality: what all have in common, and the default one, small and of MONAI blocks.

Called by `image_encoders` (one encoder a volume modality) and by `pretraining`. Shape legend: B patients,
C channels, D, H, W voxels along i, j, k (W is 1 for 2D images), F features, E embedding size.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fedhealth.models.multimodal_options import CHANNELS_PER_GROUP


class VolumeEncoder(nn.Module):
    """A backbone that makes features, and a linear projection to the embedding.

    Attributes:
        projection: from F features to E numbers.
        projection_is_new: whether the backbone is pretrained and the projection is not: it is then trained wherever
            the encoder is not wholly left out of training.
        adapts_projection: whether low-rank changes are made to the projection too. Not with a weights file, where it is
            trained in full instead: whether the file has one must not decide how parameters are called.
        weights_prefix: of the backbone's parameters in this module; published files do not have it.
    """

    projection: nn.Linear
    projection_is_new: bool = False
    adapts_projection: bool = True
    weights_prefix: str = ""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self._spatial_dims = spatial_dims

    def features(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803 - shape suffix
        """(B, F) from volumes (B, 1, D, H, W) float32, z-scored."""
        raise NotImplementedError

    def forward(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803
        """Embeddings (B, E) from volumes (B, 1, D, H, W) float32, z-scored."""
        embeddings_BE: Tensor = self.projection(self.features(volumes_B1DHW))  # noqa: N806
        return embeddings_BE

    def as_images(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803
        """(B, 1, D, H) for 2D images, else as it is."""
        return volumes_B1DHW.squeeze(-1) if self._spatial_dims == 2 else volumes_B1DHW  # noqa: PLR2004

    def take_out(self) -> tuple[nn.Module, nn.Module] | None:
        """What can run once a patient, since it is not trained, and what remains in the model for its output.

        None when the backbone is trained.
        """
        if not any(parameter.requires_grad for parameter in self.parameters()):
            return self, nn.Identity()
        trained = {id(p) for p in self.parameters() if p.requires_grad}
        if trained <= {id(p) for p in self.projection.parameters()}:
            return _Features(self), _Projection(self.projection)
        return None


class _Features(nn.Module):
    def __init__(self, encoder: VolumeEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803
        return self.encoder.features(volumes_B1DHW)


class _Projection(nn.Module):
    """Keeps the name of the parameters that remain."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, features_BF: Tensor) -> Tensor:  # noqa: N803
        embeddings_BE: Tensor = self.projection(features_BF)  # noqa: N806
        return embeddings_BE


class ImageEncoder(VolumeEncoder):
    """Blocks of Conv3d (3x3x3, stride 2), GroupNorm, ReLU; global average pooling; a linear projection.

    GroupNorm and not BatchNorm: no patient's features depend on another patient, and there is no running
    statistic that would have to travel (Wu and He 2018, "Group Normalization", section 3). The last block
    has no normalisation, so that the size of what it found reaches the pooling.

    Args:
        widths: channels of each block, multiples of 4; three blocks shrink the grid by 8.
        embedding_size: E.
        spatial_dims: 3, or 2 for images of one slice (Conv2d then).
    """

    def __init__(
        self, widths: Sequence[int], embedding_size: int, *, spatial_dims: int = 3
    ) -> None:
        super().__init__(spatial_dims)
        self.blocks = nn.Sequential(*_blocks(widths, spatial_dims))
        self.projection = nn.Linear(widths[-1], embedding_size)

    def features(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803
        """Pooled features (B, widths[-1]) before the projection, from volumes (B, 1, D, H, W) float32."""
        maps: Tensor = self.blocks(self.as_images(volumes_B1DHW))
        # A mean, not AdaptiveAvgPool3d: the backward of that one is not deterministic on CUDA.
        return maps.mean(dim=tuple(range(2, maps.dim())))


def _blocks(widths: Sequence[int], spatial_dims: int) -> list[nn.Module]:
    from monai.networks.blocks.convolutions import Convolution

    blocks: list[nn.Module] = []
    previous = 1
    for index, width in enumerate(widths):
        is_last = index == len(widths) - 1
        blocks.append(
            Convolution(
                spatial_dims=spatial_dims,
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
