"""Made-up patients for any data contract, in the layout of the generic reader. Called by tests of site packages."""

import csv
import io
from pathlib import Path

import nibabel as nib
import numpy as np

from fedhealth.contracts.data import Column, DataContract, VolumeModality
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
        contract.label_column,
        *(column.name for column in columns),
    ]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for number, patient_id in enumerate(ids):
        label = contract.label_codes[number % len(contract.label_codes)]
        cells = [_cell(rng, column, may_lack=number > 0) for column in columns]
        writer.writerow([patient_id, label, *cells])
        _write_volumes(folder, contract, patient_id, rng, may_lack=bool(columns) and any(cells))
    (folder / COHORT_FILE).write_text(buffer.getvalue(), encoding="utf-8", newline="")
    return ids


def write_volume(path: Path, modality: VolumeModality, rng: np.random.Generator) -> None:
    """One random volume on the modality's grid, int16, as `.nii.gz` or `.nii`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = rng.integers(0, 1000, size=modality.shape).astype(np.int16)
    start = nib.orientations.axcodes2ornt(modality.orientation)  # type: ignore[no-untyped-call] # nibabel
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(start):
        affine[int(world), axis] = sign * modality.spacing_mm[axis]
    affine[3, 3] = 1.0
    nib.Nifti1Image(voxels, affine).to_filename(path)  # type: ignore[no-untyped-call] # nibabel


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
