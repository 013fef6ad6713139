"""Run a frozen image encoder once a patient instead of once a step. Called by local training and its baselines."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedhealth.data.batch import PatientDataset
from fedhealth.training.learner import Learner


def apply_frozen_encoders(
    learner: Learner, datasets: Sequence[PatientDataset], *, batch_size: int
) -> None:
    """Take frozen encoders out of the learner's model and give the datasets their embeddings instead.

    The model's outputs stay the same up to the order of float32 sums. A model without a method
    `take_out_frozen_encoders`, or without a frozen encoder, is left as it is. Give all datasets that the learner
    will see: afterwards it cannot read a volume.

    Raises:
        SiteDataError: a volume cannot be read.
    """
    take_out: Callable[[], dict[str, nn.Module]] | None = getattr(
        learner.model, "take_out_frozen_encoders", None
    )
    encoders = take_out() if take_out is not None else {}
    embedders = {name: _embedder(encoder, learner.device) for name, encoder in encoders.items()}
    for dataset in datasets:
        dataset.encode_volumes(embedders, batch_size=batch_size)


def _embedder(encoder: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    def embed(volumes: Tensor) -> Tensor:
        with torch.no_grad():
            embedded: Tensor = encoder(volumes.to(device))
        return embedded

    return embed
