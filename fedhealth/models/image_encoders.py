"""Image encoders by name. Called by `multimodal`, one encoder a volume modality.

None has BatchNorm or another buffer, and each works on volumes and on 2D images (a grid whose k side is 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fedhealth.contracts.data import VolumeModality
from fedhealth.errors import ConfigError
from fedhealth.models.image_encoder import ImageEncoder, VolumeEncoder
from fedhealth.models.monai_backbones import DENSENETS, RESNET_LAYERS, densenet, resnet
from fedhealth.models.swin_transformer import SwinTransformer
from fedhealth.models.vision_transformer import VisionTransformer

ImageEncoderName = Literal[
    "cnn",
    "resnet10",
    "resnet18",
    "densenet_small",
    "densenet121",
    "vit_tiny",
    "vit_base",
    "swin_unetr_24",
    "swin_unetr_48",
]

MIN_SIDE: Mapping[str, int] = {
    "cnn": 8,
    "resnet10": 16,
    "resnet18": 16,
    "densenet_small": 16,
    "densenet121": 32,
    "swin_unetr_24": 32,
    "swin_unetr_48": 32,
}
"""Below it a stage would look at a single voxel and its padding. A transformer needs whole patches instead."""


@dataclass(frozen=True, slots=True)
class TransformerPlan:
    """Sizes of a vision transformer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    inner_size: int


TRANSFORMERS: Mapping[str, TransformerPlan] = {
    "vit_tiny": TransformerPlan(192, 12, 3, 768),  # DeiT-Ti: Touvron et al. 2021, table 1
    "vit_base": TransformerPlan(768, 12, 12, 3072),  # ViT-B, and the defaults of MONAI's ViT
}


SWIN_WIDTHS: Mapping[str, int] = {"swin_unetr_24": 24, "swin_unetr_48": 48}
"""Channels after the patches: `feature_size` of MONAI's SwinUNETR, whose published weights have 48."""


class BackboneEncoder(VolumeEncoder):
    """A network that makes features of images, and a projection.

    Args:
        backbone: (B, 1, *sides) to (B, F).
        num_features: F.
        embedding_size: E.
        spatial_dims: 2 or 3.
    """

    weights_prefix = "backbone."

    def __init__(
        self, backbone: nn.Module, num_features: int, embedding_size: int, *, spatial_dims: int
    ) -> None:
        super().__init__(spatial_dims)
        self.backbone = backbone
        self.projection = nn.Linear(num_features, embedding_size)

    def features(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803 - shape suffix
        """(B, F) from volumes (B, 1, D, H, W) float32, z-scored."""
        features_BF: Tensor = self.backbone(self.as_images(volumes_B1DHW))  # noqa: N806
        return features_BF


def make_image_encoder(
    name: ImageEncoderName,
    modality: VolumeModality,
    *,
    embedding_size: int,
    widths: Sequence[int],
    patch_size: int,
    frozen_norm: bool,
) -> VolumeEncoder:
    """A new encoder; its weights come from torch's global generator.

    Args:
        name: which one.
        modality: its grid.
        embedding_size: E.
        widths: of the blocks of `cnn`.
        patch_size: of the transformers.
        frozen_norm: whether a pretrained network's BatchNorm statistics will be folded in, instead of GroupNorm.

    Raises:
        ConfigError: FH-MODEL-030 the grid is too small for it, or no multiple of the patch.
    """
    check_grid(name, modality, patch_size=patch_size)
    dims = modality.spatial_dims
    if name == "cnn":
        return ImageEncoder(widths, embedding_size, spatial_dims=dims)
    if name in RESNET_LAYERS:
        backbone, num_features = resnet(name, spatial_dims=dims, frozen_norm=frozen_norm)
    elif name in DENSENETS:
        backbone, num_features = densenet(name, spatial_dims=dims, frozen_norm=frozen_norm)
    elif name in SWIN_WIDTHS:
        backbone = SwinTransformer(SWIN_WIDTHS[name], spatial_dims=dims)
        num_features = backbone.num_features
    else:
        plan = TRANSFORMERS[name]
        backbone = VisionTransformer(
            modality.shape[:dims],
            patch_size=patch_size,
            hidden_size=plan.hidden_size,
            num_layers=plan.num_layers,
            num_heads=plan.num_heads,
            inner_size=plan.inner_size,
        )
        num_features = plan.hidden_size
    return BackboneEncoder(backbone, num_features, embedding_size, spatial_dims=dims)


def check_grid(name: ImageEncoderName, modality: VolumeModality, *, patch_size: int) -> None:
    """Refuse a grid that does not fit the encoder. Raises ConfigError FH-MODEL-030."""
    sides = modality.shape[: modality.spatial_dims]
    shown = " x ".join(str(side) for side in sides)
    if name in TRANSFORMERS:
        if any(side % patch_size for side in sides):
            raise ConfigError(
                "FH-MODEL-030",
                f"image_encoder {name} needs sides that are multiples of {patch_size}; "
                f"modality {modality.name!r} has {shown}.",
                why="A part of a patch would never be looked at.",
                fix="Change the grid (data.modalities), or image_patch_size, in study.yaml.",
            )
    elif min(sides) < MIN_SIDE[name]:
        raise ConfigError(
            "FH-MODEL-030",
            f"image_encoder {name} needs at least {MIN_SIDE[name]} voxels a side; "
            f"modality {modality.name!r} has {shown}.",
            why="Its last stages would look at a single voxel and its padding.",
            fix="Use a larger grid (data.modalities), or image_encoder cnn, in study.yaml.",
        )
