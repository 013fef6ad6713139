"""Hide present modalities at random while training, so that the model learns to do without. Called by `learner`."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fedhealth.data.batch import Batch

DrawScores = Callable[[int, int], Tensor]
"""Makes (B, M) float32 scores, independent and uniform on [0, 1), on the CPU: every device then hides the same."""


def scores_from(generator: torch.Generator) -> DrawScores:
    """Scores of a seeded generator, for training that is to be repeatable."""
    return lambda num_rows, num_columns: torch.rand((num_rows, num_columns), generator=generator)


def drop_modalities(batch: Batch, rate: float, draw_scores: DrawScores) -> Batch:
    """The batch with some present modalities hidden, each with probability `rate`, but never all of a patient.

    A hidden modality looks exactly like one that the patient lacks: `present` is False, its values are zero,
    its indicators 1.

    Args:
        batch: B patients, on the CPU or on a device. Its hidden volumes are zeroed in place (a copy of them
            would cost more than all the rest of this), so the caller hands over a batch of its own.
        rate: in [0, 1); 0 returns the batch itself.
        draw_scores: where the chance comes from.
    """
    if rate == 0 or len(batch.present) < 2:  # noqa: PLR2004 - the only modality is never hidden
        return batch
    names = list(batch.present)
    present_BM = torch.stack([batch.present[name] for name in names], dim=1).cpu()  # noqa: N806
    scores = draw_scores(*present_BM.shape)
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
        tables={n: v.masked_fill(hidden[n][:, None], 0.0) for n, v in batch.tables.items()},
        missing={n: v.masked_fill(hidden[n][:, None], 1.0) for n, v in batch.missing.items()},
        volumes={n: v.index_fill_(0, _rows(hidden[n]), 0.0) for n, v in batch.volumes.items()},
    )


def _rows(hidden_B: Tensor) -> Tensor:  # noqa: N803 - shape suffix
    return hidden_B.nonzero().squeeze(1)
