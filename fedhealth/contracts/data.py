"""What a study expects of every hospital's data: the data contract.

Built by `config`, read by `data` and by site packages.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class SplitName(StrEnum):
    """The three sides of a patient-level split."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table modality.

    `minimum` and `maximum` are *public* plausibility limits in `unit` (closed interval): a value outside is
    refused, and numeric columns are scaled with them, so no statistic of a patient is needed. `reference`, if
    given, is the *public* range in which most patients are; it then does the scaling. `codes` are the allowed
    values of a category column (one-hot encoded in this order).
    """

    name: str
    dtype: Literal["float", "int", "category"]
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    reference: tuple[float, float] | None = None
    codes: tuple[int, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableModality:
    """A block of columns that a patient has or lacks as a whole; single values may be missing too."""

    name: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeModality:
    """An image on one grid: `shape` in voxels (i, j, k), `spacing_mm` per axis, orientation such as ``RAS``.

    A shape whose k side is 1 is a 2D image, such as a radiograph; its spacing along k says nothing.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str = "RAS"

    @property
    def spatial_dims(self) -> Literal[2, 3]:
        """2 for an image of one slice, else 3."""
        return 2 if self.shape[2] == 1 else 3


Modality = TableModality | VolumeModality


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """Fractions of patients on each side (they sum to 1) and the seed that fixes who is where."""

    train: float
    validation: float
    test: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiLabel:
    """Several yes-or-no labels a patient: columns of 0 and 1, none missing."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalLabel:
    """Time to an event, right-censored: time in [0, `maximum`] in `unit`, event 1 seen or 0 censored.

    `maximum` is a *public* limit, such as the length of follow-up that the study allows.
    """

    time_column: str
    event_column: str
    unit: str
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskLabel:
    """A label volume a patient, drawn on the volume modality `grid`; `codes` begins with 0, the background."""

    name: str
    codes: tuple[int, ...]
    grid: VolumeModality


Target = MultiLabel | SurvivalLabel | MaskLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class DataContract:
    """Columns, units, ranges, codes, grids and split that every site of a study keeps.

    Records with the same patient id are one patient: one side of the split, one unit of privacy. More than
    `records_per_patient` of them are refused.

    `target` is None where the label is one code a patient, of `label_codes` in `label_column`; else it says what is
    predicted, and those two are empty.

    `has_labels` is False for new patients, who are to be predicted: nothing is read of their label, and they are never
    trained on (see `contracts.cohort.ReadsNewPatients`).
    """

    patient_id_column: str
    label_column: str
    label_codes: tuple[int, ...]
    modalities: tuple[Modality, ...]
    split: SplitPlan
    records_per_patient: int = 1
    target: Target | None = None
    has_labels: bool = True

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of `cohort.csv` that hold the label; none for masks and for new patients."""
        if not self.has_labels:
            return ()
        match self.target:
            case None:
                return (self.label_column,)
            case MultiLabel(columns=columns):
                return columns
            case SurvivalLabel(time_column=time, event_column=event):
                return (time, event)
            case MaskLabel():
                return ()

    @property
    def tables(self) -> tuple[TableModality, ...]:
        """The table modalities, in study order."""
        return tuple(m for m in self.modalities if isinstance(m, TableModality))

    @property
    def volumes(self) -> tuple[VolumeModality, ...]:
        """The volume modalities, in study order."""
        return tuple(m for m in self.modalities if isinstance(m, VolumeModality))
