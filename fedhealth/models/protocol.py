"""What a model and a task must look like: the plug-in points ``fedhealth.models`` and ``fedhealth.tasks``.

A model package provides a `ModelBuilder`; `fedhealth.testing.model_contract` is the suite that it runs
on itself. Local training knows models and tasks by these protocols only.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhealth.config.base import OptionValue
from fedhealth.contracts.data import DataContract
from fedhealth.data.batch import Batch

Predictions = NDArray[np.floating[Any]]
"""One row a record, in the task's own shape; (N,) for binary tasks."""


@runtime_checkable
class FederatedModel(Protocol):
    """A torch module that reads a `Batch`.

    Its trainable parameters are float32 and it has no buffers: a running statistic or a counter would be
    state that travels unclipped and depends on other patients. Normalise with GroupNorm or LayerNorm.

    Attributes:
        head_prefixes: name prefixes (such as ``head.``) of the parameters that ``private_head`` keeps at
            the site.

    A model may have besides it ``modality_prefixes: Mapping[str, tuple[str, ...]]``: for each modality, prefixes of the
    parameters that are trained by patients with that modality only, such as its encoder. What patients without it
    train, such as a token for its absence, is not among them. Studies with
    ``federation.average_encoders_over: sites_with_modality`` need it.
    """

    head_prefixes: tuple[str, ...]

    def __call__(self, batch: Batch) -> Tensor:
        """Logits (B, num_outputs) float32; (B, num_outputs, D, H, W) if the model has `gives_voxels = True`.

        Row i depends on patient i only.
        """
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As in `torch.nn.Module`."""
        ...


class ModelBuilder(Protocol):
    """The entry point object of group ``fedhealth.models``."""

    def __call__(
        self, contract: DataContract, num_outputs: int, options: Mapping[str, OptionValue]
    ) -> nn.Module:
        """A new model (a `FederatedModel`) whose weights come from torch's global generator only.

        Raises:
            ConfigError: an option is unknown or wrong.
        """
        ...


class Task(Protocol):
    """What is learnt: loss, outputs and metrics. The entry point object of group ``fedhealth.tasks`` is a class.

    A class may have besides ``metric_names: tuple[str, ...]``, all that `metrics` can give; `study check` then says
    which metrics of the study will never come. ``wants_voxels = True`` asks for a model that gives voxels,
    ``rows_interact = True`` says that the loss compares the patients of a batch.

    Besides these a task is a `BinaryTask` or a `ShapedTask`, which says what its predictions look like. Labels are
    those of `fedhealth.data.batch.Batch`.
    """

    def __init__(self, contract: DataContract, options: Mapping[str, OptionValue]) -> None:
        """Raises ConfigError: the contract's label does not fit, or an option is wrong."""
        ...

    @property
    def num_outputs(self) -> int:
        """Logits a patient, or a voxel."""
        ...

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss, a scalar, of logits (B, num_outputs, ...) float32 and the batch's labels (B, ...)."""
        ...

    def metrics(self, predictions: Predictions, labels: NDArray[Any], /) -> dict[str, float]:
        """Metrics of N patients, by the names of `contracts.metrics`; an undefined one is left out."""
        ...


@runtime_checkable
class BinaryTask(Task, Protocol):
    """A task whose prediction is one probability, and whose labels are 0 and 1."""

    def probabilities(self, logits: Tensor) -> Predictions:
        """(N,) probability of label index 1, from logits (N, num_outputs)."""
        ...


@runtime_checkable
class ShapedTask(Task, Protocol):
    """A task whose predictions have a shape of its own.

    Attributes:
        primary_metric: name of the metric that models are compared by first; higher is better.
    """

    primary_metric: str

    def predictions(self, logits: Tensor) -> Predictions:
        """(N, ...) floating point on the CPU, what the task predicts; not finite where the logits are not."""
        ...

    def record_values(
        self, predictions: Predictions, labels: NDArray[Any], /
    ) -> dict[str, NDArray[np.float64]]:
        """Metrics that are means over records: (N,) float64 each, finite, whose mean is the metric.

        Predictions that are not finite count as wrong with certainty. These are what noise can cover, and what a
        resample weighs.
        """
        ...

    def resampled_metric(
        self,
        predictions: Predictions,
        labels: NDArray[Any],
        weights: NDArray[np.float64],
        /,
    ) -> NDArray[np.float64]:
        """(R,) `primary_metric` with each record counted `weights` (R, N) times; NaN where undefined."""
        ...


@runtime_checkable
class TaskWithRowLosses(Protocol):
    """What a task can have besides, so that private training need not go through the patients one by one."""

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) losses whose mean is `loss`; row i depends on row i only."""
        ...
