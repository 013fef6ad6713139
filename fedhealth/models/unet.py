"""A U-Net over all volume modalities of a patient: entry point ``unet`` of group ``fedhealth.models``.

Ronneberger et al. 2015, "U-Net"; MONAI's BasicUNet, with GroupNorm in place of its InstanceNorm and upsampling that
has no weights, so that private training needs no pass for each patient. Reads no table.
"""

from collections.abc import Mapping

import torch
from monai.networks.nets.basic_unet import BasicUNet
from pydantic import Field
from torch import Tensor, nn

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.data.batch import Batch
from fedhealth.errors import ConfigError
from fedhealth.models.options import parse_options

CHANNELS_PER_GROUP = 4
SMALLEST_SIDE = 16
"""Four halvings leave one voxel."""


class UNetOptions(ConfigModel):
    """Options of the model in study.yaml."""

    width: int = Field(
        8,
        ge=CHANNELS_PER_GROUP,
        le=64,
        multiple_of=CHANNELS_PER_GROUP,
        description="Channels at full resolution, a multiple of 4; each halving doubles them, up to 16 times as many.",
    )


class UNet(nn.Module):
    """Logits for every voxel, from two channels a modality: its intensities, and whether it is there.

    A modality that a patient lacks is zeros in both. All modalities lie on one grid.

    Args:
        contract: volume modalities only, all of one shape.
        num_outputs: logits a voxel.
        options: see `UNetOptions`.

    Raises:
        ConfigError: FH-MODEL-021 a side of the grid is too short or the grids differ, FH-MODEL-022 the study has a
            table, or no volume.
    """

    head_prefixes: tuple[str, ...] = ("unet.final_conv.",)
    gives_voxels = True

    def __init__(self, contract: DataContract, num_outputs: int, options: UNetOptions) -> None:
        super().__init__()
        _check(contract)
        first = contract.volumes[0]
        self._names = [volume.name for volume in contract.volumes]
        self._is_flat = first.spatial_dims == 2  # noqa: PLR2004 - one slice
        width = options.width
        self.unet = BasicUNet(
            spatial_dims=first.spatial_dims,
            in_channels=2 * len(self._names),
            out_channels=num_outputs,
            features=(width, 2 * width, 4 * width, 8 * width, 16 * width, width),
            act=("relu", {"inplace": False}),
            norm=("group", {"num_groups": width // CHANNELS_PER_GROUP}),
            upsample="nontrainable",
        )

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs, D, H, W) float32."""
        channels = []
        for name in self._names:
            volume = batch.volumes[name]
            present = batch.present[name].to(volume.dtype).view(-1, 1, 1, 1, 1)
            channels += [volume * present, present.expand_as(volume)]
        inputs = torch.cat(channels, dim=1)
        if self._is_flat:
            logits: Tensor = self.unet(inputs.squeeze(-1)).unsqueeze(-1)
        else:
            logits = self.unet(inputs)
        return logits


def build_unet(
    contract: DataContract, num_outputs: int, options: Mapping[str, OptionValue]
) -> UNet:
    """A new model (a `ModelBuilder`).

    Raises:
        ConfigError: FH-MODEL-001 an option is wrong; or as `UNet`.
    """
    return UNet(contract, num_outputs, parse_options(UNetOptions, options, owner="model 'unet'"))


def _check(contract: DataContract) -> None:
    if contract.tables or not contract.volumes:
        raise ConfigError(
            "FH-MODEL-022",
            f"model unet reads volumes only, the study has {len(contract.tables)} tables and "
            f"{len(contract.volumes)} volumes.",
            why="A table that the model does not read would be collected for nothing.",
            fix="Leave tables out of data.modalities, or name another model.",
        )
    first = contract.volumes[0]
    sides = first.shape[: first.spatial_dims]
    same = all(
        (v.shape, v.spacing_mm, v.orientation) == (first.shape, first.spacing_mm, first.orientation)
        for v in contract.volumes
    )
    if not same or min(sides) < SMALLEST_SIDE:
        raise ConfigError(
            "FH-MODEL-021",
            "model unet needs all volumes on one grid, with sides of at least 16 voxels.",
            why="They are channels of one image, which is halved four times.",
            fix="Give the volumes in data.modalities the same shape, spacing and orientation.",
        )
