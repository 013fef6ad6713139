"""Multi-class classification: entry point ``multiclass_classification`` of group ``fedhealth.tasks``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.models import metrics
from fedhealth.models.metrics import SMALLEST_PROBABILITY
from fedhealth.models.options import parse_options
from fedhealth.models.protocol import Predictions
from fedhealth.models.task_parts import finite_or, macro_auc, means, with_primary, wrong_label

Values = NDArray[np.float64]
MIN_CLASSES = 2


class MulticlassClassificationOptions(ConfigModel):
    """Options of the task in study.yaml."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target that goes to all classes alike."
    )


class MulticlassClassification:
    """A logit for each of the contract's K label codes, softmax (a `ShapedTask`); predictions (N, K) sum to 1.

    Args:
        contract: with label codes.
        options: see `MulticlassClassificationOptions`.

    Raises:
        ConfigError: FH-MODEL-001 an option is wrong, FH-MODEL-007 the label is no code.
    """

    primary_metric = "macro_auc"
    metric_names = (
        "macro_auc",
        "accuracy",
        "balanced_accuracy",
        "log_loss",
        "brier",
        "calibration_error",
    )

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        if contract.target is not None or len(contract.label_codes) < MIN_CLASSES:
            raise wrong_label("multiclass_classification", "at least 2 label codes", contract)
        parsed = parse_options(
            MulticlassClassificationOptions, options, owner="task 'multiclass_classification'"
        )
        self._smoothing = parsed.label_smoothing
        self.num_outputs = len(contract.label_codes)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy in nats, of logits (B, K) and labels (B,) int64."""
        return self.row_losses(logits, labels).mean()

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) cross entropies in nats."""
        return cross_entropy(logits, labels, reduction="none", label_smoothing=self._smoothing)

    def predictions(self, logits: Tensor) -> Predictions:
        """(N, K) float64 probabilities."""
        values: Values = torch.softmax(logits.detach().cpu().double(), dim=1).numpy()
        return values

    def metrics(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, float]:
        """Macro AUC (one against the rest), accuracy, balanced accuracy, log loss, Brier score, calibration error.

        The macro AUC is the mean over the classes that some but not all patients have, the balanced accuracy over
        those that are there. The Brier score is half the sum of squares over classes, which for two classes is the
        binary one. The calibration error is that of the predicted class.
        """
        if len(labels) == 0:
            return {}
        hits = predictions.argmax(axis=1) == labels
        recalls = [hits[labels == k].mean() for k in np.unique(labels)]
        top = np.asarray(predictions.max(axis=1), dtype=np.float64)
        others = {
            **means(self.record_values(predictions, labels)),
            "balanced_accuracy": float(np.mean(recalls)),
            "calibration_error": metrics.calibration_error(top, hits.astype(np.int64)),
        }
        once = np.ones((1, len(labels)))
        area = float(self.resampled_metric(predictions, labels, once)[0])
        return with_primary(self.primary_metric, area, others)

    def record_values(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, Values]:
        """Accuracy (0 or 1), Brier score (0 to 1), log loss (at most 36 nats), (N,) each."""
        truth = self._one_hot(labels)
        wrong = self._one_hot((labels + 1) % self.num_outputs)
        kept = finite_or(predictions, wrong)
        of_truth = np.clip((kept * truth).sum(axis=1), SMALLEST_PROBABILITY, 1.0)
        return {
            "accuracy": (kept.argmax(axis=1) == labels).astype(np.float64),
            "brier": 0.5 * ((kept - truth) ** 2).sum(axis=1),
            "log_loss": -np.log(of_truth),
        }

    def resampled_metric(
        self, predictions: Predictions, labels: NDArray[Any], weights: Values, /
    ) -> Values:
        """(R,) macro AUC."""
        return macro_auc(predictions, self._one_hot(labels), weights)

    def _one_hot(self, labels: NDArray[Any]) -> Values:
        return np.asarray(labels[:, None] == np.arange(self.num_outputs), dtype=np.float64)
