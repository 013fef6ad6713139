"""The releases of a run as one array, so that a checkpoint can hold the account of `noised_mean`."""

from collections.abc import Sequence
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.aggregation import SiteLevelMechanism, SiteLevelRelease
from fedhealth.contracts.local_training import NoiseGenerator
from fedhealth.errors import AggregationError

_GENERATORS: Final[tuple[NoiseGenerator, ...]] = get_args(NoiseGenerator)
_COLUMNS: Final = 7
_NO_QUANTILE: Final = 0.0  # a multiplier is positive


def to_array(releases: Sequence[SiteLevelRelease]) -> NDArray[np.float64]:
    """(rounds, 7) float64; counts below 2**53 are exact."""
    rows = [
        [
            one.noise_multiplier,
            one.noise_std,
            one.clipping_norm,
            one.denominator,
            one.num_replies,
            _NO_QUANTILE if one.quantile_multiplier is None else one.quantile_multiplier,
            _GENERATORS.index(one.generator),
        ]
        for one in releases
    ]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), _COLUMNS)


def from_array(mechanism: SiteLevelMechanism, rows: NDArray[np.generic]) -> list[SiteLevelRelease]:
    """The releases that `to_array` wrote.

    Raises:
        AggregationError: FH-STRATEGY-049 the array is not one that it wrote.
    """
    if rows.ndim != 2 or rows.shape[1] != _COLUMNS or rows.dtype != np.float64:  # noqa: PLR2004 - a table
        raise _damaged()
    table = rows.astype(np.float64)
    is_sane = np.isfinite(table).all() and (table[:, :5] > 0).all() and (table[:, 5:] >= 0).all()
    if not is_sane or (table[:, 6] >= len(_GENERATORS)).any():
        raise _damaged()
    return [
        SiteLevelRelease(
            mechanism=mechanism,
            noise_multiplier=float(row[0]),
            noise_std=float(row[1]),
            clipping_norm=float(row[2]),
            denominator=int(row[3]),
            num_replies=int(row[4]),
            quantile_multiplier=None if row[5] == _NO_QUANTILE else float(row[5]),
            generator=_GENERATORS[int(row[6])],
        )
        for row in table.tolist()
    ]


def _damaged() -> AggregationError:
    return AggregationError(
        "FH-STRATEGY-049",
        "the account of site-level releases in the checkpoint does not read.",
        why="A run that went on without it would claim less than it spent.",
        fix="Restore the run's folder from a backup.",
    )
