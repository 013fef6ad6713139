"""The data section of study.yaml, and its translation into the frozen data contract."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedhealth.config.base import ConfigModel, Name
from fedhealth.contracts.data import (
    Column,
    DataContract,
    MaskLabel,
    Modality,
    MultiLabel,
    SplitPlan,
    SurvivalLabel,
    TableModality,
    Target,
    VolumeModality,
)


class ColumnConfig(ConfigModel):
    """One column of a table."""

    name: Name = Field(description="Column name in the CSV file.")
    dtype: Literal["float", "int", "category"] = Field(description="Type of its values.")
    unit: str | None = Field(
        None, max_length=40, description="Unit of measurement, such as mmol/L."
    )
    minimum: float | None = Field(
        None, description="Smallest plausible value: public, not from patients."
    )
    maximum: float | None = Field(
        None, description="Largest plausible value: public, not from patients."
    )
    reference: tuple[float, float] | None = Field(
        None,
        description="Range of most patients, such as a laboratory's: public, not from patients. Scales the column; "
        "left out: minimum and maximum do.",
    )
    codes: tuple[int, ...] = Field((), max_length=100, description="Allowed values of a category.")
    required: bool = Field(False, description="True: a missing value is refused.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.dtype == "category":
            if len(self.codes) < 2 or len(set(self.codes)) != len(self.codes):  # noqa: PLR2004
                raise ValueError("a category needs at least two distinct codes")
            if any(limit is not None for limit in (self.minimum, self.maximum, self.reference)):
                raise ValueError("a category has codes, not minimum, maximum and reference")
            return self
        if self.codes:
            raise ValueError("codes belong to a category column")
        if self.minimum is None or self.maximum is None or not self.minimum < self.maximum:
            raise ValueError("a numeric column needs minimum < maximum")
        if self.reference is not None:
            low, high = self.reference
            if not self.minimum <= low < high <= self.maximum:
                raise ValueError("reference is low < high within minimum and maximum")
        return self


class TableConfig(ConfigModel):
    """A block of columns."""

    kind: Literal["table"] = Field(description="A block of columns.")
    name: Name = Field(description="Name of the modality.")
    columns: tuple[ColumnConfig, ...] = Field(
        min_length=1, max_length=2000, description="Columns, in the order the model sees them."
    )


class VolumeConfig(ConfigModel):
    """A 3D image, or a 2D one."""

    kind: Literal["volume"] = Field(description="A 3D image, or a 2D one.")
    name: Name = Field(description="Name of the modality.")
    shape: tuple[int, int, int] = Field(description="Voxels along i, j, k; k is 1 for 2D images.")
    spacing_mm: tuple[float, float, float] = Field(description="Voxel size along i, j, k.")
    orientation: Annotated[str, Field(pattern=r"^[RL][AP][SI]$")] = Field(
        "RAS", description="Direction of the axes, such as RAS or LPS."
    )

    @model_validator(mode="after")
    def _grid(self) -> Self:
        sides = self.shape[:2] if self.shape[2] == 1 else self.shape
        if not all(8 <= n <= 512 for n in sides):  # noqa: PLR2004 - encoder needs 8, 512^3 is 0.5 GB
            raise ValueError(
                "each side of shape is between 8 and 512 voxels, or the last one 1 for 2D images"
            )
        if not all(0 < s <= 50 for s in self.spacing_mm):  # noqa: PLR2004
            raise ValueError("spacing_mm is between 0 and 50 mm")
        return self


class LabelConfig(ConfigModel):
    """What is predicted: one code a patient, several yes-or-no labels, time to an event, or a mask."""

    kind: Literal["code", "multi_label", "survival", "mask"] = Field(
        "code", description="Shape of the label; each kind has its own keys."
    )
    column: Name = Field("label", description="Kind code: column name in the CSV file.")
    codes: tuple[int, ...] = Field(
        (0, 1),
        min_length=2,
        max_length=100,
        description="Kinds code and mask: allowed values. The second is the positive one of two; a mask's first is "
        "0, the background.",
    )
    columns: tuple[Name, ...] = Field(
        (), max_length=100, description="Kind multi_label: columns of 0 and 1."
    )
    time_column: Name = Field(
        "time", description="Kind survival: column with the time to event or censoring."
    )
    event_column: Name = Field("event", description="Kind survival: column, 1 seen, 0 censored.")
    unit: str | None = Field(
        None, max_length=40, description="Kind survival: unit of the time, such as days."
    )
    maximum: float | None = Field(
        None, gt=0, description="Kind survival: longest plausible time: public, not from patients."
    )
    mask: Name = Field(
        "mask", description="Kind mask: folder of the label volumes, one file a patient."
    )
    grid: Name | None = Field(
        None, description="Kind mask: volume modality that the masks were drawn on."
    )

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> Self:
        own = _LABEL_KEYS[self.kind]
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        strange = sorted(
            name
            for name in self.model_fields_set - {"kind", *own}
            if getattr(self, name) != defaults[name]
        )
        if strange:
            raise ValueError(f"label kind {self.kind} has no {', '.join(strange)}; it has {own}")
        if len(set(self.codes)) != len(self.codes):
            raise ValueError("label codes repeat")
        if self.kind == "multi_label" and not self.columns:
            raise ValueError("label kind multi_label needs columns")
        if self.kind == "survival" and (self.unit is None or self.maximum is None):
            raise ValueError("label kind survival needs unit and maximum")
        if self.kind == "mask":
            if self.grid is None:
                raise ValueError("label kind mask needs grid, the name of a volume modality")
            if self.codes[0] != 0 or not all(0 <= code <= 255 for code in self.codes):  # noqa: PLR2004
                raise ValueError("mask codes are 0 to 255 and begin with 0, the background")
        return self

    @property
    def csv_columns(self) -> tuple[str, ...]:
        """The columns of the CSV file that hold the label."""
        return {
            "code": (self.column,),
            "multi_label": self.columns,
            "survival": (self.time_column, self.event_column),
            "mask": (),
        }[self.kind]


_LABEL_KEYS: Final = {
    "code": ("column", "codes"),
    "multi_label": ("columns",),
    "survival": ("time_column", "event_column", "unit", "maximum"),
    "mask": ("mask", "grid", "codes"),
}


class SplitConfig(ConfigModel):
    """Patient-level split."""

    train: float = Field(0.7, gt=0, lt=1, description="Fraction of patients to train on.")
    validation: float = Field(
        0.1, gt=0, lt=1, description="Fraction for the metrics of each round."
    )
    test: float = Field(0.2, gt=0, lt=1, description="Fraction held out for `site evaluate`.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:  # noqa: PLR2004
            raise ValueError("train + validation + test must be 1")
        return self


class DataConfig(ConfigModel):
    """What every site's data must look like."""

    patient_id_column: Name = Field("patient_id", description="Column that tells patients apart.")
    records_per_patient: int = Field(
        1,
        ge=1,
        le=1000,
        description="Most records (rows) of one patient; they count as one patient in split and privacy.",
    )
    label: LabelConfig = Field(
        default_factory=lambda: LabelConfig(column="label"), description="What is predicted."
    )
    modalities: tuple[Annotated[TableConfig | VolumeConfig, Field(discriminator="kind")], ...] = (
        Field(
            min_length=1,
            max_length=20,
            description="Tables and volumes; a patient may lack any of them.",
        )
    )
    split: SplitConfig = Field(
        default_factory=lambda: SplitConfig(train=0.7),
        description="Sides of the patient-level split; they sum to 1.",
    )

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        names = [m.name for m in self.modalities]
        if len(set(names)) != len(names):
            raise ValueError(f"modality names repeat: {names}")
        columns = [c.name for m in self.modalities if isinstance(m, TableConfig) for c in m.columns]
        columns += [self.patient_id_column, *self.label.csv_columns]
        repeated = sorted({c for c in columns if columns.count(c) > 1})
        if repeated:
            raise ValueError(f"column names repeat: {repeated}")
        return self

    @model_validator(mode="after")
    def _mask_has_a_grid(self) -> Self:
        if self.label.kind == "mask":
            volumes = [m.name for m in self.modalities if isinstance(m, VolumeConfig)]
            if self.label.grid not in volumes:
                raise ValueError(f"label.grid is no volume modality; there are {volumes}")
            if self.label.mask in [m.name for m in self.modalities]:
                raise ValueError(f"label.mask {self.label.mask!r} is the name of a modality")
        return self

    def to_contract(self, *, seed: int) -> DataContract:
        """The frozen contract that `data` and site packages read; `seed` is the study's."""
        return DataContract(
            patient_id_column=self.patient_id_column,
            label_column=self.label.column if self.label.kind == "code" else "",
            label_codes=self.label.codes if self.label.kind == "code" else (),
            target=self._target(),
            modalities=tuple(_modality(m) for m in self.modalities),
            records_per_patient=self.records_per_patient,
            split=SplitPlan(
                train=self.split.train,
                validation=self.split.validation,
                test=self.split.test,
                seed=seed,
            ),
        )

    def _target(self) -> Target | None:
        label = self.label
        if label.kind == "multi_label":
            return MultiLabel(columns=label.columns)
        if label.kind == "survival":
            return SurvivalLabel(
                time_column=label.time_column,
                event_column=label.event_column,
                unit=label.unit or "",
                maximum=label.maximum or 0.0,
            )
        if label.kind == "mask":
            grids = {m.name: m for m in self.modalities if isinstance(m, VolumeConfig)}
            grid = _volume(grids[label.grid or ""])
            return MaskLabel(name=label.mask, codes=label.codes, grid=grid)
        return None


def _modality(config: TableConfig | VolumeConfig) -> Modality:
    if isinstance(config, VolumeConfig):
        return _volume(config)
    columns = tuple(Column(**column.model_dump()) for column in config.columns)
    return TableModality(name=config.name, columns=columns)


def _volume(config: VolumeConfig) -> VolumeModality:
    return VolumeModality(
        name=config.name,
        shape=config.shape,
        spacing_mm=config.spacing_mm,
        orientation=config.orientation,
    )
