"""A model, its task and its weights: what local training and evaluation share. Called by both."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhealth.config.load import study_digest
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.errors import ConfigError, TrainingError
from fedhealth.models.build import (
    build_model,
    build_task,
    check_output_fits,
    trainable_parameters,
)
from fedhealth.models.judgement import predictions_of
from fedhealth.models.protocol import Predictions
from fedhealth.training.personalisation.private_names import private_names

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

Vector = NDArray[np.float32]
Tensors = dict[str, Vector]


class Learner:
    """The study's model on one device, with its parameters divided into shared and private ones.

    `study_sha256` is the digest of the study as this site builds it: what is kept between rounds is bound to it.

    Args:
        study: model, task, data contract and seed.
        run: its personalisation decides which parameters are private.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: the model or the task is wrong (see `fedhealth.models.build`), FH-TRAIN-002 there is no
            such device, FH-MODEL-008 the run keeps tensors at the site that the model does not have, FH-MODEL-040
            nothing is shared.
    """

    def __init__(self, study: "Study", run: "RunPlan", *, device: str = "cpu") -> None:
        self.study_sha256 = study_digest(study)
        self.contract = study.data.to_contract(seed=study.seed)
        self.task = build_task(study, self.contract)
        self.device = choose_device(device)
        self.model: nn.Module = build_model(
            study, self.contract, num_outputs=self.task.num_outputs
        ).to(self.device)
        check_output_fits(self.task, self.model)
        own = private_names(study, run, self.model)
        named = trainable_parameters(self.model)
        self.shared = {name: p for name, p in named if name not in own}
        self.private = {name: p for name, p in named if name in own}
        if run.personalisation == "private_blocks":
            # In an order that models of different layers have in common.
            self.shared = dict(sorted(self.shared.items()))

    def predict(self, dataset: PatientDataset, *, batch_size: int) -> Predictions:
        """(N, ...) what the task predicts: (N,) probabilities of label 1 for a binary one.

        Raises:
            TrainingError: FH-TRAIN-004 the model's output is not finite.
            SiteDataError: a volume cannot be read.
        """
        predictions = self.predict_unchecked(dataset, batch_size=batch_size)
        if not np.isfinite(predictions).all():
            raise non_finite("the model's output")
        return predictions

    def predict_unchecked(self, dataset: PatientDataset, *, batch_size: int) -> Predictions:
        """As `predict`, not finite where the model's output is not.

        Raises:
            SiteDataError: a volume cannot be read.
        """
        self.model.eval()
        parts: list[Predictions] = []
        with torch.inference_mode():
            for start in range(0, len(dataset), batch_size):
                rows = np.arange(start, min(start + batch_size, len(dataset)))
                logits = self.model(dataset.batch(rows).to(self.device))
                parts.append(predictions_of(self.task, logits))
        nobody = torch.zeros(0, self.task.num_outputs)
        return np.concatenate(parts or [predictions_of(self.task, nobody)])


def choose_device(name: str) -> torch.device:
    """The torch device behind ``auto``, ``cpu`` or ``cuda``, with reduced-precision shortcuts off.

    Raises:
        ConfigError: FH-TRAIN-002 the device is unknown or this machine does not have it.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise ConfigError(
            "FH-TRAIN-002",
            f"device {name!r} is unknown.",
            fix="Use auto, cpu or cuda in site.yaml.",
        )
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError(
            "FH-TRAIN-002",
            "device cuda is configured, and torch finds no CUDA device here.",
            why="Training on the CPU instead, unasked, could miss every deadline.",
            fix="Set device to auto or cpu in site.yaml, or install the driver and a CUDA build of torch.",
        )
    if name == "cpu" or not has_cuda:
        return torch.device("cpu")
    # TF32 keeps 10 bits of mantissa: a GPU site would then train another model than a CPU site.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def spec_of(parameters: Mapping[str, nn.Parameter]) -> TensorSpec:
    """The tensor spec of named parameters, in their order."""
    return TensorSpec.of({name: _array(p) for name, p in parameters.items()})


def dump(parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Copies of named parameters as float32 arrays."""
    return {name: _array(p).copy() for name, p in parameters.items()}


def load(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Vector]) -> None:
    """Set named parameters from arrays of the same names and shapes."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            # A copy: the array may be a read-only view of bytes from the socket.
            parameter.copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32)))


def non_finite(what: str) -> TrainingError:
    """The error for a value that is NaN or infinite; it holds no value."""
    return TrainingError(
        "FH-TRAIN-004",
        f"{what} is not finite.",
        why="The training diverged; such an update would spoil the model of every site.",
        fix="Lower training.optimizer.learning_rate in study.yaml.",
    )


def _array(parameter: nn.Parameter) -> Vector:
    values: Vector = parameter.detach().cpu().numpy()
    return values
