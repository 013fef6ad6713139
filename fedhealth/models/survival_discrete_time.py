"""Time to event in public intervals: entry point ``survival_discrete_time`` of group ``fedhealth.tasks``.

Gensheimer and Narasimhan 2019, "A scalable discrete-time survival model for neural networks" (arXiv 1805.00917).
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from fedhealth.config.base import ConfigModel, OptionValue
from fedhealth.contracts.data import DataContract, SurvivalLabel
from fedhealth.errors import ConfigError
from fedhealth.models.metrics import SMALLEST_PROBABILITY
from fedhealth.models.options import parse_options
from fedhealth.models.protocol import Predictions
from fedhealth.models.survival_metrics import concordance, integrated_brier
from fedhealth.models.task_parts import finite_or, means, with_primary, wrong_label

Values = NDArray[np.float64]


class SurvivalDiscreteTimeOptions(ConfigModel):
    """Options of the task in study.yaml."""

    num_intervals: int = Field(
        10, ge=1, le=200, description="Intervals of equal length up to data.label.maximum."
    )
    edges: list[float] = Field(
        default_factory=list,
        max_length=200,
        description="Ends of the intervals instead, ascending, in the label's unit; the first begins at 0. Public: "
        "not from patients.",
    )


class SurvivalDiscreteTime:
    """A logit of the hazard of each of T intervals (a `ShapedTask`); predictions (N, T) survival at their ends.

    A mean over patients, so it trains under patient-level privacy. Times after the last end count as survived.

    Args:
        contract: with a label of kind survival.
        options: see `SurvivalDiscreteTimeOptions`.

    Raises:
        ConfigError: FH-MODEL-001 an option is wrong, FH-MODEL-007 the label is of another kind, FH-MODEL-023 the
            edges are not ascending within 0 and the label's maximum.
    """

    primary_metric = "c_index"
    metric_names = ("c_index", "integrated_brier", "log_loss")

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        if not isinstance(contract.target, SurvivalLabel):
            raise wrong_label("survival_discrete_time", "data.label of kind survival", contract)
        parsed = parse_options(
            SurvivalDiscreteTimeOptions, options, owner="task 'survival_discrete_time'"
        )
        maximum = contract.target.maximum
        edges = parsed.edges or np.linspace(0, maximum, parsed.num_intervals + 1)[1:].tolist()
        if not (edges[0] > 0 and edges[-1] <= maximum and all(a < b for a, b in pairwise(edges))):
            raise ConfigError(
                "FH-MODEL-023",
                f"the edges of task 'survival_discrete_time' do not ascend from above 0 to at most {maximum:g}.",
                fix="Correct task.options.edges in study.yaml, in the unit of data.label.",
            )
        self.num_outputs = len(edges)
        # As float32, which is what the labels are: an event on an edge is on the same side in both.
        self._edges: NDArray[np.float32] = np.asarray(edges, dtype=np.float32)

    @property
    def interval_ends(self) -> tuple[float, ...]:
        """Where the T intervals end, in the label's unit: what predictions are the survival to."""
        return tuple(float(edge) for edge in self._edges)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean negative log likelihood in nats, of logits (B, T) and labels (B, 2) float32 time and event."""
        return self.row_losses(logits, labels).mean()

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) negative log likelihoods: sum of -log(1 - h) over intervals survived, and -log h of the event's.

        An interval is survived to its end, and by a censored patient when half of it is seen (section 3.2).
        """
        survived, failed = self._intervals(labels.detach().cpu().numpy())
        lived = torch.from_numpy(survived).to(logits)
        died = torch.from_numpy(failed).to(logits)
        return (lived * softplus(logits) + died * softplus(-logits)).sum(dim=1)

    def predictions(self, logits: Tensor) -> Predictions:
        """(N, T) float64 survival at the end of each interval: the product of 1 - h."""
        values: Values = torch.exp(-softplus(logits.detach().cpu().double()).cumsum(dim=1)).numpy()
        return values

    def metrics(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, float]:
        """Harrell's concordance index of the mean survival time, log loss, integrated Brier score.

        Each is left out where it is undefined; see `survival_metrics`.
        """
        if len(labels) == 0:
            return {}
        others = means(self.record_values(predictions, labels))
        score = integrated_brier(
            np.asarray(predictions, dtype=np.float64),
            self._edges.astype(np.float64),
            labels[:, 0],
            labels[:, 1],
        )
        if score is not None:
            others["integrated_brier"] = score
        once = np.ones((1, len(labels)))
        value = float(self.resampled_metric(predictions, labels, once)[0])
        return with_primary(self.primary_metric, value, others)

    def record_values(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, Values]:
        """Log loss, (N,) negative log likelihoods in nats, at most 36."""
        survived, failed = self._intervals(labels)
        # Certain and wrong: who lived died at once, who died lives for ever.
        wrong = np.repeat(np.where(failed.any(axis=1), 1.0, 0.0)[:, None], self.num_outputs, axis=1)
        curves = np.concatenate([np.ones((len(labels), 1)), finite_or(predictions, wrong)], axis=1)
        last = survived.sum(axis=1).astype(np.int64)
        rows = np.arange(len(labels))
        reached = curves[rows, last]
        next_one = curves[rows, np.minimum(last + 1, self.num_outputs)]
        chances = np.where(failed.any(axis=1), reached - next_one, reached)
        return {"log_loss": -np.log(np.clip(chances, SMALLEST_PROBABILITY, 1.0))}

    def resampled_metric(
        self, predictions: Predictions, labels: NDArray[Any], weights: Values, /
    ) -> Values:
        """(R,) concordance index; the risk is minus the mean survival time up to the last edge."""
        lengths = np.diff(self._edges.astype(np.float64), prepend=0.0)
        risks = -(np.asarray(predictions, dtype=np.float64) @ lengths)
        return concordance(risks, labels[:, 0], labels[:, 1], weights)

    def _intervals(self, labels: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(N, T) which intervals were survived, and in which the event fell."""
        times, events = labels[:, :1], labels[:, 1:] == 1
        starts = np.concatenate([[np.float32(0)], self._edges[:-1]])
        ends = self._edges
        survived = np.where(events, times >= ends, times >= (starts + ends) / 2)
        failed = events & (times >= starts) & (times < ends)
        return survived, failed
