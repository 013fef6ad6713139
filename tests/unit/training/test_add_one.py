import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedhealth.config.study import Study
from fedhealth.contracts.cohort import Cohort
from fedhealth.contracts.local_training import PatientMechanism, RoundTask, SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import CancelledTrainingError, ConfigError, PrivacyError
from fedhealth.training.add_one import AddOne


def _study(**options: object) -> Study:
    return Study.model_validate(
        {
            "schema_version": 1,
            "id": "bench",
            "title": "Bench",
            "seed": 1,
            "data": {"modalities": [_table()]},
            "training": {"name": "add_one", "local_steps": 1, "options": options},
            "runs": [{"name": "main", "num_rounds": 2}],
        }
    )


def _table() -> dict[str, object]:
    column = {"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}
    return {"kind": "table", "name": "ehr", "columns": [column]}


def _never() -> Cohort:
    raise AssertionError("add_one must not load the cohort")


def _site(folder: Path, site_id: str = "site-a") -> SiteContext:
    return SiteContext(
        site_id=site_id,
        load_cohort=_never,
        state_dir=folder,
        cache_dir=folder,
        device="cpu",
        num_threads=1,
    )


def _task(is_cancelled: Callable[[], bool] = lambda: False) -> RoundTask:
    return RoundTask(
        run_name="main", round_number=1, attempt=1, strategy_config={}, is_cancelled=is_cancelled
    )


def test_initial_tensors_are_zeros_of_the_asked_size() -> None:
    study = _study(num_parameters=10, num_tensors=3)
    tensors = AddOne().initial_tensors(study, study.runs[0])
    assert len(tensors) == 3
    assert sum(tensor.size for tensor in tensors.values()) == 10
    assert all(tensor.dtype == np.float32 and not tensor.any() for tensor in tensors.values())


def test_training_adds_one_to_every_element_and_loads_no_patient(tmp_path: Path) -> None:
    study = _study(num_parameters=10, num_tensors=3)
    spec = TensorSpec.of(AddOne().initial_tensors(study, study.runs[0]))
    session = AddOne().open_session(study, study.runs[0], spec, _site(tmp_path))
    vector = np.arange(10, dtype=np.float32)
    update = session.train(vector, _task())
    session.commit(1)
    assert session.evaluate(vector) == {}
    np.testing.assert_array_equal(spec.flatten(update.tensors), vector + 1)
    assert not list(tmp_path.iterdir())


def test_it_refuses_to_pretend_patient_privacy(tmp_path: Path) -> None:
    study = _study()
    spec = TensorSpec.of(AddOne().initial_tensors(study, study.runs[0]))
    session = AddOne().open_session(study, study.runs[0], spec, _site(tmp_path))
    mechanism = PatientMechanism(
        sampling_rate=0.1,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        expected_batch_size=4.0,
        num_steps=1,
    )
    with pytest.raises(PrivacyError, match="FH-PRIVACY-055"):
        session.train(np.zeros(1000, dtype=np.float32), replace(_task(), mechanism=mechanism))
    assert session.patient_metrics(np.zeros(1000, dtype=np.float32)) == {}


def test_a_delayed_training_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    study = _study(delay_s=60)
    spec = TensorSpec.of(AddOne().initial_tensors(study, study.runs[0]))
    session = AddOne().open_session(study, study.runs[0], spec, _site(tmp_path))
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(CancelledTrainingError, match="FH-TRAIN-001"):
        session.train(np.zeros(1000, dtype=np.float32), _task(stop.is_set))


def test_only_the_named_sites_are_slow(tmp_path: Path) -> None:
    study = _study(delay_s=60, delay_sites=["site-b"])
    spec = TensorSpec.of(AddOne().initial_tensors(study, study.runs[0]))
    session = AddOne().open_session(study, study.runs[0], spec, _site(tmp_path))
    assert session.train(np.zeros(1000, dtype=np.float32), _task()).metrics == {}


@pytest.mark.parametrize("options", [{"num_tensors": 2000}, {"sleep": 1}, {"delay_s": -1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    study = _study(**options)
    with pytest.raises(ConfigError, match="FH-MODEL-001"):
        AddOne().initial_tensors(study, study.runs[0])


def test_add_one_imports_no_torch() -> None:
    code = "import sys, fedhealth.training.add_one; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
