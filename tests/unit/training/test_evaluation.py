import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.data import SplitName
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import TrainingError
from fedhealth.training.evaluation import evaluate_on_test, train_alone
from fedhealth.training.supervised import SupervisedTraining


def test_a_result_holds_every_metric_and_an_interval_around_the_auc(
    tmp_path: Path, tiny: Any
) -> None:
    study = tiny.study()
    result = train_alone(study, study.run("plain"), tiny.site(tmp_path, study, tiny.patients(120)))
    assert 10 < result.num_patients < 40
    values = dataclasses.asdict(result)
    assert None not in values.values()
    assert values["auc_low"] < values["auc"] < values["auc_high"]
    assert not list(tmp_path.iterdir())


def test_training_alone_is_one_site_federated_with_itself(tmp_path: Path, tiny: Any) -> None:
    study, patients = tiny.study(), tiny.patients(60)
    site, run = tiny.site(tmp_path, study, patients), study.run("plain")
    method = SupervisedTraining()
    tensors = method.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    session, vector = method.open_session(study, run, spec, site), spec.flatten(tensors)
    for round_number in range(1, run.num_rounds + 1):
        vector = spec.flatten(session.train(vector, tiny.task(round_number)).tensors)
    assert train_alone(study, run, site) == evaluate_on_test(study, run, vector, site)


def test_training_alone_is_the_same_for_a_personalised_run_of_that_length(
    tmp_path: Path, tiny: Any
) -> None:
    study = tiny.study()
    site = tiny.site(tmp_path, study, tiny.patients(60))
    alone = train_alone(study, study.run("heads"), site)
    assert alone.num_patients > 0
    assert not list(tmp_path.iterdir())


def test_a_personalised_run_is_judged_with_the_committed_head(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    run, site = study.run("heads"), tiny.site(tmp_path, study, tiny.patients(60))
    tensors = SupervisedTraining().initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    vector = spec.flatten(tensors)
    with pytest.raises(TrainingError, match="FH-TRAIN-009"):
        evaluate_on_test(study, run, vector, site)
    session = SupervisedTraining().open_session(study, run, spec, site)
    session.train(vector, tiny.task(1))
    session.commit(1)
    first = evaluate_on_test(study, run, vector, site)
    session.train(vector, tiny.task(2))
    session.commit(2)
    assert evaluate_on_test(study, run, vector, site) != first


def test_without_test_patients_nothing_is_claimed(tmp_path: Path, tiny: Any) -> None:
    study, patients = tiny.study(), tiny.patients(10)
    everyone = {patient.patient_id: SplitName.TRAIN for patient in patients}
    site = tiny.site(tmp_path, study, patients, fixed_split=everyone)
    result = train_alone(study, study.run("plain"), site)
    assert result.num_patients == 0
    assert result.auc is None


def test_one_class_among_test_patients_leaves_the_auc_open(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    patients = tiny.patients(60, one_class=True)
    result = train_alone(study, study.run("plain"), tiny.site(tmp_path, study, patients))
    assert (result.auc, result.auc_low, result.auc_high) == (None, None, None)
    assert result.log_loss is not None
    assert np.isfinite(result.log_loss)
