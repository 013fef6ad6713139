"""Predictions of models for the same held-out patients, and the numbers that are compared. Called by `bootstrap`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one model said of one site's test records, in one resplit or with one seed.

    Attributes:
        predictions: (N, ...) floating point, one entry a record; for two classes (N,), the probability of label 1.
        labels: (N, ...) the truth, on the same records.
        patients: (N,) int64, whose record it is. The same number is the same patient, in other resplits too.
        strata: (N,) int64, the groups within which patients are resampled, such as their class.
    """

    predictions: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    patients: NDArray[np.int64] = field(repr=False)
    strata: NDArray[np.int64] = field(repr=False)

    def is_paired_with(self, other: "Judged") -> bool:
        """Whether both models were judged on the same records in the same order."""
        return (
            np.array_equal(self.labels, other.labels)
            and np.array_equal(self.patients, other.patients)
            and np.array_equal(self.strata, other.strata)
        )


class Statistic(Protocol):
    """A number of a set of predictions, for many weightings of the records at once."""

    def __call__(self, judged: Judged, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) values for `weights` (R, N), how often each record counts; NaN where undefined."""
        ...


@dataclass(frozen=True, slots=True)
class Weighted:
    """A metric that has a weighted form of its own, such as the AUC."""

    metric: Callable[[NDArray[Any], NDArray[Any], NDArray[np.float64]], NDArray[np.float64]]

    def __call__(self, judged: Judged, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) values."""
        return self.metric(judged.predictions, judged.labels, weights)


@dataclass(frozen=True, slots=True)
class MeanOf:
    """Weighted mean of one number per record, such as its log loss."""

    per_record: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]

    def __call__(self, judged: Judged, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) means; NaN where all weights are zero."""
        totals = weights.sum(axis=1)
        sums = weights @ self.per_record(judged.predictions, judged.labels)
        return np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), np.nan)
