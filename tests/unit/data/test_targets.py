"""Labels that are no single code: read from files, checked without naming a patient, given to batches."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedhealth.config.data import DataConfig
from fedhealth.contracts.data import (
    Column,
    DataContract,
    MaskLabel,
    MultiLabel,
    SplitName,
    SplitPlan,
    SurvivalLabel,
    TableModality,
    Target,
    VolumeModality,
)
from fedhealth.data.batch import PatientDataset
from fedhealth.data.check import check_cohort
from fedhealth.data.reader import read_folder_cohort
from fedhealth.data.targets import class_sizes
from fedhealth.errors import SiteDataError
from fedhealth.testing.example_data import write_example_folder

GRID = VolumeModality(name="t1", shape=(8, 10, 12), spacing_mm=(2.0, 2.0, 2.0))
TABLE = TableModality(
    name="ehr", columns=(Column(name="age", dtype="float", minimum=0, maximum=120),)
)
LABELS = MultiLabel(columns=("fever", "cough", "rash"))
SURVIVAL = SurvivalLabel(time_column="days", event_column="died", unit="days", maximum=1000)
MASK = MaskLabel(name="lesion", codes=(0, 2, 5), grid=GRID)


def contract_of(target: Target) -> DataContract:
    return DataContract(
        patient_id_column="patient_id",
        label_column="",
        label_codes=(),
        modalities=(TABLE, GRID),
        split=SplitPlan(train=0.6, validation=0.2, test=0.2, seed=0),
        target=target,
    )


def rewrite(folder: Path, change: Callable[[dict[str, str]], None], *, row: int) -> None:
    path = folder / "cohort.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    change(rows[row])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("target", [LABELS, SURVIVAL, MASK])
def test_every_kind_is_read_checked_counted_and_batched(target: Target, tmp_path: Path) -> None:
    contract = contract_of(target)
    write_example_folder(tmp_path / "data", contract, num_patients=20)
    cohort = read_folder_cohort(tmp_path / "data", contract, tmp_path / "cache")
    summary = check_cohort(cohort)
    counted = summary.sides[SplitName.TRAIN].per_label
    dataset = PatientDataset(cohort.patients, contract)
    batch = dataset.batch([3, 1])
    assert len(batch) == 2
    assert torch.equal(batch.labels, dataset.labels[[3, 1]])
    assert torch.equal(dataset.take([3, 1]).labels, batch.labels)
    assert torch.equal(batch.take(torch.tensor([1])).labels[0], batch.labels[1])
    if target is LABELS:
        assert set(counted) == {"fever", "cough", "rash"}
        assert batch.labels.tolist() == [[1, 0, 1], [1, 0, 1]]
        assert dataset.strata.tolist() == [0] * 20
    elif target is SURVIVAL:
        assert set(counted) == {"event", "censored"}
        assert (batch.labels.dtype, batch.labels.shape) == (torch.float32, (2, 2))
        assert torch.equal(dataset.strata, torch.arange(20) % 2)
    else:
        assert set(counted) == {"lesion"}
        assert (batch.labels.dtype, batch.labels.shape) == (torch.uint8, (2, 8, 10, 12))
        assert batch.labels.unique().tolist() == [0, 1, 2]


def test_a_missing_or_implausible_target_is_refused_by_row(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    wrong = [
        (LABELS, "fever", "", "FH-DATA-017"),
        (LABELS, "cough", "2", "FH-DATA-016"),
        (SURVIVAL, "days", "", "FH-DATA-017"),
        (SURVIVAL, "days", "1001", "FH-DATA-014"),
        (SURVIVAL, "days", "-1", "FH-DATA-014"),
        (SURVIVAL, "died", "3", "FH-DATA-016"),
    ]
    for target, column, value, code in wrong:
        contract = contract_of(target)
        ids = write_example_folder(folder, contract, num_patients=4)
        rewrite(folder, lambda cells, c=column, v=value: cells.update({c: v}), row=2)
        with pytest.raises(SiteDataError, match="1 value") as caught:
            read_folder_cohort(folder, contract, tmp_path / "cache")
        assert caught.value.code == code
        assert not any(name in str(caught.value) for name in ids)


def test_a_patient_without_a_mask_is_counted_not_named(tmp_path: Path) -> None:
    ids = write_example_folder(tmp_path, contract_of(MASK), num_patients=5)
    (tmp_path / "lesion" / f"{ids[2]}.nii.gz").unlink()
    with pytest.raises(SiteDataError, match=r"1 value \(row 4\) without a lesion mask") as caught:
        read_folder_cohort(tmp_path, contract_of(MASK), tmp_path / "cache")
    assert ids[2] not in str(caught.value)


def test_a_mask_beside_its_image_or_with_unknown_codes_is_refused(tmp_path: Path) -> None:
    contract = contract_of(MASK)
    ids = write_example_folder(tmp_path, contract, num_patients=3)
    path = tmp_path / "lesion" / f"{ids[0]}.nii.gz"
    first = nib.Nifti1Image.from_filename(path)
    voxels, affine = np.asarray(first.dataobj), np.asarray(first.affine)
    image = tmp_path / "t1" / f"{ids[0]}.nii.gz"
    nib.Nifti1Image(
        np.arange(voxels.size, dtype=np.int16).reshape(voxels.shape), affine
    ).to_filename(image)
    moved = affine.copy()
    moved[0, 3] += 4.0
    nib.Nifti1Image(voxels, moved).to_filename(path)
    with pytest.raises(SiteDataError) as caught:
        read_folder_cohort(tmp_path, contract, tmp_path / "cache")
    assert caught.value.code == "FH-DATA-062"
    nib.Nifti1Image(np.where(voxels == 2, 3, voxels).astype(np.uint8), affine).to_filename(path)
    with pytest.raises(SiteDataError) as caught:
        check_cohort(read_folder_cohort(tmp_path, contract, tmp_path / "cache"))
    assert caught.value.code == "FH-DATA-063"


def test_a_mask_goes_where_its_image_goes(tmp_path: Path) -> None:
    """Both flipped, coarser and with another field of view: the lesion stays on the bright voxels."""
    grid = replace(GRID, shape=(16, 16, 16), spacing_mm=(2.0, 2.0, 2.0), orientation="LPS")
    label = MaskLabel(name="lesion", codes=(0, 7), grid=grid)
    contract = replace(contract_of(label), modalities=(grid,))
    voxels = np.zeros((18, 20, 22), dtype=np.uint8)
    voxels[4:10, 8:14, 6:12] = 7
    affine = np.diag([1.7, 1.7, 1.7, 1.0])
    for name, values in (("t1", voxels.astype(np.int16) * 100 + 1), ("lesion", voxels)):
        (tmp_path / name).mkdir()
        nib.Nifti1Image(values, affine).to_filename(tmp_path / name / "a.nii.gz")
    (tmp_path / "cohort.csv").write_text("patient_id\na\n", encoding="utf-8")
    (patient,) = read_folder_cohort(tmp_path, contract, tmp_path / "cache").patients
    image = patient.volumes["t1"].load()
    mask = PatientDataset([patient], contract).labels[0].numpy().astype(bool)
    bright = image > (image.max() + image.min()) / 2
    assert mask.sum() == pytest.approx(216 * 1.7**3 / 8, rel=0.25)
    overlap = 2 * (mask & bright).sum() / (mask.sum() + bright.sum())
    # A shift by one voxel would leave 5/6 at best, less what smoothing rounds off.
    assert overlap > 0.85


def test_records_of_a_package_are_checked_like_files(tmp_path: Path) -> None:
    contract = contract_of(SURVIVAL)
    write_example_folder(tmp_path, contract, num_patients=4)
    cohort = read_folder_cohort(tmp_path, contract, tmp_path / "cache")
    for target in (None, np.array([5.0]), np.array([np.nan, 1.0]), np.array([5.0, 2.0])):
        patients = (*cohort.patients[:3], replace(cohort.patients[3], target=target))
        with pytest.raises(SiteDataError, match="1 patients have no time") as caught:
            check_cohort(replace(cohort, patients=patients))
        assert caught.value.code == "FH-DATA-060"


def config_of(**label: object) -> DataConfig:
    modalities = [
        {"kind": "volume", "name": "t1", "shape": [8, 8, 8], "spacing_mm": [1, 1, 1]},
        {
            "kind": "table",
            "name": "ehr",
            "columns": [{"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}],
        },
    ]
    return DataConfig.model_validate({"label": label, "modalities": modalities})


def test_the_study_file_says_which_kind() -> None:
    assert config_of(codes=[3, 4]).to_contract(seed=1).target is None
    labels = config_of(kind="multi_label", columns=["a", "b"]).to_contract(seed=1)
    assert labels.target == MultiLabel(columns=("a", "b"))
    assert labels.label_columns == ("a", "b")
    times = config_of(kind="survival", unit="days", maximum=900).to_contract(seed=1)
    assert times.target == SurvivalLabel(
        time_column="time", event_column="event", unit="days", maximum=900
    )
    mask = config_of(kind="mask", mask="lesion", grid="t1", codes=[0, 1]).to_contract(seed=1)
    assert isinstance(mask.target, MaskLabel)
    assert (mask.target.name, mask.target.grid) == ("lesion", mask.volumes[0])


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ({"kind": "multi_label"}, "needs columns"),
        ({"kind": "multi_label", "columns": ["a"], "codes": [0, 2]}, "has no codes"),
        ({"kind": "multi_label", "columns": ["age"]}, "column names repeat"),
        ({"kind": "survival", "maximum": 3}, "needs unit and maximum"),
        ({"kind": "mask"}, "needs grid"),
        ({"kind": "mask", "grid": "ehr"}, "no volume modality"),
        ({"kind": "mask", "grid": "t1", "codes": [1, 2]}, "begin with 0"),
        ({"kind": "mask", "grid": "t1", "mask": "t1"}, "name of a modality"),
    ],
)
def test_a_label_that_says_too_little_or_too_much_is_refused(
    label: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        config_of(**label)


@pytest.mark.parametrize(
    ("target", "labels", "sizes"),
    [
        (LABELS, [[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 1]], (1, 2, 3, 0, 1, 2)),
        (SURVIVAL, [[10, 1], [20, 0], [30, 1], [40, 1]], (2, 1)),
        (SURVIVAL, [[10, 1], [20, 1], [30, 1], [40, 1]], (3,)),
        (SURVIVAL, [[10, 0], [20, 0], [30, 0], [40, 0]], (0, 3)),
        (MASK, [0, 0, 0, 0], (3,)),
    ],
)
def test_a_class_is_as_large_as_its_different_patients(
    target: Target, labels: list[object], sizes: tuple[int, ...]
) -> None:
    """The last two records are of one patient."""
    owners = np.array([0, 1, 2, 2])
    assert class_sizes(np.array(labels), owners, contract_of(target)) == sizes


def test_a_code_that_nobody_has_is_a_class_of_nobody() -> None:
    three = replace(contract_of(LABELS), target=None, label_column="grade", label_codes=(1, 2, 3))
    assert class_sizes(np.array([0, 1, 1]), np.array([0, 1, 2]), three) == (1, 2, 0)
