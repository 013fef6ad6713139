"""The optimiser steps of one local round. Called by `supervised`; reads like the list of a step's parts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedhealth.data.batch import PatientDataset
from fedhealth.errors import CancelledTrainingError
from fedhealth.training.learner import Learner, non_finite
from fedhealth.training.modality_dropout import drop_modalities, scores_from
from fedhealth.training.pulls import pull_of
from fedhealth.training.shared_records import SharedOrder, SharedRecords

if TYPE_CHECKING:
    from fedhealth.config.study import OptimizerConfig, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one round's steps need besides model and data.

    Attributes:
        config: the study's training section.
        seed: of batch order and modality dropout.
        proximal_mu: strength of the proximal term, 0 for none.
        is_cancelled: asked before every step.
        shared: public records that every step takes some of; None: none.
        anchors: what the proximal term pulls shared parameters to, by name; None: to where they begin (FedProx).
        corrections: added to the gradients of shared parameters, by name (SCAFFOLD's c - c_i); none, nothing.
    """

    config: "TrainingConfig"
    seed: int
    proximal_mu: float
    is_cancelled: Callable[[], bool]
    shared: SharedRecords | None = None
    anchors: Mapping[str, Tensor] | None = field(default=None, repr=False)
    corrections: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def run_steps(learner: Learner, dataset: PatientDataset, plan: StepPlan) -> float:
    """Train the learner's shared and private parameters in place, with a fresh optimiser.

    The pull to the shared model, of FedProx, MR-MTL or Ditto, is in `pulls`.

    With `plan.shared` every step has its fraction of public records beside the site's own (see `shared_records`).

    Returns:
        The mean task loss over the round, shared records included, without the proximal term.

    Raises:
        CancelledTrainingError: FH-TRAIN-001 `plan.is_cancelled()` turned true.
        TrainingError: FH-TRAIN-004 the loss or a trained weight is not finite.
        SiteDataError: a volume cannot be read.
    """
    model, config = learner.model, plan.config
    parameters = [*learner.shared.values(), *learner.private.values()]
    optimizer = make_optimizer(config.optimizer, parameters)
    pull = pull_of(learner, plan)
    generator = torch.Generator().manual_seed(plan.seed)
    order = None if plan.shared is None else SharedOrder(plan.shared, plan.seed)
    loss_sum, num_seen = torch.zeros((), dtype=torch.float64), 0
    model.train()
    # Layers that draw random numbers (a user's Dropout) use the global generators.
    with torch.random.fork_rng(devices=cuda_devices(learner)):
        torch.manual_seed(plan.seed)
        for rows in batch_order(len(dataset), config, generator):
            stop_if(plan.is_cancelled)
            batch = dataset.batch(rows)
            if plan.shared is not None and order is not None:
                batch = batch.join(plan.shared.dataset.batch(order.beside(len(rows))))
            batch = drop_modalities(batch, config.modality_dropout, scores_from(generator))
            batch = batch.to(learner.device)
            optimizer.zero_grad(set_to_none=True)
            loss = learner.task.loss(model(batch), batch.labels)
            if not torch.isfinite(loss):
                raise non_finite("the training loss")
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            pull.add_gradient()
            add_corrections(learner, plan.corrections)
            optimizer.step()
            pull.follow_step()
            loss_sum += loss.detach().cpu().double() * len(batch)
            num_seen += len(batch)
    # The gate looks at what leaves; nobody else looks at a private head.
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise non_finite("a trained weight")
    return float(loss_sum) / num_seen


def batch_order(
    num_patients: int, config: "TrainingConfig", generator: torch.Generator
) -> Iterator[Tensor]:
    """Row numbers of each step's batch: a new permutation each epoch, its last batch as small as it comes.

    Args:
        num_patients: at least 1.
        config: batch size, and either epochs or steps.
        generator: fixes the order.

    Yields:
        (B,) int64.
    """
    num_steps = count_steps(num_patients, config)
    done = 0
    while done < num_steps:
        order = torch.randperm(num_patients, generator=generator)
        for rows in torch.split(order, config.batch_size)[: num_steps - done]:
            yield rows
            done += 1


def count_steps(num_patients: int, config: "TrainingConfig") -> int:
    """Optimiser steps of a round without privacy: `local_steps`, or the batches of `local_epochs`."""
    if config.local_steps is not None:
        return config.local_steps
    return -(-num_patients // config.batch_size) * (config.local_epochs or 1)


def make_optimizer(
    config: "OptimizerConfig", parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """The study's optimiser, without any state from an earlier round."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay)


def add_corrections(learner: Learner, corrections: Mapping[str, Tensor]) -> None:
    """Add each correction to its shared parameter's gradient, whether the batch gave it one or not."""
    for name, correction in corrections.items():
        parameter = learner.shared[name]
        # A copy where there was no gradient: the next step must not add to the correction itself.
        parameter.grad = (
            correction.clone() if parameter.grad is None else parameter.grad.add_(correction)
        )


def stop_if(is_cancelled: Callable[[], bool]) -> None:
    """Raises CancelledTrainingError (FH-TRAIN-001) when asked to stop."""
    if is_cancelled():
        raise CancelledTrainingError(
            "FH-TRAIN-001",
            "training was cancelled.",
            why="The round's deadline passed or the site is stopping; this round's work is dropped.",
        )


def cuda_devices(learner: Learner) -> list[torch.device]:
    """The devices besides the CPU whose generator a layer may use."""
    return [learner.device] if learner.device.type == "cuda" else []
