"""New patients have no label: the contract says so, and nothing is read of one."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedhealth.contracts.cohort import UNKNOWN_LABEL
from fedhealth.contracts.data import DataContract
from fedhealth.data.batch import PatientDataset
from fedhealth.data.reader import read_folder_cohort, unclaimed_volumes
from fedhealth.errors import SiteDataError

ROWS = "patient_id,age,visits,stage\na,40,2,1\nb,61,,3\n"


def test_a_table_without_a_label_column_is_read(folder: Path, contract: DataContract) -> None:
    (folder / "cohort.csv").write_text(ROWS, encoding="utf-8")
    new = replace(contract, has_labels=False)
    cohort = read_folder_cohort(folder, new, folder / "cache")
    assert [patient.label for patient in cohort.patients] == [UNKNOWN_LABEL] * 2
    batch = PatientDataset(cohort.patients, new).batch([0, 1])
    assert batch.labels.tolist() == [UNKNOWN_LABEL] * 2
    assert batch.present["ehr"].tolist() == [True, True]
    assert batch.present["mri"].tolist() == [False, False]


def test_a_label_that_is_there_is_not_read(folder: Path, contract: DataContract) -> None:
    rows = "patient_id,age,visits,stage,label\na,40,2,1,private remark\n"
    (folder / "cohort.csv").write_text(rows, encoding="utf-8")
    cohort = read_folder_cohort(folder, replace(contract, has_labels=False), folder / "cache")
    assert cohort.patients[0].label == UNKNOWN_LABEL


def test_a_cohort_to_train_on_needs_its_labels(folder: Path, contract: DataContract) -> None:
    (folder / "cohort.csv").write_text(ROWS, encoding="utf-8")
    with pytest.raises(SiteDataError, match="FH-DATA-005"):
        read_folder_cohort(folder, contract, folder / "cache")
    new = read_folder_cohort(folder, replace(contract, has_labels=False), folder / "cache")
    with pytest.raises(SiteDataError, match="FH-DATA-031"):
        PatientDataset(new.patients, contract)


def test_images_that_are_named_after_nobody_are_counted(
    folder: Path, contract: DataContract
) -> None:
    (folder / "cohort.csv").write_text(ROWS, encoding="utf-8")
    new = replace(contract, has_labels=False)
    cohort = read_folder_cohort(folder, new, folder / "cache")
    assert unclaimed_volumes(folder, new, cohort.patients) == {}
    (folder / "mri").mkdir()
    for name in ("a.nii.gz", "b.nii", ".hidden", "B.nii.gz", "b_t1.nii", "b.NII.GZ"):
        (folder / "mri" / name).touch()
    assert unclaimed_volumes(folder, new, cohort.patients) == {"mri": 3}
