from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.data import Column, DataContract, TableModality
from fedhealth.data.batch import PatientDataset
from fedhealth.data.reader import read_folder_cohort
from fedhealth.data.tables import TableEncoder, table_encoders
from fedhealth.errors import ConfigError, SiteDataError
from fedhealth.testing.example_data import write_example_folder


class ConstantVolume:
    """A volume of one value that counts how often it is read."""

    def __init__(self, value: float, shape: tuple[int, int, int]) -> None:
        self.value, self.shape, self.num_loads = value, shape, 0

    def load(self) -> np.ndarray:
        self.num_loads += 1
        return np.full(self.shape, self.value, dtype=np.float32)


@pytest.fixture
def patients(contract: DataContract) -> tuple[Patient, ...]:
    shape = contract.volumes[0].shape
    return (
        Patient(
            patient_id="a",
            label=1,
            tables={"ehr": np.array([60.0, np.nan, 3.0])},
            volumes={"mri": ConstantVolume(1.0, shape)},
        ),
        Patient(patient_id="b", label=0, tables={"ehr": np.array([0.0, 50.0, np.nan])}, volumes={}),
        Patient(patient_id="c", label=1, tables={}, volumes={"mri": ConstantVolume(3.0, shape)}),
    )


def test_a_numeric_column_goes_to_minus_one_and_one_at_its_limits() -> None:
    column = Column(name="x", dtype="float", minimum=10, maximum=30)
    encoder = TableEncoder(TableModality(name="t", columns=(column,)))
    features, missing = encoder.encode(np.array([[10.0], [20.0], [30.0], [np.nan]]))
    assert features.dtype == missing.dtype == np.float32
    assert features[:, 0].tolist() == [-1.0, 0.0, 1.0, 0.0]
    assert missing[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_a_reference_range_scales_a_column_instead_of_its_limits() -> None:
    column = Column(name="age", dtype="float", minimum=0.0, maximum=120.0, reference=(40.0, 60.0))
    encoder = TableEncoder(TableModality(name="t", columns=(column,)))
    features, missing = encoder.encode(np.array([[40.0], [50.0], [60.0], [90.0], [np.nan]]))
    assert features[:, 0].tolist() == [-1.0, 0.0, 1.0, 4.0, 0.0]
    assert missing[:, 0].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_category_is_one_hot_in_the_order_of_its_codes_and_zero_when_missing() -> None:
    column = Column(name="thal", dtype="category", codes=(3, 6, 7))
    encoder = TableEncoder(TableModality(name="t", columns=(column,)))
    features, missing = encoder.encode(np.array([[6.0], [np.nan]]))
    assert features.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert missing.tolist() == [[0.0], [1.0]]
    assert encoder.feature_names == ("thal=3", "thal=6", "thal=7")


def test_widths_are_known_without_a_patient(contract: DataContract) -> None:
    encoder = table_encoders(contract)["ehr"]
    assert (encoder.num_features, encoder.num_columns) == (5, 3)
    assert len(encoder.feature_names) == encoder.num_features
    features, missing = encoder.encode(np.array([60.0, 25.0, 1.0]))
    assert (features.shape, missing.shape) == ((5,), (3,))


def test_a_table_of_another_width_is_refused(contract: DataContract) -> None:
    with pytest.raises(SiteDataError, match="FH-DATA-030"):
        table_encoders(contract)["ehr"].encode(np.zeros(2))
    one_value = Patient(patient_id="a", label=0, tables={"ehr": np.zeros(1)}, volumes={})
    with pytest.raises(SiteDataError, match="FH-DATA-030"):
        PatientDataset([one_value], contract)


def test_a_numeric_column_without_limits_is_refused() -> None:
    column = Column(name="x", dtype="float")
    with pytest.raises(ConfigError, match="FH-CONFIG-040"):
        TableEncoder(TableModality(name="t", columns=(column,))).encode(np.zeros(1))


def test_a_batch_has_every_modality_and_zeros_where_it_is_absent(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    batch = PatientDataset(patients, contract).batch([2, 0, 1])
    assert len(batch) == 3
    assert batch.labels.tolist() == [1, 1, 0]
    assert batch.volumes["mri"].shape == (3, 1, 8, 10, 12)
    assert batch.volumes["mri"].amax(dim=(1, 2, 3, 4)).tolist() == [3.0, 1.0, 0.0]
    assert batch.present["mri"].tolist() == [True, True, False]
    assert batch.present["ehr"].tolist() == [False, True, True]
    assert batch.tables["ehr"][0].tolist() == [0.0] * 5
    assert batch.missing["ehr"].tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 1]]
    assert batch.tables["ehr"][1].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_a_batch_without_a_modality_is_that_of_patients_who_lack_it(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    everybody = list(range(len(patients)))
    whole = PatientDataset(patients, contract).batch(everybody)
    poorer = [replace(p, volumes={}, tables={}) for p in patients]
    lacking = PatientDataset(poorer, contract).batch(everybody)
    names = [modality.name for modality in contract.modalities]
    emptied = whole.without(names)
    for found, wanted in (
        (emptied.tables, lacking.tables),
        (emptied.missing, lacking.missing),
        (emptied.volumes, lacking.volumes),
        (emptied.present, lacking.present),
    ):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert all(found[name].dtype == wanted[name].dtype for name in wanted)
    assert whole.without(()) is whole


def test_dtypes_are_what_models_expect(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    batch = PatientDataset(patients, contract).batch(np.array([0, 1]))
    assert batch.labels.dtype == torch.int64
    assert batch.present["mri"].dtype == batch.present["ehr"].dtype == torch.bool
    for tensors in (batch.tables, batch.missing, batch.volumes):
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_an_empty_batch_keeps_its_shapes(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    batch = PatientDataset(patients, contract).batch([])
    assert len(batch) == 0
    assert batch.volumes["mri"].shape == (0, 1, 8, 10, 12)
    assert batch.tables["ehr"].shape == (0, 5)
    assert len(PatientDataset([], contract).batch([])) == 0


@pytest.mark.parametrize("index", [-1, 3])
def test_a_position_outside_the_dataset_is_refused(
    contract: DataContract, patients: tuple[Patient, ...], index: int
) -> None:
    with pytest.raises(IndexError):
        PatientDataset(patients, contract).batch([index])


def test_labels_are_positions_in_the_contracts_codes(contract: DataContract) -> None:
    other = DataContract(
        patient_id_column="patient_id",
        label_column="label",
        label_codes=(5, 2),
        modalities=contract.modalities,
        split=contract.split,
    )
    row = np.array([1.0, 1.0, 1.0])
    people = [Patient(patient_id=str(c), label=c, tables={"ehr": row}, volumes={}) for c in (2, 5)]
    assert PatientDataset(people, other).labels.tolist() == [1, 0]
    with pytest.raises(SiteDataError, match="FH-DATA-031"):
        PatientDataset(people, contract)


def test_a_volume_is_read_once_while_memory_lasts_and_again_beyond(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    one_volume = 4 * 8 * 10 * 12
    dataset = PatientDataset(patients, contract, memory_limit_bytes=one_volume)
    batches = [dataset.batch([0, 2]) for _ in range(3)]
    loads = [patients[i].volumes["mri"].num_loads for i in (0, 2)]  # type: ignore[attr-defined]
    assert loads == [1, 3]
    assert all(torch.equal(batches[0].volumes["mri"], b.volumes["mri"]) for b in batches)


def test_changing_a_batch_does_not_change_the_next_one(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    dataset = PatientDataset(patients, contract)
    first = dataset.batch([0])
    first.volumes["mri"].zero_()
    first.tables["ehr"].zero_()
    assert dataset.batch([0]).volumes["mri"].amax() == 1.0
    assert dataset.batch([0]).tables["ehr"].amax() == 1.0


def test_a_batch_moves_to_a_device_whole(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    moved = PatientDataset(patients, contract).batch([0, 1]).to("meta")
    tensors = [*moved.tables.values(), *moved.missing.values(), *moved.volumes.values()]
    tensors += [*moved.present.values(), moved.labels]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_neither_dataset_nor_batch_shows_values(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    dataset = PatientDataset(patients, contract)
    assert repr(dataset) == "PatientDataset(modalities=['ehr', 'mri'])"
    assert repr(dataset.batch([0])) == "Batch()"


def test_patients_read_from_files_become_batches(
    folder: Path, contract: DataContract, tmp_path: Path
) -> None:
    write_example_folder(folder, contract, num_patients=6)
    cohort = read_folder_cohort(folder, contract, tmp_path / "cache")
    batch = PatientDataset(cohort.patients, contract).batch(range(6))
    assert torch.isfinite(batch.volumes["mri"]).all()
    assert batch.tables["ehr"].abs().max() <= 1.0


def test_what_training_sees_of_a_patient_depends_on_no_other_patient(
    contract: DataContract, patients: tuple[Patient, ...]
) -> None:
    """Scales, codes and imputation come from public ranges: no statistic of a cohort is released with a model."""
    together = PatientDataset(patients, contract)
    for index, patient in enumerate(patients):
        alone = PatientDataset([patient], contract).batch([0])
        among = together.batch([index])
        for name in alone.tables:
            torch.testing.assert_close(alone.tables[name], among.tables[name], rtol=0, atol=0)
            torch.testing.assert_close(alone.missing[name], among.missing[name], rtol=0, atol=0)
        for name in alone.volumes:
            torch.testing.assert_close(alone.volumes[name], among.volumes[name], rtol=0, atol=0)
