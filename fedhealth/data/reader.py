"""The generic reader: one CSV file and NIfTI volumes in a folder become a cohort.

Called by site packages. Layout of the data folder, ``t1`` standing for the name of a volume
modality:

* ``cohort.csv``: patient id, label and all table columns; an empty cell is a missing value.
* ``t1/<patient id>.nii.gz``: one volume a patient (or ``.nii``); no file: the patient lacks the
modality.
* ``lesion/<patient id>.nii.gz``: the label volume of a patient, where the study predicts a mask of that
name. Every patient has one.

Where the contract allows several records of a patient, those rows share the patient's volumes; a site package of
its own can give every record its own scan.

A patient lacks a table modality when all its cells are empty. Files and columns that the contract
does not name are not opened and not parsed. Headers of volumes are checked here; voxels when they
are first needed, and all of them by `fedhealth.data.check`, which is what ``fedhealth site check``
runs.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedhealth.contracts.cohort import Cohort, LazyMask, LazyVolume, Patient
from fedhealth.contracts.data import DataContract, MaskLabel
from fedhealth.data.cohort_csv import CohortTable, read_cohort_csv
from fedhealth.data.columns import describe_rows
from fedhealth.data.masks import NiftiMask
from fedhealth.data.volume_cache import VolumeCache
from fedhealth.data.volumes import NiftiVolume
from fedhealth.errors import SiteDataError

COHORT_FILE = "cohort.csv"
VOLUME_SUFFIXES = (".nii.gz", ".nii")


def read_folder_cohort(folder: Path, contract: DataContract, cache_dir: Path) -> Cohort:
    """Read and check the cohort in a folder, which is only read.

    Args:
        folder: laid out as above.
        contract: the study's data contract.
        cache_dir: private folder for volumes on the contract's grid; made when it is first needed.

    Returns:
        The cohort, patients sorted by id, so that the order of rows in the file changes no
        training.

    Raises:
        SiteDataError: FH-DATA-001 to 017 (table), 018 (a patient without any modality), 020 to 023,
            026 and 027 (volumes), 060 and 062 (masks).
    """
    table = read_cohort_csv(folder / COHORT_FILE, contract)
    cache = VolumeCache(cache_dir / "volumes")
    volumes = [
        _volumes_of(folder, contract, cache, patient_id, row)
        for patient_id, row in zip(table.patient_ids, table.rows, strict=True)
    ]
    masks = _masks_of(folder, contract, table)
    patients = [
        _patient(table, index, volumes[index], masks[index] if masks else None)
        for index in range(len(volumes))
    ]
    _refuse_empty_patients(patients, table)
    return Cohort(
        contract=contract,
        patients=tuple(sorted(patients, key=lambda patient: patient.patient_id)),
    )


def unclaimed_volumes(
    folder: Path, contract: DataContract, patients: Iterable[Patient]
) -> dict[str, int]:
    """Files in each volume modality's folder that are named after no patient: a misspelt one counts as missing.

    Args:
        folder: laid out as above.
        contract: the study's data contract.
        patients: whoever is in `cohort.csv`.

    Returns:
        Their number by modality, those without any left out.
    """
    ids = {patient.patient_id for patient in patients}
    found = {}
    for modality in contract.volumes:
        place = folder / modality.name
        names = [path.name for path in place.iterdir()] if place.is_dir() else []
        strays = sum(not name.startswith(".") and _owner(name) not in ids for name in names)
        if strays:
            found[modality.name] = strays
    return found


def _owner(name: str) -> str | None:
    """The patient id in a volume's file name, None where it is not named like one."""
    return next(
        (name.removesuffix(suffix) for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), None
    )


def _patient(
    table: CohortTable, index: int, volumes: dict[str, LazyVolume], mask: LazyMask | None
) -> Patient:
    tables = {}
    for name, block in table.tables.items():
        values = block[index].copy()
        if not np.isnan(values).all():
            values.flags.writeable = False
            tables[name] = values
    return Patient(
        patient_id=table.patient_ids[index],
        label=int(table.labels[index]),
        tables=tables,
        volumes=volumes,
        target=table.targets[index].copy() if table.targets.shape[1] else mask,
    )


def _volumes_of(
    folder: Path, contract: DataContract, cache: VolumeCache, patient_id: str, row: int
) -> dict[str, LazyVolume]:
    volumes: dict[str, LazyVolume] = {}
    for modality in contract.volumes:
        path = _volume_path(folder / modality.name, patient_id, row)
        if path is not None:
            volume = NiftiVolume(path, modality, cache, row=row)
            volume.check_header()
            volumes[modality.name] = volume
    return volumes


def _masks_of(folder: Path, contract: DataContract, table: CohortTable) -> list[LazyMask]:
    label = contract.target
    if not isinstance(label, MaskLabel) or not contract.has_labels:
        return []
    records = list(zip(table.patient_ids, table.rows, strict=True))
    paths = [_volume_path(folder / label.name, patient_id, row) for patient_id, row in records]
    missing = np.array([path is None for path in paths])
    if missing.any():
        raise SiteDataError(
            "FH-DATA-060",
            f"cohort.csv has {describe_rows(missing, table.rows)} without a {label.name} mask.",
            why="Every patient of the cohort needs what is predicted; an empty mask says that there is nothing.",
            fix="Add the files, or leave these patients out of the cohort.",
        )
    masks: list[LazyMask] = []
    for (patient_id, row), path in zip(records, paths, strict=True):
        if path is not None:
            mask = NiftiMask(path, label, row=row)
            mask.check_header(_volume_path(folder / label.grid.name, patient_id, row))
            masks.append(mask)
    return masks


def _volume_path(folder: Path, patient_id: str, row: int) -> Path | None:
    """`patient_id` keeps `cohort_csv.PATIENT_ID`, so the path cannot leave the folder."""
    found = [
        path for suffix in VOLUME_SUFFIXES if (path := folder / f"{patient_id}{suffix}").exists()
    ]
    if len(found) > 1:
        raise SiteDataError(
            "FH-DATA-026",
            f"there are two files for the {folder.name} volume of row {row}.",
            why="It is not clear which one is meant.",
            fix="Keep either the .nii.gz or the .nii file.",
        )
    return found[0] if found else None


def _refuse_empty_patients(patients: list[Patient], table: CohortTable) -> None:
    empty = np.array([not patient.tables and not patient.volumes for patient in patients])
    if empty.any():
        raise SiteDataError(
            "FH-DATA-018",
            f"cohort.csv has {describe_rows(empty, table.rows)} without any modality.",
            why="Nothing is known of such a patient: there is nothing to learn from, and nothing to predict from.",
            fix="Check that volumes are named after the patient id, or leave these patients out.",
        )
