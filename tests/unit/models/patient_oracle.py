"""Clipped gradients written down once more, one patient at a time, without any of the package's private training."""

import torch
from torch import nn

from fedhealth.contracts.data import DataContract
from fedhealth.models.build import trainable_parameters
from fedhealth.models.classification import BinaryClassification
from fedhealth.models.example_batch import random_batch, without
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients

NUM_PATIENTS = 5
CLIPPING_NORM = 0.1


def assert_one_pass_is_the_patient_loop(
    model: nn.Module, contract: DataContract, *, tolerance: float = 1e-4
) -> None:
    """The sum of clipped gradients from one pass is the sum of gradients that autograd gives for each patient."""
    batch = random_batch(contract, NUM_PATIENTS, seed=3)
    for row, modality in enumerate(contract.modalities):
        batch = without(batch, modality.name, torch.arange(NUM_PATIENTS) == row)
    task = BinaryClassification(contract, {})
    parameters = dict(trainable_parameters(model))
    gradients = ClippedGradients(model, task, parameters, batch)
    assert gradients.uses_book_keeping
    found = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    owners = torch.arange(NUM_PATIENTS)
    assert gradients.add_to(found, batch, owners, clipping_norm=CLIPPING_NORM) == 0
    gradients.close()
    wanted = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for row in range(NUM_PATIENTS):
        alone = batch.take(torch.tensor([row]))
        model.zero_grad()
        task.loss(model(alone), alone.labels).backward()
        own = {n: p.grad.double() for n, p in parameters.items() if p.grad is not None}
        norm = torch.sqrt(sum((g.square().sum() for g in own.values()), torch.tensor(0.0)))
        for name, gradient in own.items():
            wanted[name] += gradient * min(1.0, CLIPPING_NORM / float(norm))
    length = float(torch.sqrt(sum((w.square().sum() for w in wanted.values()), torch.tensor(0.0))))
    assert length > 0
    for name, expected in wanted.items():
        assert float((found[name] - expected).norm()) <= tolerance * length, name
