"""Several yes-or-no labels a patient: entry point ``multilabel_classification`` of group ``fedhealth.tasks``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract, MultiLabel
from fedhealth.models import metrics
from fedhealth.models.options import parse_options
from fedhealth.models.protocol import Predictions
from fedhealth.models.task_parts import finite_or, macro_auc, means, with_primary, wrong_label

Values = NDArray[np.float64]


class MultilabelClassificationOptions(ConfigModel):
    """The task has no options."""


class MultilabelClassification:
    """A logit for each of the contract's L labels, which do not exclude each other (a `ShapedTask`).

    Args:
        contract: with a label of kind multi_label.
        options: none.

    Raises:
        ConfigError: FH-MODEL-001 an option, FH-MODEL-007 the label is of another kind.
    """

    primary_metric = "macro_auc"
    metric_names = ("macro_auc", "accuracy", "subset_accuracy", "log_loss", "brier")

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        if not isinstance(contract.target, MultiLabel):
            needs = "data.label of kind multi_label"
            raise wrong_label("multilabel_classification", needs, contract)
        owner = "task 'multilabel_classification'"
        parse_options(MultilabelClassificationOptions, options, owner=owner)
        self.num_outputs = len(contract.target.columns)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean binary cross entropy over patients and labels in nats, of logits (B, L) and labels (B, L) of 0, 1."""
        return self.row_losses(logits, labels).mean()

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) means over labels."""
        losses = binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        return losses.mean(dim=1)

    def predictions(self, logits: Tensor) -> Predictions:
        """(N, L) float64 probabilities of each label."""
        values: Values = torch.sigmoid(logits.detach().cpu().double()).numpy()
        return values

    def metrics(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, float]:
        """Macro AUC, and means over labels and patients of accuracy, Brier score and log loss; subset accuracy.

        The macro AUC is the mean over the labels that some but not all patients have.
        """
        if len(labels) == 0:
            return {}
        once = np.ones((1, len(labels)))
        area = float(self.resampled_metric(predictions, labels, once)[0])
        return with_primary(
            self.primary_metric, area, means(self.record_values(predictions, labels))
        )

    def record_values(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, Values]:
        """(N,) each: share of labels that are right, whether all are, mean Brier score and log loss over labels."""
        kept = finite_or(predictions, np.where(labels == 1, 0.0, 1.0))
        hits = metrics.hits(kept, labels)
        return {
            "accuracy": hits.mean(axis=1, dtype=np.float64),
            "subset_accuracy": hits.all(axis=1).astype(np.float64),
            "brier": metrics.squared_errors(kept, labels).mean(axis=1),
            "log_loss": metrics.log_losses(kept, labels).mean(axis=1),
        }

    def resampled_metric(
        self, predictions: Predictions, labels: NDArray[Any], weights: Values, /
    ) -> Values:
        """(R,) macro AUC."""
        return macro_auc(predictions, labels, weights)
