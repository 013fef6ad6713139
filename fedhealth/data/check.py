"""Preflight of a cohort: hold every record against the contract, read every volume, count.

Called by ``fedhealth site check`` and by the contract suite. The summary holds counts of patients: it is for
the people at the site and never leaves it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import (
    MaskLabel,
    MultiLabel,
    SplitName,
    TableModality,
    VolumeModality,
)
from fedhealth.data.columns import FIRST_DATA_ROW, check_column
from fedhealth.data.split import split_patients
from fedhealth.data.targets import count_by_label, mask_indices, refuse_wrong_targets
from fedhealth.errors import SiteDataError

_MEAN_TOLERANCE = 1e-3
_STD_TOLERANCE = 1e-2
"""float32 z-scores of 512^3 voxels keep mean 0 and standard deviation 1 far better than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideSummary:
    """One side of the split: patients, by label, with a record that lacks each modality, or that has it.

    By label is by code, by label that is 1, by event seen or censored, or the number of masks (see
    `targets.count_by_label`).

    A patient with several records counts once in each number that one of its records belongs to.
    """

    num_patients: int = field(repr=False)
    per_label: Mapping[int | str, int] = field(repr=False)
    lacking: Mapping[str, int] = field(repr=False)
    having: Mapping[str, int] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSummary:
    """What ``fedhealth site check`` prints. Stays at the site.

    Attributes:
        num_patients: all patients.
        sides: the three sides of the split.
        missing_values: table column -> patients who have the modality but lack this value.
        warnings: what a person should look at before the site joins a study.
    """

    num_patients: int = field(repr=False)
    sides: Mapping[SplitName, SideSummary] = field(repr=False)
    missing_values: Mapping[str, int] = field(repr=False)
    warnings: tuple[str, ...] = field(repr=False)

    @property
    def train_size(self) -> int:
        """Patients on the training side: what `declared_train_size` in site.yaml is about (it may be rounded)."""
        return self.sides[SplitName.TRAIN].num_patients

    def as_json(self) -> dict[str, object]:
        """Plain types, for ``--json``."""
        sides = {
            str(name): {
                "num_patients": side.num_patients,
                "per_label": {str(code): count for code, count in side.per_label.items()},
                "lacking": dict(side.lacking),
            }
            for name, side in self.sides.items()
        }
        return {
            "schema_version": 1,
            "num_patients": self.num_patients,
            "sides": sides,
            "missing_values": dict(self.missing_values),
            "warnings": list(self.warnings),
        }


def check_cohort(cohort: Cohort) -> CohortSummary:
    """Check everything, reading every volume once (which also fills the cache), and count.

    Raises:
        SiteDataError: FH-DATA-008, 010, 011, 014 to 018 and 040 as the reader does, 020 to 027 from volumes,
            FH-DATA-032 a modality that the contract does not have, FH-DATA-033 a volume off the grid or not
            z-scored, FH-DATA-030 a table of another width, FH-DATA-060 to 063 from targets and masks.
    """
    check_records(cohort)
    for modality in cohort.contract.volumes:
        for patient in cohort.patients:
            _check_volume(patient, modality)
    _check_masks(cohort)
    return summarise(cohort)


def check_records(cohort: Cohort) -> None:
    """Everything of `check_cohort` that needs no voxel. Positions in the cohort are given as rows."""
    if not cohort.patients:
        raise SiteDataError(
            "FH-DATA-008",
            "the cohort holds no patient.",
            why="A site without patients cannot take part in a round.",
            fix="Check the data folder and the options of the site package.",
        )
    split_patients(cohort)
    _check_modalities(cohort)
    codes, target = cohort.contract.label_codes, cohort.contract.target
    if target is not None:
        refuse_wrong_targets(cohort.patients, target)
    unknown = sum(patient.label not in codes for patient in cohort.patients)
    if target is None and unknown:
        raise SiteDataError(
            "FH-DATA-011",
            f"{unknown} patients carry a label outside the codes.",
            why=f"The contract's codes are {list(codes)}.",
            fix="Map the labels to these codes; leave patients without a label out of the cohort.",
        )
    for table in cohort.contract.tables:
        _check_table(cohort.patients, table)


