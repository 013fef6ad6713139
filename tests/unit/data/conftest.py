from pathlib import Path

import pytest
import yaml

from fedhealth.config.study import Study
from fedhealth.contracts.data import (
    Column,
    DataContract,
    SplitPlan,
    TableModality,
    VolumeModality,
)

COLUMNS = (
    Column(name="age", dtype="float", unit="years", minimum=0, maximum=120, required=True),
    Column(name="visits", dtype="int", minimum=0, maximum=50),
    Column(name="stage", dtype="category", codes=(1, 2, 3)),
)
VOLUME = VolumeModality(name="mri", shape=(8, 10, 12), spacing_mm=(2.0, 2.0, 2.0))


@pytest.fixture
def volume_modality() -> VolumeModality:
    return VOLUME


@pytest.fixture
def contract() -> DataContract:
    return DataContract(
        patient_id_column="patient_id",
        label_column="label",
        label_codes=(0, 1),
        modalities=(TableModality(name="ehr", columns=COLUMNS), VOLUME),
        split=SplitPlan(train=0.6, validation=0.2, test=0.2, seed=3),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


def _study_contract(name: str) -> DataContract:
    path = Path(__file__).parents[3] / "configs" / name
    study = Study.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    return study.data.to_contract(seed=study.seed)


@pytest.fixture
def synthetic_contract() -> DataContract:
    return _study_contract("synthetic/study-tests.yaml")


@pytest.fixture
def heart_contract() -> DataContract:
    return _study_contract("heart/study.yaml")
