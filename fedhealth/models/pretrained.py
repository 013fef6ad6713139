"""The image encoder that ships with fedhealth: pretrained on synthetic phantoms, not clinical.

`benchmarks/pretrain_encoder.py` makes it from the public MNI152 template; no patient was involved. The file is
checked against the digest below before a byte of it is used.
"""

import hashlib
from pathlib import Path

import safetensors.torch

from fedhealth.errors import ConfigError
from fedhealth.models.image_encoder import ImageEncoder

ENCODER_WIDTHS = (8, 16, 32)
ENCODER_EMBEDDING_SIZE = 16
WEIGHTS_FILE = Path(__file__).parent / "weights" / "phantom_encoder.safetensors"
WEIGHTS_SHA256 = "b8638933b2e63e03d2bb2e81151add8ebd0b5241beebf447314e986454c03f12"
LABEL = "pretrained on synthetic phantoms, not clinical"


def load_phantom_encoder(encoder: ImageEncoder, *, path: Path = WEIGHTS_FILE) -> None:
    """Put the shipped weights into an encoder of `ENCODER_WIDTHS` and `ENCODER_EMBEDDING_SIZE`.

    Raises:
        ConfigError: FH-MODEL-010 the file is missing or not the one that was released.
    """
    try:
        payload = path.read_bytes()
    except OSError:
        payload = b""
    digest = hashlib.sha256(payload).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ConfigError(
            "FH-MODEL-010",
            "the shipped pretrained encoder is missing or damaged.",
            why=f"Its SHA-256 is {digest[:16]}..., expected {WEIGHTS_SHA256[:16]}...; sites that start from "
            "different weights would average different models.",
            fix="Reinstall fedhealth, or set model.options.image_weights to random in study.yaml.",
        )
    encoder.load_state_dict(safetensors.torch.load(payload))
