"""Each patient's own gradient, one patient at a time: what every model can do. Called by `clipped_sum`.

It costs a forward and a backward pass a patient, and is what book-keeping is held against.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from fedhealth.data.batch import Batch
from fedhealth.models.patient_rows import rows_of_patients
from fedhealth.models.protocol import Task
from fedhealth.privacy.dp_sgd.clip_factor import clip_factors

Gradients = dict[str, Tensor]


def patient_gradients(
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    owners: Tensor,
) -> Iterator[Gradients]:
    """The gradient of each patient's mean loss over its records, by name; what the loss does not reach is left out.

    Args:
        model: in training mode.
        task: its `loss` is the mean over records.
        parameters: all that is trained.
        batch: R records.
        owners: (R,) int64 patient of each record, 0..P-1.

    Yields:
        P mappings, in order.
    """
    tensors = list(parameters.values())
    for patient in range(int(owners.max()) + 1 if owners.numel() else 0):
        rows = (owners == patient).nonzero().squeeze(1)
        with rows_of_patients(torch.zeros_like(rows)):
            loss = task.loss(model(batch.take(rows)), batch.labels[rows])
        found = torch.autograd.grad(loss, tensors, allow_unused=True)
        yield {
            name: gradient.to_dense() if gradient.is_sparse else gradient
            for name, gradient in zip(parameters, found, strict=True)
            if gradient is not None  # type: ignore[redundant-expr]  # torch types allow_unused away
        }


def add_clipped_by_loop(
    model: nn.Module,
    task: Task,
    *,
    sums: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    owners: Tensor,
    clipping_norm: float,
) -> int:
    """Add each patient's clipped gradient to `sums` (float64, by name).

    Returns:
        How many patients were left out, because their gradient is not finite or far too long.
    """
    num_left_out = 0
    for gradients in patient_gradients(model, task, parameters, batch, owners):
        squares = [_squared_norm(gradient) for gradient in gradients.values()]
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
        factor = clip_factors(total, clipping_norm=clipping_norm)
        if factor == 0:
            num_left_out += 1  # multiplying by it would not help: 0 * NaN is NaN
            continue
        for name, gradient in gradients.items():
            sums[name].add_(gradient * factor)
    return num_left_out


def _squared_norm(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    return norm.square()
