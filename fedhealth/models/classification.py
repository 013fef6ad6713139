"""Binary classification: entry point ``binary_classification`` of group ``fedhealth.tasks``."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.models import metrics
from fedhealth.models.options import parse_options
from fedhealth.models.task_parts import wrong_label

NUM_CLASSES = 2


class BinaryClassificationOptions(ConfigModel):
    """Options of the task in study.yaml."""

    positive_weight: float = Field(
        1.0, gt=0, le=1000, description="Weight of patients with the second label code in the loss."
    )


class BinaryClassification:
    """One logit; label 1 is the contract's second code (a `Task`).

    Args:
        contract: with exactly two label codes.
        options: see `BinaryClassificationOptions`.

    Raises:
        ConfigError: FH-MODEL-001 an option is wrong, FH-MODEL-007 there are not two label codes.
    """

    num_outputs: int = 1
    metric_names = ("auc", "accuracy", "log_loss", "brier", "calibration_error")

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        if contract.target is not None or len(contract.label_codes) != NUM_CLASSES:
            raise wrong_label("binary_classification", "2 label codes", contract)
        parsed = parse_options(
            BinaryClassificationOptions, options, owner="task 'binary_classification'"
        )
        self._positive_weight = parsed.positive_weight

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean binary cross entropy, in nats.

        Args:
            logits: (B, 1) float32.
            labels: (B,) int64 of 0 and 1.

        Returns:
            A scalar.
        """
        return self._cross_entropy(logits, labels, reduction="mean")

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) binary cross entropies, in nats; their mean is `loss`."""
        return self._cross_entropy(logits, labels, reduction="none")

    def _cross_entropy(
        self, logits: Tensor, labels: Tensor, *, reduction: Literal["mean", "none"]
    ) -> Tensor:
        weight = torch.tensor(self._positive_weight, device=logits.device)
        return binary_cross_entropy_with_logits(
            logits.squeeze(1), labels.to(logits.dtype), pos_weight=weight, reduction=reduction
        )

    def probabilities(self, logits: Tensor) -> NDArray[np.float64]:
        """(N,) probability of label 1, from logits (N, 1); in float64."""
        values: NDArray[np.float64] = torch.sigmoid(logits.detach().cpu().double()).numpy()
        return values.reshape(-1)

    def metrics(
        self, probabilities: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> dict[str, float]:
        """AUC (left out with one class), accuracy, log loss, Brier score, calibration error; none for N = 0."""
        if labels.size == 0:
            return {}
        found = {
            "accuracy": metrics.accuracy(probabilities, labels),
            "log_loss": metrics.log_loss(probabilities, labels),
            "brier": metrics.brier(probabilities, labels),
            "calibration_error": metrics.calibration_error(probabilities, labels),
        }
        area = metrics.auc(probabilities, labels)
        return found if area is None else {"auc": area, **found}
