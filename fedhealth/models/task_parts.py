"""What several tasks do alike: refuse a label of another kind, wait out NaN, average. Called by the tasks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import DataContract
from fedhealth.errors import ConfigError
from fedhealth.models.metrics import resampled_auc
from fedhealth.models.protocol import Predictions

Values = NDArray[np.float64]


def wrong_label(task: str, needs: str, contract: DataContract) -> ConfigError:
    """FH-MODEL-007: the study's label is not what the task predicts."""
    has = (
        f"{len(contract.label_codes)} label codes"
        if contract.target is None
        else f"a label of kind {type(contract.target).__name__}"
    )
    return ConfigError(
        "FH-MODEL-007",
        f"task {task!r} needs {needs}, the study has {has}.",
        fix="Correct data.label in study.yaml, or name another task.",
    )


def finite_or(predictions: Predictions, instead: Predictions) -> Values:
    """Rows (N, ...) float64, those of `instead` where a row holds a number that is not finite."""
    rows = np.asarray(predictions, dtype=np.float64)
    told = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)), keepdims=True)
    return np.where(told, rows, instead)


def means(values: Mapping[str, Values]) -> dict[str, float]:
    """Mean over records of each metric; none without a record."""
    return {name: float(v.mean()) for name, v in values.items() if v.size}


def weighted_means(values: Values, weights: Values) -> Values:
    """(R,) means of (N,) values with weights (R, N)."""
    found: Values = weights @ values / weights.sum(axis=1)
    return found


def mean_of_defined(columns: list[Values]) -> Values:
    """(R,) means over columns (R,) each, of those that are not NaN; NaN where all are."""
    stacked = np.stack(columns) if columns else np.full((1, 1), np.nan)
    told = np.isfinite(stacked)
    counts = told.sum(axis=0)
    sums = np.where(told, stacked, 0.0).sum(axis=0)
    found: Values = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return found


def macro_auc(predictions: Predictions, indicators: NDArray[Any], weights: Values) -> Values:
    """(R,) mean over K classes of the AUC of each against the rest, records counted `weights` (R, N) times.

    Args:
        predictions: (N, K).
        indicators: (N, K) of 0 and 1: whether it is that class, or that label.
        weights: (R, N).

    Returns:
        A class that everybody or nobody has is left out; NaN where none is left.
    """
    scores = np.asarray(predictions, dtype=np.float64)
    return mean_of_defined(
        [
            resampled_auc(scores[:, k], np.asarray(indicators[:, k], dtype=np.int64), weights)
            for k in range(scores.shape[1])
        ]
    )


def with_primary(name: str, value: float, others: Mapping[str, float]) -> dict[str, float]:
    """The first metric before the others, or left out where it is undefined."""
    return {name: value, **others} if np.isfinite(value) else dict(others)
