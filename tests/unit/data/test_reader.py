from pathlib import Path

import numpy as np
import pytest

from fedhealth.contracts.data import DataContract, VolumeModality
from fedhealth.data.reader import read_folder_cohort
from fedhealth.errors import SiteDataError
from fedhealth.testing.example_data import write_example_folder, write_volume

HEADER = "patient_id,label,age,visits,stage\n"


def add_volume(folder: Path, modality: VolumeModality, name: str) -> None:
    write_volume(folder / modality.name / name, modality, np.random.default_rng(0))


def test_a_folder_becomes_a_cohort_sorted_by_patient(
    folder: Path, contract: DataContract, volume_modality: VolumeModality, tmp_path: Path
) -> None:
    (folder / "cohort.csv").write_text(HEADER + "p2,1,50,,2\np1,0,60,3,\np0,1,,,\n")
    add_volume(folder, volume_modality, "p1.nii.gz")
    add_volume(folder, volume_modality, "p0.nii")
    cohort = read_folder_cohort(folder, contract, tmp_path / "cache")
    assert [patient.patient_id for patient in cohort.patients] == ["p0", "p1", "p2"]
    assert [sorted(patient.volumes) for patient in cohort.patients] == [["mri"], ["mri"], []]
    assert [sorted(patient.tables) for patient in cohort.patients] == [[], ["ehr"], ["ehr"]]
    np.testing.assert_array_equal(cohort.patients[1].tables["ehr"], [60, 3, np.nan])


def test_the_order_of_rows_changes_nothing(
    folder: Path, contract: DataContract, tmp_path: Path
) -> None:
    write_example_folder(folder, contract, num_patients=12)
    first = read_folder_cohort(folder, contract, tmp_path / "cache")
    header, *rows = (folder / "cohort.csv").read_text().splitlines()
    (folder / "cohort.csv").write_text("\n".join([header, *reversed(rows)]))
    second = read_folder_cohort(folder, contract, tmp_path / "cache")
    assert [p.patient_id for p in first.patients] == [p.patient_id for p in second.patients]
    assert [p.label for p in first.patients] == [p.label for p in second.patients]


def test_reading_decodes_no_voxel_and_writes_nothing(
    folder: Path, contract: DataContract, tmp_path: Path
) -> None:
    write_example_folder(folder, contract)
    before = sorted(folder.rglob("*"))
    read_folder_cohort(folder, contract, tmp_path / "cache")
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "cache").exists()


def test_a_patient_without_any_modality_is_refused(
    folder: Path, contract: DataContract, tmp_path: Path
) -> None:
    (folder / "cohort.csv").write_text(HEADER + "p1,0,60,3,2\nDOE-JOHN,1,,,\n")
    with pytest.raises(SiteDataError, match=r"FH-DATA-018 .*row 3") as caught:
        read_folder_cohort(folder, contract, tmp_path / "cache")
    assert "DOE" not in str(caught.value)


def test_two_files_for_one_volume_are_refused(
    folder: Path, contract: DataContract, volume_modality: VolumeModality, tmp_path: Path
) -> None:
    (folder / "cohort.csv").write_text(HEADER + "p1,0,60,3,2\n")
    add_volume(folder, volume_modality, "p1.nii.gz")
    add_volume(folder, volume_modality, "p1.nii")
    with pytest.raises(SiteDataError, match="FH-DATA-026"):
        read_folder_cohort(folder, contract, tmp_path / "cache")


def test_a_truncated_header_is_refused_while_reading(
    folder: Path, contract: DataContract, volume_modality: VolumeModality, tmp_path: Path
) -> None:
    (folder / "cohort.csv").write_text(HEADER + "p1,0,60,3,2\n")
    add_volume(folder, volume_modality, "p1.nii")
    path = folder / "mri" / "p1.nii"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SiteDataError, match=r"FH-DATA-021 .*mri volume of row 2"):
        read_folder_cohort(folder, contract, tmp_path / "cache")


def test_files_of_nobody_in_the_table_are_not_opened(
    folder: Path, contract: DataContract, tmp_path: Path
) -> None:
    (folder / "cohort.csv").write_text(HEADER + "p1,0,60,3,2\n")
    (folder / "mri").mkdir()
    (folder / "mri" / "stranger.nii.gz").write_bytes(b"not a volume")
    (cohort,) = [read_folder_cohort(folder, contract, tmp_path / "cache")]
    assert len(cohort.patients) == 1


def test_no_folder_at_all_is_refused(tmp_path: Path, contract: DataContract) -> None:
    with pytest.raises(SiteDataError, match="FH-DATA-001"):
        read_folder_cohort(tmp_path / "nowhere", contract, tmp_path / "cache")
