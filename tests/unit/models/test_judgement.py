"""A task written to the protocol of one probability is judged as it always was."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.models import metrics
from fedhealth.models.judgement import (
    predictions_of,
    primary_metric,
    record_values,
    resampled_metric,
)
from fedhealth.models.protocol import BinaryTask, ShapedTask
from fedhealth.testing.model_contract import example_contract


class TaskOfAnotherPackage:
    """As the plug-in reference had it before there were other shapes."""

    num_outputs: int = 1

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        """Nothing to check."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.softplus((1 - 2 * labels.float()) * logits[:, 0]).mean()

    def probabilities(self, logits: Tensor) -> NDArray[np.float64]:
        return torch.sigmoid(logits.double()).numpy().reshape(-1)

    def metrics(
        self, probabilities: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> dict[str, float]:
        return {"accuracy": metrics.accuracy(probabilities, labels)}


class TaskWithoutPredictions:
    num_outputs: int = 1

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        """Nothing to check."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mean() * labels.sum()

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        return {"accuracy": float((predictions == labels).mean())}


def test_a_task_of_one_probability_needs_nothing_new() -> None:
    task = TaskOfAnotherPackage(example_contract(), {})
    assert isinstance(task, BinaryTask)
    assert not isinstance(task, ShapedTask)
    logits = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    labels = np.arange(20) % 2
    predictions = predictions_of(task, logits)
    assert predictions == pytest.approx(1 / (1 + np.exp(-logits.numpy()[:, 0])), rel=1e-6)
    assert primary_metric(task) == primary_metric(None) == "auc"
    values = record_values(task, predictions, labels)
    assert values["accuracy"].mean() == task.metrics(np.asarray(predictions), labels)["accuracy"]
    assert values["log_loss"].mean() == pytest.approx(
        float(task.loss(logits, torch.tensor(labels)))
    )
    once = resampled_metric(task, predictions, labels, np.ones((1, 20)))
    assert once[0] == metrics.auc(np.asarray(predictions), labels)


def test_a_task_without_predictions_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="TaskWithoutPredictions"):
        predictions_of(TaskWithoutPredictions(example_contract(), {}), torch.zeros(1, 1))


def test_a_resample_without_one_class_has_no_auc() -> None:
    weights = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = resampled_metric(None, np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 0, 1, 1]), weights)
    assert np.isnan(found[0])
    assert found[1] == 1
