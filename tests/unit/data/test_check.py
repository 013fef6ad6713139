import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedhealth.contracts.cohort import Cohort, Patient
from fedhealth.contracts.data import DataContract, SplitName
from fedhealth.data.check import check_cohort
from fedhealth.data.reader import read_folder_cohort
from fedhealth.data.split import split_patients
from fedhealth.errors import SiteDataError
from fedhealth.testing.example_data import write_example_folder


class ArrayVolume:
    def __init__(self, voxels: np.ndarray) -> None:
        self._voxels = voxels

    def load(self) -> np.ndarray:
        return self._voxels


def patient(number: int, label: int = 0, **changes: object) -> Patient:
    row = np.array([50.0, 3.0, 1.0])
    plain = Patient(patient_id=f"DOE-{number}", label=label, tables={"ehr": row}, volumes={})
    return replace(plain, **changes)  # type: ignore[arg-type] # a test's shorthand


def cohort(contract: DataContract, *patients: Patient) -> Cohort:
    return Cohort(contract=contract, patients=patients)


def test_the_summary_counts_sides_labels_and_what_is_lacking(contract: DataContract) -> None:
    people = [patient(i, label=i % 2) for i in range(10)]
    people[0] = replace(people[0], tables={"ehr": np.array([50.0, np.nan, np.nan])})
    sides = [*["train"] * 6, *["validation"] * 2, *["test"] * 2]
    fixed = {p.patient_id: SplitName(s) for p, s in zip(people, sides, strict=True)}
    summary = check_cohort(replace(cohort(contract, *people), fixed_split=fixed))
    assert summary.num_patients == 10
    assert summary.train_size == 6
    assert summary.sides[SplitName.TRAIN].per_label == {0: 3, 1: 3}
    assert summary.sides[SplitName.TEST].lacking == {"ehr": 0, "mri": 2}
    assert summary.missing_values == {"age": 0, "visits": 1, "stage": 1}
    assert json.loads(json.dumps(summary.as_json()))["sides"]["train"]["num_patients"] == 6


def test_what_a_person_should_look_at_is_a_warning(contract: DataContract) -> None:
    fixed = {"DOE-0": SplitName.TRAIN, "DOE-1": SplitName.TRAIN}
    summary = check_cohort(replace(cohort(contract, patient(0), patient(1)), fixed_split=fixed))
    text = " ".join(summary.warnings)
    assert "train side have the same label" in text
    assert "test side holds no patient" in text
    assert "No patient has mri" in text


def test_a_summary_does_not_show_counts_where_it_is_printed_by_accident(
    contract: DataContract,
) -> None:
    assert repr(check_cohort(cohort(contract, patient(0)))) == "CohortSummary()"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("FH-DATA-011", {"label": 4}),
        ("FH-DATA-014", {"tables": {"ehr": np.array([500.0, 3.0, 1.0])}}),
        ("FH-DATA-014", {"tables": {"ehr": np.array([np.inf, 3.0, 1.0])}}),
        ("FH-DATA-015", {"tables": {"ehr": np.array([50.0, 3.5, 1.0])}}),
        ("FH-DATA-016", {"tables": {"ehr": np.array([50.0, 3.0, 9.0])}}),
        ("FH-DATA-017", {"tables": {"ehr": np.array([np.nan, 3.0, 1.0])}}),
        ("FH-DATA-018", {"tables": {}}),
        ("FH-DATA-030", {"tables": {"ehr": np.array([50.0])}}),
        ("FH-DATA-032", {"tables": {"genome": np.array([1.0])}}),
        ("FH-DATA-033", {"volumes": {"mri": ArrayVolume(np.zeros((2, 2, 2), np.float32))}}),
        ("FH-DATA-033", {"volumes": {"mri": ArrayVolume(np.ones((8, 10, 12), np.float32))}}),
        ("FH-DATA-033", {"volumes": {"mri": ArrayVolume(np.full((8, 10, 12), np.nan, "f4"))}}),
        ("FH-DATA-033", {"volumes": {"mri": ArrayVolume(np.zeros((8, 10, 12), np.float64))}}),
    ],
)
def test_a_package_that_breaks_the_contract_is_refused_without_naming_the_patient(
    contract: DataContract, code: str, changes: dict[str, object]
) -> None:
    with pytest.raises(SiteDataError, match=code) as caught:
        check_cohort(cohort(contract, patient(0), patient(1, **changes)))
    assert "DOE" not in str(caught.value)


def test_an_empty_cohort_is_refused(contract: DataContract) -> None:
    with pytest.raises(SiteDataError, match="FH-DATA-008"):
        check_cohort(cohort(contract))


def test_a_patient_twice_is_refused_without_the_id(contract: DataContract) -> None:
    with pytest.raises(SiteDataError, match="FH-DATA-010") as caught:
        check_cohort(cohort(contract, patient(0), patient(0)))
    assert "DOE" not in str(caught.value)


def test_records_of_one_patient_count_once_and_share_a_side(contract: DataContract) -> None:
    several = replace(contract, records_per_patient=2)
    records = [patient(index) for index in range(40) for _ in range(2)]
    summary = check_cohort(cohort(several, *records))
    assert summary.num_patients == 40
    assert sum(side.num_patients for side in summary.sides.values()) == 40
    assert sum(sum(side.per_label.values()) for side in summary.sides.values()) == 40
    sides = split_patients(cohort(several, *records))
    ids = [{p.patient_id for p in patients} for patients in sides.values()]
    assert sum(len(side) for side in ids) == 40


def test_more_records_than_the_contract_allows_are_refused(contract: DataContract) -> None:
    several = replace(contract, records_per_patient=2)
    check_cohort(cohort(several, patient(0), patient(0)))
    with pytest.raises(SiteDataError, match="FH-DATA-010"):
        check_cohort(cohort(several, patient(0), patient(0), patient(0)))


def test_the_check_finds_a_truncated_volume_that_reading_alone_does_not(
    folder: Path, contract: DataContract, tmp_path: Path
) -> None:
    write_example_folder(folder, contract, num_patients=6)
    path = max((folder / "mri").iterdir())
    path.write_bytes(path.read_bytes()[:-300])
    loaded = read_folder_cohort(folder, contract, tmp_path / "cache")
    with pytest.raises(SiteDataError, match="FH-DATA-021"):
        check_cohort(loaded)
