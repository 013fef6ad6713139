"""Paired hierarchical bootstrap of the difference between two models. Called by `fedhealth benefit`.

Two levels are drawn with replacement (Davison and Hinkley 1997, section 3.8; Owen 2007, "The pigeonhole bootstrap"):
seeds or resplits, and patients within their class. A patient who is in the test sets of several resplits is drawn
once for all of them: ten resplits of 50 patients are still 50 patients, and counting them as 500 would make intervals
too narrow by a factor of three. Where the patients of each seed are other people (generated cohorts), they have
other numbers, and the same code is the plain nested bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.statistics.judged import Judged, Statistic

NUM_RESAMPLES: Final = 2000
LEVEL: Final = 0.95
TAIL: Final = (1 + LEVEL) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model's statistic minus another's on the same patients, mean over seeds.

    Attributes:
        value: the difference.
        low: lower limit of the percentile interval at `LEVEL`; where all resamples give one difference, although the
            models rank patients differently, as far away as patients could be that were not seen (see `_unseen`).
        high: upper limit.
        standard_error: of the resampled differences, or such that `high` is 1.96 of it away.
        p_value: two-sided, for no difference: twice the share of resamples on the other side of zero, at least
            2 / (resamples + 1).
        num_seeds: seeds or resplits where the statistic exists for both models.
        num_patients: different patients behind it.
        differences: (seeds,) the difference of each seed, NaN where undefined.
    """

    value: float
    low: float
    high: float
    standard_error: float
    p_value: float
    num_seeds: int
    num_patients: int
    differences: NDArray[np.float64] = field(repr=False)


def compare(
    one: Sequence[Judged],
    other: Sequence[Judged],
    statistic: Statistic,
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Comparison | None:
    """`one` minus `other`, with an interval over seeds and patients.

    Args:
        one: a model's predictions at one site, one entry a seed.
        other: another model's, for the same records in the same order.
        statistic: what is compared.
        seed: of numpy's PCG64; the same for all pairs of a site, so that tables agree with each other.
        num_resamples: bootstrap resamples.

    Returns:
        None where the statistic exists for no seed (no patient; AUC of one class).

    Raises:
        ValueError: the two were not judged on the same records.
    """
    if len(one) != len(other) or not all(
        a.is_paired_with(b) for a, b in zip(one, other, strict=True)
    ):
        raise ValueError("paired scores are of the same records in the same order")
    values = _values(one, statistic) - _values(other, statistic)
    defined = [index for index, value in enumerate(values) if np.isfinite(value)]
    if not defined:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    kept = [one[index] for index in defined]
    weights = patient_weights(kept, num_resamples=num_resamples, rng=rng)
    resampled = np.stack(
        [
            statistic(one[index], drawn) - statistic(other[index], drawn)
            for index, drawn in zip(defined, weights, strict=True)
        ]
    )
    replicates = _mean_over_seeds(resampled, rng)
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    error = float(replicates.std(ddof=1))
    if np.ptp(replicates) == 0 and not _rank_alike(kept, [other[index] for index in defined]):
        unseen = _unseen(kept)
        low, high, error = low - unseen, high + unseen, unseen / NormalDist().inv_cdf(TAIL)
    return Comparison(
        value=float(values[defined].mean()),
        low=float(low),
        high=float(high),
        standard_error=error,
        p_value=_p_value(replicates),
        num_seeds=len(defined),
        num_patients=int(np.unique(np.concatenate([j.patients for j in kept])).size),
        differences=values,
    )


def patient_weights(
    judged: Sequence[Judged], *, num_resamples: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """How often each record is in each resample, one (R, N) array a seed.

    All patients of all seeds are drawn together, within the stratum of a patient's first record, with all their
    records.
    """
    patients, first, inverse = np.unique(
        np.concatenate([j.patients for j in judged]), return_index=True, return_inverse=True
    )
    strata = np.concatenate([j.strata for j in judged])[first]
    drawn = np.zeros((num_resamples, patients.size))
    for stratum in np.unique(strata):
        (members,) = np.nonzero(strata == stratum)
        chances = np.full(members.size, 1 / members.size)
        drawn[:, members] = rng.multinomial(members.size, chances, num_resamples)
    ends = np.cumsum([j.patients.size for j in judged])[:-1]
    return [drawn[:, rows] for rows in np.split(inverse, ends)]


def _values(judged: Sequence[Judged], statistic: Statistic) -> NDArray[np.float64]:
    """(seeds,) the statistic on all records, NaN where undefined."""
    return np.array(
        [
            float(statistic(j, np.ones((1, j.patients.size)))[0]) if j.patients.size else np.nan
            for j in judged
        ]
    )


def _mean_over_seeds(
    resampled: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(R',) means of (seeds, R) differences over seeds drawn with replacement; resamples without any are left out."""
    num_seeds, num_resamples = resampled.shape
    counts = (
        np.ones((1, num_resamples))
        if num_seeds == 1
        else rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples).T
    )
    counts = np.where(np.isfinite(resampled), counts, 0.0)
    totals = counts.sum(axis=0)
    sums = (counts * np.nan_to_num(resampled)).sum(axis=0)
    means: NDArray[np.float64] = sums[totals > 0] / totals[totals > 0]
    return means


def _rank_alike(one: Sequence[Judged], other: Sequence[Judged]) -> bool:
    """Whether both order all records in the same way, in every seed: no metric of ranks tells them apart."""
    return all(
        np.array_equal(_order(a.predictions), _order(b.predictions))
        for a, b in zip(one, other, strict=True)
    )


def _order(predictions: NDArray[Any]) -> NDArray[np.intp]:
    return np.unique(predictions, return_inverse=True)[1]


def _unseen(judged: Sequence[Judged]) -> float:
    """How large a difference could be that none of the patients of the smallest stratum shows.

    Two models without a mistake have no variance in any resample, with five patients as with five thousand. If a
    share s of patients made a difference, m of them show none with chance (1 - s)^m: the rule of three, at `TAIL`
    (Hanley and Lippman-Hand 1983, "If nothing goes wrong, is everything all right?"). For metrics from 0 to 1.
    """
    patients, first = np.unique(np.concatenate([j.patients for j in judged]), return_index=True)
    strata = np.concatenate([j.strata for j in judged])[first]
    smallest = min(int((strata == stratum).sum()) for stratum in np.unique(strata))
    return float(1 - (1 - TAIL) ** (1 / smallest)) if patients.size else 1.0


def _p_value(replicates: NDArray[np.float64]) -> float:
    above, below = int((replicates >= 0).sum()), int((replicates <= 0).sum())
    return float(min(1.0, 2 * (min(above, below) + 1) / (replicates.size + 1)))
