"""Made-up batches of a contract's shape, to try a model on. Called by model checks and by the model contract suite.

Nothing of them comes from a patient: what is found out about a model with them may be told.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fedhealth.contracts.data import DataContract, MaskLabel, MultiLabel, SurvivalLabel
from fedhealth.data.batch import Batch
from fedhealth.data.tables import table_encoders


def random_batch(contract: DataContract, count: int, *, seed: int = 0) -> Batch:
    """B patients with every modality, drawn from a seed."""
    encoders = table_encoders(contract)
    empty = Batch(
        tables={t.name: torch.zeros(0, encoders[t.name].num_features) for t in contract.tables},
        missing={t.name: torch.zeros(0, encoders[t.name].num_columns) for t in contract.tables},
        volumes={v.name: torch.zeros(0, 1, *v.shape) for v in contract.volumes},
        present={m.name: torch.zeros(0, dtype=torch.bool) for m in contract.modalities},
        labels=_no_labels(contract),
    )
    batch = random_batch_like(empty, count, seed=seed)
    if contract.target is not None:
        return batch
    return replace(batch, labels=torch.arange(count) % len(contract.label_codes))


def random_batch_like(batch: Batch, count: int, *, seed: int = 0) -> Batch:
    """As `random_batch`, with the widths and grids of a batch, of which no value is read; labels 0 and 1.

    Where labels are time and event, times are in [0, 1] and the first event is 0, the second 1, and so on.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {
        name: torch.rand(count, *values.shape[1:], generator=generator) * 2 - 1
        for name, values in batch.tables.items()
    }
    volumes = {
        name: torch.randn(count, *values.shape[1:], generator=generator)
        for name, values in batch.volumes.items()
    }
    return Batch(
        tables=tables,
        missing={name: torch.zeros(count, *v.shape[1:]) for name, v in batch.missing.items()},
        volumes=volumes,
        present={name: torch.ones(count, dtype=torch.bool) for name in batch.present},
        labels=_labels_like(batch.labels, count, generator),
    )


def _labels_like(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    alternating = torch.arange(count) % 2
    if labels.is_floating_point():
        return torch.stack([torch.rand(count, generator=generator), alternating.float()], dim=1)
    numbers = torch.arange(labels.shape[1:].numel()) % 2
    return (
        (alternating[:, None] + numbers).remainder(2).reshape(count, *labels.shape[1:]).to(labels)
    )


def _no_labels(contract: DataContract) -> Tensor:
    match contract.target:
        case None:
            return torch.zeros(0, dtype=torch.int64)
        case MultiLabel(columns=columns):
            return torch.zeros(0, len(columns), dtype=torch.int64)
        case SurvivalLabel():
            return torch.zeros(0, 2)
        case MaskLabel(grid=grid):
            return torch.zeros(0, *grid.shape, dtype=torch.uint8)


def without(batch: Batch, name: str, rows: Tensor | None = None) -> Batch:
    """The batch in which the patients of `rows` (B,) bool, or all, lack a modality."""
    gone = torch.ones(len(batch), dtype=torch.bool) if rows is None else rows
    tables, missing, volumes = dict(batch.tables), dict(batch.missing), dict(batch.volumes)
    if name in tables:
        tables[name] = tables[name].masked_fill(gone[:, None], 0.0)
        missing[name] = missing[name].masked_fill(gone[:, None], 1.0)
    else:
        volume = volumes[name]
        volumes[name] = volume.masked_fill(gone.view(-1, *([1] * (volume.dim() - 1))), 0.0)
    present = {**batch.present, name: batch.present[name] & ~gone}
    return replace(batch, tables=tables, missing=missing, volumes=volumes, present=present)
