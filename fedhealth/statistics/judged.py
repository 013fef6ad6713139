"""Predictions of models for the same held-out patients, and the numbers that are compared. Called by `bootstrap`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

CHUNK_ELEMENTS: Final = 4_000_000
"""Resamples times records that are held at once: 32 MB of float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one model said of one site's test records, in one resplit or with one seed.

    Attributes:
        predictions: (N, ...) float64, one entry a record; for two classes (N,), the probability of label 1.
        labels: (N, ...) the truth, on the same records.
        patients: (N,) int64, whose record it is. The same number is the same patient, in other resplits too.
        strata: (N,) int64, the groups within which patients are resampled, such as their class.
    """

    predictions: NDArray[np.float64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
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


def weighted_auc(judged: Judged, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each weighting, ties counting half; NaN without cases or without controls."""
    order = np.argsort(judged.predictions, kind="stable")
    ranked = judged.predictions[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    is_case = judged.labels[order] == 1
    values = []
    for chunk in _chunks(weights):
        mixed = chunk[:, order]
        cases = np.add.reduceat(mixed * is_case, starts, axis=1)
        controls = np.add.reduceat(mixed * ~is_case, starts, axis=1)
        below = np.cumsum(controls, axis=1) - controls
        won = (cases * (below + controls / 2)).sum(axis=1)
        pairs = cases.sum(axis=1) * controls.sum(axis=1)
        values.append(np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan))
    return np.concatenate(values)


@dataclass(frozen=True, slots=True)
class MeanOf:
    """Weighted mean of one number per record, such as its log loss."""

    per_record: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]

    def __call__(self, judged: Judged, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) means; NaN where all weights are zero."""
        totals = weights.sum(axis=1)
        sums = weights @ self.per_record(judged.predictions, judged.labels)
        return np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), np.nan)


@dataclass(frozen=True, slots=True)
class OfRecords:
    """Any metric of predictions and labels, computed anew on the records of each resample.

    For metrics without a weighted form (concordance of survival times, Dice). Slower than the others by the cost of
    the metric times the number of resamples.
    """

    metric: Callable[[NDArray[np.float64], NDArray[np.int64]], float | None]

    def __call__(self, judged: Judged, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(R,) values; weights are whole numbers of copies."""
        return np.array([self._one(judged, row) for row in weights])

    def _one(self, judged: Judged, row: NDArray[np.float64]) -> float:
        rows = np.repeat(np.arange(row.size), row.astype(np.int64))
        if rows.size == 0:
            return float("nan")
        value = self.metric(judged.predictions[rows], judged.labels[rows])
        return float("nan") if value is None else value


def _chunks(weights: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    rows = max(CHUNK_ELEMENTS // max(weights.shape[1], 1), 1)
    return [weights[start : start + rows] for start in range(0, weights.shape[0], rows)]
