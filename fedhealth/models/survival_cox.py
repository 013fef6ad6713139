"""Time to event by Cox's proportional hazards: entry point ``survival_cox`` of group ``fedhealth.tasks``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract, SurvivalLabel
from fedhealth.models.options import parse_options
from fedhealth.models.protocol import Predictions
from fedhealth.models.survival_metrics import concordance
from fedhealth.models.task_parts import with_primary, wrong_label

Values = NDArray[np.float64]


class SurvivalCoxOptions(ConfigModel):
    """The task has no options."""


class SurvivalCox:
    """One logit, the log hazard ratio (a `ShapedTask`); predictions (N,), higher is earlier.

    The loss compares each patient with those of the batch who were still at risk, so it is no mean over patients:
    patient-level privacy refuses it (FH-PRIVACY-058), and a batch should hold many patients. Sites never compare
    patients with each other's; each has a baseline hazard of its own.

    Args:
        contract: with a label of kind survival.
        options: none.

    Raises:
        ConfigError: FH-MODEL-001 an option, FH-MODEL-007 the label is of another kind.
    """

    primary_metric = "c_index"
    metric_names = ("c_index",)
    num_outputs: int = 1
    rows_interact = True

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        if not isinstance(contract.target, SurvivalLabel):
            raise wrong_label("survival_cox", "data.label of kind survival", contract)
        parse_options(SurvivalCoxOptions, options, owner="task 'survival_cox'")

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Negative log partial likelihood of the batch over its number of events, ties as Breslow 1974.

        -1/D sum over events i of (x_i - log sum over {j: t_j >= t_i} of exp(x_j)), Cox 1972, equation 12.

        Args:
            logits: (B, 1) float32.
            labels: (B, 2) float32 time and event.

        Returns:
            A scalar; 0 without an event.
        """
        scores, times, events = logits[:, 0], labels[:, 0], labels[:, 1]
        at_risk = times[None, :] >= times[:, None]
        among = torch.where(at_risk, scores[None, :], -torch.inf).logsumexp(dim=1)
        return -(events * (scores - among)).sum() / events.sum().clamp(min=1.0)

    def predictions(self, logits: Tensor) -> Predictions:
        """(N,) float64 log hazard ratios."""
        values: Values = logits.detach().cpu().double().numpy()[:, 0]
        return values

    def metrics(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, float]:
        """Harrell's concordance index, left out where no pair is comparable."""
        once = np.ones((1, len(labels)))
        value = float(self.resampled_metric(predictions, labels, once)[0])
        return with_primary(self.primary_metric, value, {})

    def record_values(
        self,
        predictions: Predictions,  # noqa: ARG002 - the protocol's shape
        labels: NDArray[Any],  # noqa: ARG002
        /,
    ) -> dict[str, Values]:
        """None: nothing that this task measures is a mean over patients."""
        return {}

    def resampled_metric(
        self, predictions: Predictions, labels: NDArray[Any], weights: Values, /
    ) -> Values:
        """(R,) concordance index."""
        risks = np.asarray(predictions, dtype=np.float64)
        return concordance(risks, labels[:, 0], labels[:, 1], weights)
