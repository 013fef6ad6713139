"""The image encoder that ships with fedhealth: pretrained on synthetic phantoms, not clinical.

`benchmarks/pretrain_encoder.py` makes it, and its readout of the lesion load, from the public MNI152 template; no
patient was involved. A file is checked against its digest below before a byte of it is used.
"""

import hashlib
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from fedhealth.contracts.data import VolumeModality
from fedhealth.errors import ConfigError
from fedhealth.models.image_encoder import ImageEncoder
from fedhealth.models.multimodal_options import PHANTOM_EMBEDDING_SIZE, PHANTOM_WIDTHS

ENCODER_WIDTHS = PHANTOM_WIDTHS
ENCODER_EMBEDDING_SIZE = PHANTOM_EMBEDDING_SIZE
WEIGHTS_FILE = Path(__file__).parent / "weights" / "phantom_encoder.safetensors"
WEIGHTS_SHA256 = "b8638933b2e63e03d2bb2e81151add8ebd0b5241beebf447314e986454c03f12"
READOUT_FILE = WEIGHTS_FILE.with_name("phantom_readout.safetensors")
READOUT_SHA256 = "9b9c039ec1e9181f48d381376d9f5fb3df2b58d2f9d723a51d2d3441c0ad95bf"
LABEL = "pretrained on synthetic phantoms, not clinical"


def load_phantom_encoder(encoder: ImageEncoder, *, path: Path = WEIGHTS_FILE) -> None:
    """Put the shipped weights into an encoder of `ENCODER_WIDTHS` and `ENCODER_EMBEDDING_SIZE`.

    Raises:
        ConfigError: FH-MODEL-010 the file is missing or not the one that was released.
    """
    encoder.load_state_dict(_read(path, WEIGHTS_SHA256))


def check_phantom_fits(modality: VolumeModality) -> None:
    """Refuse 2D images: the shipped convolutions have three axes. Raises ConfigError FH-MODEL-030."""
    if modality.spatial_dims != 3:  # noqa: PLR2004 - i, j, k
        raise ConfigError(
            "FH-MODEL-030",
            f"the shipped encoder is for volumes, and modality {modality.name!r} is a 2D image.",
            why="It was pretrained on three-dimensional phantoms.",
            fix="Use model multimodal with image_weights random in study.yaml.",
        )


class PhantomLoad(nn.Module):
    """The shipped encoder with its readout: one number a volume, standard normal over phantoms.

    The readout is the least-squares fit of the log lesion load of phantoms; both are frozen.

    Raises:
        ConfigError: FH-MODEL-010 a file is missing or not the one that was released.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageEncoder(ENCODER_WIDTHS, ENCODER_EMBEDDING_SIZE)
        load_phantom_encoder(self.encoder)
        self.readout = nn.Linear(ENCODER_EMBEDDING_SIZE, 1)
        self.readout.load_state_dict(_read(READOUT_FILE, READOUT_SHA256))
        self.requires_grad_(False)

    def forward(self, volumes_B1DHW: Tensor) -> Tensor:  # noqa: N803 - shape suffix
        """(B, 1) float32 from volumes (B, 1, D, H, W) float32, z-scored."""
        load: Tensor = self.readout(self.encoder(volumes_B1DHW))
        return load


def _read(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        payload = path.read_bytes()
    except OSError:
        payload = b""
    digest = hashlib.sha256(payload).hexdigest()
    if digest != expected:
        raise ConfigError(
            "FH-MODEL-010",
            "the shipped pretrained encoder is missing or damaged.",
            why=f"Its SHA-256 is {digest[:16]}..., expected {expected[:16]}...; sites that start from "
            "different weights would average different models.",
            fix="Reinstall fedhealth, or set model.options.image_weights to random in study.yaml.",
        )
    tensors: dict[str, Tensor] = safetensors.torch.load(payload)
    return tensors
