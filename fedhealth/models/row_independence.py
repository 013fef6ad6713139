"""Refuse a model in which patients of a batch see each other. Called before private training.

Clipping bounds what a patient adds to a sum of gradients only if each gradient is that patient's alone. A class
list catches what is known to mix; the model is also tried on made-up patients, together and alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedhealth.contracts.data import DataContract
from fedhealth.data.batch import Batch
from fedhealth.errors import PrivacyError
from fedhealth.models.example_batch import random_batch
from fedhealth.models.protocol import Task

NUM_PATIENTS = 4
_TOLERANCE = 1e-3
"""Of the largest output: float32 sums in another order differ by 1e-5, a batch statistic by order one."""
_WEIGHT_NOISE = 0.05
"""Added to all weights while a model is tried: a layer that begins at zero would hide what comes before it."""


def check_rows_are_independent(model: nn.Module, contract: DataContract) -> None:
    """Try the model and leave it as it was.

    Raises:
        PrivacyError: FH-PRIVACY-056 a layer mixes the patients of a batch, or an embedding changes its weights in
            the forward pass; with the layer's name.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            raise _mixes(name, f"a {type(layer).__name__}")
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            raise _mixes(name, "an embedding with max_norm, which changes its weights unclipped")
    device = next(model.parameters()).device
    with as_if_trained(model), torch.no_grad():
        batch = random_batch(contract, NUM_PATIENTS).to(device)
        if not torch.equal(model(batch), model(batch)):
            model.eval()  # it draws random numbers in training: only the evaluation can be compared
        mixing = _first_mixing_layer(model, batch)
    if mixing is not None:
        raise _mixes(mixing, "whose output for a patient depends on the others of the batch")


def check_loss_is_a_mean(task: Task) -> None:
    """Refuse a task whose loss compares the patients of a batch (attribute `rows_interact = True`).

    Raises:
        PrivacyError: FH-PRIVACY-058 the loss is no mean of one number a patient.
    """
    if getattr(task, "rows_interact", False):
        raise PrivacyError(
            "FH-PRIVACY-058",
            "the task's loss compares each patient with the others of the batch.",
            why="One patient then changes the gradients of others, and clipping one gradient bounds nothing.",
            fix="Use task survival_discrete_time, whose loss is a mean over patients, or no patient-level privacy.",
        )


@contextmanager
def as_if_trained(model: nn.Module) -> Iterator[None]:
    """Inside: training mode without dropout layers, and weights with some noise; afterwards all is as before."""
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    modes = [(layer, layer.training) for layer in model.modules()]
    generator = torch.Generator().manual_seed(0)
    try:
        model.train()
        for layer in model.modules():
            if isinstance(layer, _DropoutNd):
                layer.eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator) * _WEIGHT_NOISE
                parameter.add_(noise.to(parameter))
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(kept[name])
        for layer, was_training in modes:
            layer.training = was_training


def _first_mixing_layer(model: nn.Module, batch: Batch) -> str | None:
    """Name of the first layer, in order of use, whose rows differ between together and alone; None if none."""
    together = _outputs(model, batch)
    alone = [_outputs(model, batch.take(torch.tensor([row]))) for row in range(len(batch))]
    for index, (name, output) in enumerate(together):
        parts = [outputs[index] for outputs in alone if index < len(outputs)]
        if any(part[0] != name for part in parts) or len(parts) < len(batch):
            continue  # another way through the model: the whole model, last in the list, is compared too
        rows = torch.cat([part[1] for part in parts]) if output.dim() else output
        if rows.shape != output.shape:
            continue
        limit = _TOLERANCE * max(float(output.abs().max()), 1e-6)
        if not bool(((rows - output).abs() <= limit).all()):
            return name
    return None


def _outputs(model: nn.Module, batch: Batch) -> list[tuple[str, Tensor]]:
    """Outputs of layers without layers inside, in order of use, then that of the model."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:  # noqa: ANN401 - torch's hook type
        def hook(_layer: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
                found.append((name, output.detach().clone()))

        return hook

    handles = [
        layer.register_forward_hook(note(name))
        for name, layer in model.named_modules()
        if name and not any(True for _ in layer.children())
    ]
    try:
        logits = model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [*found, ("", logits)]


def _mixes(name: str, what: str) -> PrivacyError:
    layer = (
        f"layer {name!r} is {what}"
        if not what.startswith("whose")
        else f"layer {name!r} is one {what}"
    )
    subject = (
        layer if name else "the model itself, outside of its layers, mixes the patients of a batch"
    )
    return PrivacyError(
        "FH-PRIVACY-056",
        f"{subject}.",
        why="One patient would change the gradients of others, and clipping would bound nothing.",
        fix="Use GroupNorm or LayerNorm, and compute nothing over the batch.",
    )
