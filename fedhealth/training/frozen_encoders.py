"""Run a frozen image encoder once a patient instead of once a step. Called by local training and its baselines."""

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from fedhealth.data.batch import PatientDataset
from fedhealth.data.feature_cache import FeatureCache
from fedhealth.training.learner import Learner

FEATURES_VERSION = 1
"""Part of every digest: raise it when an encoder computes something else from the same weights."""


def apply_frozen_encoders(
    learner: Learner,
    datasets: Sequence[PatientDataset],
    *,
    batch_size: int,
    cache_dir: Path | None = None,
) -> None:
    """Take frozen encoders out of the learner's model and give the datasets their embeddings instead.

    The model's outputs stay the same up to the order of float32 sums. A model without a method
    `take_out_frozen_encoders`, or without a frozen encoder, is left as it is. Give all datasets that the learner
    will see: afterwards it cannot read a volume.

    Args:
        learner: whose model loses its frozen encoders.
        datasets: all that it will see.
        batch_size: patients an encoding.
        cache_dir: the site's private folder for caches, where embeddings outlive the process; None keeps none.

    Raises:
        SiteDataError: a volume cannot be read.
    """
    take_out: Callable[[], dict[str, nn.Module]] | None = getattr(
        learner.model, "take_out_frozen_encoders", None
    )
    encoders = take_out() if take_out is not None else {}
    embedders = {name: _embedder(encoder, learner.device) for name, encoder in encoders.items()}
    caches = {
        name: FeatureCache(
            folder=cache_dir / "features", encoder_digest=encoder_digest(encoder, learner.device)
        )
        for name, encoder in encoders.items()
        if cache_dir is not None
    }
    for dataset in datasets:
        dataset.encode_volumes(embedders, batch_size=batch_size, caches=caches)


def encoder_digest(encoder: nn.Module, device: torch.device) -> str:
    """SHA-256 in hex over an encoder's layers and weights, the versions of the code, and the kind of device."""
    versions = f"{FEATURES_VERSION}|{version('fedhealth')}|{torch.__version__}|{device.type}"
    digest = hashlib.sha256(f"{versions}|{encoder}".encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _embedder(encoder: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    def embed(volumes: Tensor) -> Tensor:
        with torch.no_grad():
            embedded: Tensor = encoder(volumes.to(device))
        return embedded

    return embed
