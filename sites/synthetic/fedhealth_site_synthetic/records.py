"""Electronic health records of generated patients: noisy markers of risk, and columns that mean nothing."""

from dataclasses import dataclass

import numpy as np

MARKER_WEIGHTS = (1.0, 0.9, 0.8, -0.9, 0.7)
MARKER_NOISE_STD = 0.7
MARKER_COLUMNS = tuple(f"marker_{i}" for i in range(1, len(MARKER_WEIGHTS) + 1))
MARKER_CENTRE, MARKER_SCALE, MARKER_LIMITS = 50.0, 10.0, (0.0, 100.0)

COLUMNS = ("age", "sex", "weight", "systolic_pressure", "heart_rate", *MARKER_COLUMNS)
"""Columns of the table modality `ehr`. The first five drift between sites and tell nothing about the disease."""

_NUISANCE = {
    # column: centre, standard deviation, drift of a site, limits
    "age": (58.0, 12.0, 6.0, (18.0, 100.0)),
    "weight": (76.0, 14.0, 5.0, (30.0, 200.0)),
    "systolic_pressure": (132.0, 16.0, 6.0, (70.0, 240.0)),
    "heart_rate": (74.0, 11.0, 5.0, (30.0, 200.0)),
}
_SICKER_TESTED_MORE = 0.8

Row = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordHabits:
    """What is peculiar to one hospital's records.

    Attributes:
        drift: nuisance column -> shift of its mean, in its unit.
        share_female: chance of sex = 1.
        missing_rate: share of markers 2 to 5 that are not measured in an average patient.
        flipped_marker: marker_5 is reported with the opposite sign here (concept shift).
    """

    drift: dict[str, float]
    share_female: float
    missing_rate: float
    flipped_marker: bool


def draw_habits(
    rng: np.random.Generator, *, missing_rate: float, flipped_marker: bool
) -> RecordHabits:
    """One hospital's habits."""
    drift = {name: float(rng.normal(0.0, spread)) for name, (_, _, spread, _) in _NUISANCE.items()}
    return RecordHabits(
        drift=drift,
        share_female=float(rng.uniform(0.35, 0.65)),
        missing_rate=missing_rate,
        flipped_marker=flipped_marker,
    )


def draw_record(rng: np.random.Generator, risk: float, habits: RecordHabits) -> Row:
    """One patient's row; None where a value was not measured.

    Missing at random: marker_1 is measured in everybody, and the further it points to disease, the more often
    the other four are measured. Whether a value is missing depends on a value that is seen.
    """
    row: Row = {}
    for name, (centre, spread, _, limits) in _NUISANCE.items():
        row[name] = _clipped(rng.normal(centre + habits.drift[name], spread), limits)
    row["sex"] = float(rng.random() < habits.share_female)
    markers = np.array(MARKER_WEIGHTS) * risk + MARKER_NOISE_STD * rng.normal(
        size=len(MARKER_WEIGHTS)
    )
    if habits.flipped_marker:
        markers[-1] *= -1.0
    odds = habits.missing_rate / (1.0 - habits.missing_rate)
    odds *= np.exp(-_SICKER_TESTED_MORE * markers[0])
    missing = rng.random(len(markers)) < odds / (1.0 + odds)
    missing[0] = False
    for name, marker, lacks in zip(MARKER_COLUMNS, markers, missing, strict=True):
        value = _clipped(MARKER_CENTRE + MARKER_SCALE * marker, MARKER_LIMITS)
        row[name] = None if lacks else value
    return row


def _clipped(value: float, limits: tuple[float, float]) -> float:
    return float(np.clip(value, *limits))