def summarise(cohort: Cohort) -> CohortSummary:
    """Count a cohort that keeps the contract."""
    sides = {
        name: _summarise_side(patients, cohort) for name, patients in split_patients(cohort).items()
    }
    missing: Counter[str] = Counter()
    for table in cohort.contract.tables:
        for position, column in enumerate(table.columns):
            missing[column.name] = _count(
                p
                for p in cohort.patients
                if table.name in p.tables and np.isnan(p.tables[table.name][position])
            )
    return CohortSummary(
        num_patients=_count(cohort.patients),
        sides=sides,
        missing_values=dict(missing),
        warnings=tuple(_warnings(sides, cohort)),
    )


def _check_modalities(cohort: Cohort) -> None:
    tables = {table.name for table in cohort.contract.tables}
    volumes = {volume.name for volume in cohort.contract.volumes}
    for patient in cohort.patients:
        extra = sorted((patient.tables.keys() - tables) | (patient.volumes.keys() - volumes))
        if extra:
            raise SiteDataError(
                "FH-DATA-032",
                f"a patient has {', '.join(extra)}, which the contract does not name as such.",
                fix="Return the contract's modalities only, tables as tables and volumes as volumes.",
            )
    empty = sum(not patient.tables and not patient.volumes for patient in cohort.patients)
    if empty:
        raise SiteDataError(
            "FH-DATA-018",
            f"{empty} patients have no modality at all.",
            why="There is nothing to learn from a patient of whom only the label is known.",
            fix="Leave them out of the cohort.",
        )


def _check_table(patients: Sequence[Patient], table: TableModality) -> None:
    owners = [i for i, patient in enumerate(patients) if table.name in patient.tables]
    if not owners:
        return
    blocks = [np.asarray(patients[i].tables[table.name], dtype=np.float64) for i in owners]
    if any(block.shape != (len(table.columns),) for block in blocks):
        raise SiteDataError(
            "FH-DATA-030",
            f"table {table.name!r} has another width than the contract's {len(table.columns)} columns.",
            fix="Return one value per column of the modality, NaN where it is missing.",
        )
    values = np.stack(blocks)
    rows = [i + FIRST_DATA_ROW for i in owners]
    for position, column in enumerate(table.columns):
        check_column(column, values[:, position], rows)


def _check_volume(patient: Patient, modality: VolumeModality) -> None:
    volume = patient.volumes.get(modality.name)
    if volume is None:
        return
    voxels = volume.load()
    fits = voxels.shape == modality.shape and voxels.dtype == np.float32
    if not fits or not np.isfinite(voxels).all() or not _is_z_scored(voxels.astype(np.float64)):
        raise SiteDataError(
            "FH-DATA-033",
            f"a {modality.name} volume is not float32, finite and z-scored on the contract's grid.",
            why=f"The grid is {modality.shape}.",
            fix="Let `read_folder_cohort` load it, or bring it to the grid in the site package.",
        )


def _check_masks(cohort: Cohort) -> None:
    target = cohort.contract.target
    if isinstance(target, MaskLabel):
        for patient in cohort.patients:
            if patient.target is not None and not isinstance(patient.target, np.ndarray):
                mask_indices(patient.target, target)


def _is_z_scored(voxels: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> bool:
    return (
        abs(float(voxels.mean())) < _MEAN_TOLERANCE
        and abs(float(voxels.std()) - 1.0) < _STD_TOLERANCE
    )


def _summarise_side(patients: Sequence[Patient], cohort: Cohort) -> SideSummary:
    names = [modality.name for modality in cohort.contract.modalities]
    has = {name: [name in p.tables or name in p.volumes for p in patients] for name in names}
    lacking = {
        n: _count(p for p, is_in in zip(patients, has[n], strict=True) if not is_in) for n in names
    }
    having = {
        n: _count(p for p, is_in in zip(patients, has[n], strict=True) if is_in) for n in names
    }
    return SideSummary(
        num_patients=_count(patients),
        per_label=count_by_label(patients, cohort.contract, _count),
        lacking=lacking,
        having=having,
    )


def _count(records: Iterable[Patient]) -> int:
    return len({record.patient_id for record in records})


def _warnings(sides: Mapping[SplitName, SideSummary], cohort: Cohort) -> list[str]:
    found = []
    for name, side in sides.items():
        if side.num_patients == 0:
            found.append(f"The {name} side holds no patient.")
        elif not isinstance(cohort.contract.target, MaskLabel | MultiLabel) and (
            sum(count > 0 for count in side.per_label.values()) == 1
        ):
            found.append(f"All patients of the {name} side have the same label.")
    for modality in cohort.contract.modalities:
        lacking = sum(side.lacking[modality.name] for side in sides.values())
        if lacking == _count(cohort.patients):
            found.append(f"No patient has {modality.name}: check its name, or its folder.")
    return found
