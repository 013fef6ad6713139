"""Made-up patients for any data contract, in the layout of the generic reader. Called by tests of site packages."""

import csv
import io
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import (
    Column,
    DataContract,
    MaskLabel,
    MultiLabel,
    SurvivalLabel,
    VolumeModality,
)
from fedhealth.data.reader import COHORT_FILE

_LACKS = 0.2
"""Share of values, and of volumes, that are left out."""


def write_example_folder(
    folder: Path, contract: DataContract, *, num_patients: int = 24, seed: int = 0
) -> list[str]:
    """Write `cohort.csv` and volumes that keep the contract, with gaps where it allows them.

    Args:
        folder: made if need be.
        contract: any contract.
        num_patients: how many rows.
        seed: same seed, same values.

    Returns:
        The patient ids, in file order.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"example-{number:04d}" for number in range(num_patients)]
    columns = [column for table in contract.tables for column in table.columns]
    names = [
        contract.patient_id_column,
        *contract.label_columns,
        *(column.name for column in columns),
    ]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for number, patient_id in enumerate(ids):
        labels = _label_cells(rng, contract, number)
        cells = [_cell(rng, column, may_lack=number > 0) for column in columns]
        writer.writerow([patient_id, *labels, *cells])
        _write_volumes(folder, contract, patient_id, rng, may_lack=bool(columns) and any(cells))
        if isinstance(contract.target, MaskLabel):
            write_mask(folder / contract.target.name / f"{patient_id}.nii.gz", contract.target, rng)
    (folder / COHORT_FILE).write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return ids


def write_volume(path: Path, modality: VolumeModality, rng: np.random.Generator) -> None:
    """One random volume on the modality's grid, int16, as `.nii.gz` or `.nii`."""
    _write_on_grid(path, rng.integers(0, 1000, size=modality.shape).astype(np.int16), modality)


def write_mask(path: Path, label: MaskLabel, rng: np.random.Generator) -> None:
    """One mask on its grid: background, and a box of every other code at a random place; uint8."""
    voxels = np.zeros(label.grid.shape, dtype=np.uint8)
    for code in label.codes[1:]:
        starts = [int(rng.integers(0, max(1, side - side // 3))) for side in label.grid.shape]
        box = tuple(
            slice(start, start + max(1, side // 3))
            for start, side in zip(starts, label.grid.shape, strict=True)
        )
        voxels[box] = code
    _write_on_grid(path, voxels, label.grid)


def _write_on_grid(
    path: Path, voxels: NDArray[np.int16] | NDArray[np.uint8], modality: VolumeModality
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    start = nib.orientations.axcodes2ornt(modality.orientation)  # type: ignore[no-untyped-call] # nibabel
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(start):
        affine[int(world), axis] = sign * modality.spacing_mm[axis]
    affine[3, 3] = 1.0
    nib.Nifti1Image(voxels, affine).to_filename(path)  # type: ignore[no-untyped-call] # nibabel


def _label_cells(rng: np.random.Generator, contract: DataContract, number: int) -> list[str]:
    """Every code, every label on and off, events and censored times in turn; nothing for masks."""
    match contract.target:
        case None:
            return [str(contract.label_codes[number % len(contract.label_codes)])]
        case MultiLabel(columns=columns):
            return [str((number + position) % 2) for position in range(len(columns))]
        case SurvivalLabel(maximum=maximum):
            return [f"{rng.uniform(0, maximum):.4f}", str(number % 2)]
        case MaskLabel():
            return []


def _write_volumes(
    folder: Path,
    contract: DataContract,
    patient_id: str,
    rng: np.random.Generator,
    *,
    may_lack: bool,
) -> None:
    for modality in contract.volumes:
        (folder / modality.name).mkdir(exist_ok=True)
        if may_lack and rng.random() < _LACKS:
            continue
        write_volume(folder / modality.name / f"{patient_id}.nii.gz", modality, rng)


def _cell(rng: np.random.Generator, column: Column, *, may_lack: bool) -> str:
    if may_lack and not column.required and rng.random() < _LACKS:
        return ""
    if column.dtype == "category":
        return str(int(rng.choice(column.codes)))
    low = 0.0 if column.minimum is None else column.minimum
    high = 1.0 if column.maximum is None else column.maximum
    value = rng.uniform(low, high)
    return (
        str(int(np.clip(np.floor(value), np.ceil(low), high)))
        if column.dtype == "int"
        else f"{value:.4f}"
    )
