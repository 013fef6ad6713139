"""What evaluation asks of any task: predictions, values of each record, one metric to compare by. Called by training.

A task of today's binary protocol answers with its probabilities, AUC, accuracy, Brier score and log loss; a
`ShapedTask` answers for itself.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.models import metrics
from fedhealth.models.protocol import BinaryTask, Predictions, ShapedTask, Task

Values = NDArray[np.float64]


def predictions_of(task: Task, logits: Tensor) -> Predictions:
    """(N, ...) what the task predicts, (N,) for a binary one.

    Raises:
        TypeError: the task is neither a `BinaryTask` nor a `ShapedTask`.
    """
    if isinstance(task, ShapedTask):
        return task.predictions(logits)
    if isinstance(task, BinaryTask):
        return task.probabilities(logits)
    raise TypeError(f"{type(task).__name__} has neither predictions nor probabilities")


def primary_metric(task: Task | None) -> str:
    """Name of the metric that models are compared by first; None stands for a binary task."""
    return task.primary_metric if isinstance(task, ShapedTask) else "auc"


def record_values(
    task: Task | None, predictions: Predictions, labels: NDArray[Any]
) -> dict[str, Values]:
    """Metrics that are means over records, (N,) float64 each, all finite; None stands for a binary task.

    A binary prediction that is not finite counts as wrong with certainty: 0, 1 and 36 nats.
    """
    if isinstance(task, ShapedTask):
        return task.record_values(predictions, labels)
    certain_and_wrong = np.where(labels == 1, 0.0, 1.0)
    probabilities = np.where(np.isfinite(predictions), predictions, certain_and_wrong)
    return {
        "accuracy": metrics.hits(probabilities, labels).astype(np.float64),
        "brier": metrics.squared_errors(probabilities, labels),
        "log_loss": metrics.log_losses(probabilities, labels),
    }


def resampled_metric(
    task: Task | None, predictions: Predictions, labels: NDArray[Any], weights: Values
) -> Values:
    """(R,) primary metric with records counted `weights` (R, N) times; None stands for a binary task."""
    if isinstance(task, ShapedTask):
        return task.resampled_metric(predictions, labels, weights)
    return metrics.resampled_auc(np.asarray(predictions, dtype=np.float64), labels, weights)
