"""Hide present modalities at random while training, so that the model learns to do without. Called by `learner`."""

from dataclasses import replace

import torch
from torch import Tensor

from fedhealth.data.batch import Batch


def drop_modalities(batch: Batch, rate: float, generator: torch.Generator) -> Batch:
    """The batch with some present modalities hidden, each with probability `rate`, but never all of a patient.

    A hidden modality looks exactly like one that the patient lacks: `present` is False, its values are zero,
    its indicators 1.

    Args:
        batch: B patients, on the CPU or on a device; unchanged.
        rate: in [0, 1); 0 returns the batch itself.
        generator: a CPU generator, so that every device hides the same.
    """
    if rate == 0 or len(batch.present) < 2:  # noqa: PLR2004 - the only modality is never hidden
        return batch
    names = list(batch.present)
    present_BM = torch.stack([batch.present[name] for name in names], dim=1).cpu()  # noqa: N806
    scores = torch.rand(present_BM.shape, generator=generator)
    # The present modality with the largest score stays, whatever the rate.
    best = torch.where(present_BM, scores, -1.0).argmax(dim=1, keepdim=True)
    kept = present_BM & (scores >= rate)
    kept |= present_BM & torch.zeros_like(present_BM).scatter(1, best, True)
    hidden = {
        name: (present_BM[:, m] & ~kept[:, m]).to(batch.labels.device)
        for m, name in enumerate(names)
    }
    return replace(
        batch,
        present={name: batch.present[name] & ~hidden[name] for name in names},
        tables={n: v.masked_fill(_like(hidden[n], v), 0.0) for n, v in batch.tables.items()},
        missing={n: v.masked_fill(_like(hidden[n], v), 1.0) for n, v in batch.missing.items()},
        volumes={n: v.masked_fill(_like(hidden[n], v), 0.0) for n, v in batch.volumes.items()},
    )


def _like(hidden_B: Tensor, values: Tensor) -> Tensor:  # noqa: N803 - shape suffix
    """(B,) as (B, 1, ..., 1), with as many axes as `values`."""
    return hidden_B.reshape(-1, *[1] * (values.dim() - 1))
