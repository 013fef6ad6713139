"""The baseline that federations are compared with: chosen without test patients, and really tuned."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.data import SplitName
from fedhealth.data.batch import PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.errors import TrainingError
from fedhealth.models.metrics import log_loss
from fedhealth.training.evaluation import train_alone
from fedhealth.training.frozen_encoders import apply_frozen_encoders
from fedhealth.training.learner import Learner
from fedhealth.training.tuned_alone import GRID, patient_folds, train_alone_tuned

FROZEN = {
    "name": "multimodal",
    "options": {"image_widths": [4, 8], "embedding_size": 4, "freeze_image_encoder": True},
}


def test_the_grid_is_fixed_and_holds_at_least_six_settings() -> None:
    assert len(set(GRID)) == len(GRID) == 24
    assert {setting.num_epochs for setting in GRID} == set(range(5, 45, 5))


def test_the_winner_has_the_least_loss_and_does_not_depend_on_test_patients(
    tmp_path: Path, tiny: Any
) -> None:
    study, patients = tiny.study(model=FROZEN), tiny.patients(45)
    run, site = study.run("heads"), tiny.site(tmp_path, study, patients)
    found = train_alone_tuned(study, run, site)
    assert found.setting == GRID[int(np.argmin(found.log_losses))]
    assert len(found.log_losses) == len(GRID)
    assert found.scores.metrics["log_loss"] == pytest.approx(
        log_loss(found.scores.probabilities, found.scores.labels)
    )
    test_ids = {p.patient_id for p in split_patients(site.load_cohort())[SplitName.TEST]}
    changed = tuple(
        dataclasses.replace(p, label=1 - p.label) if p.patient_id in test_ids else p
        for p in patients
    )
    again = train_alone_tuned(study, run, tiny.site(tmp_path, study, changed))
    assert (again.setting, again.log_losses) == (found.setting, found.log_losses)
    np.testing.assert_array_equal(again.scores.probabilities, found.scores.probabilities)
    np.testing.assert_array_equal(again.scores.labels, 1 - found.scores.labels)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # features; no state


@pytest.mark.slow
def test_tuning_is_worth_it_on_patients_that_nobody_trained_on(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study(model=FROZEN)
    site = tiny.site(tmp_path, study, tiny.patients(600))
    untuned = train_alone(study, study.run("plain"), site)
    tuned = train_alone_tuned(study, study.run("plain"), site).scores.metrics
    assert untuned.log_loss is not None
    assert tuned["log_loss"] < untuned.log_loss


def test_fewer_than_two_patients_are_refused(tmp_path: Path, tiny: Any) -> None:
    study, patients = tiny.study(model=FROZEN), tiny.patients(5)
    sides = {patient.patient_id: SplitName.TEST for patient in patients}
    sides[patients[0].patient_id] = SplitName.TRAIN
    site = tiny.site(tmp_path, study, patients, fixed_split=sides)
    with pytest.raises(TrainingError, match="FH-TRAIN-040"):
        train_alone_tuned(study, study.run("plain"), site)


@pytest.mark.parametrize(("count", "num_folds"), [(37, 4), (3, 3), (2, 2)])
def test_folds_share_out_patients_and_cases_evenly(tiny: Any, count: int, num_folds: int) -> None:
    study = tiny.study()
    dataset = PatientDataset(tiny.patients(count), study.data.to_contract(seed=study.seed))
    folds = patient_folds(dataset, 4, seed=3)
    assert len(folds) == num_folds
    np.testing.assert_array_equal(np.sort(np.concatenate(folds)), np.arange(count))
    labels = dataset.labels.numpy()
    for numbers in ([fold.size for fold in folds], [labels[fold].sum() for fold in folds]):
        assert max(numbers) - min(numbers) <= 1


def test_all_records_of_a_patient_are_in_one_fold(tiny: Any) -> None:
    study = tiny.study()
    contract = dataclasses.replace(study.data.to_contract(seed=study.seed), records_per_patient=3)
    records = [
        dataclasses.replace(record, patient_id=f"p{number // 3}")
        for number, record in enumerate(tiny.patients(60))
    ]
    folds = patient_folds(PatientDataset(records, contract), 4, seed=1)
    owners = [{int(row) // 3 for row in fold} for fold in folds]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 20
    assert sum(fold.size for fold in folds) == 60


class TestFrozenEncoders:
    def test_predictions_are_the_same_with_embeddings(self, tiny: Any) -> None:
        study = tiny.study(model=FROZEN)
        learner = Learner(study, study.run("plain"))
        patients = tiny.patients(40)
        dataset = PatientDataset(patients, learner.contract)
        before = learner.predict(dataset, batch_size=16)
        apply_frozen_encoders(learner, [dataset], batch_size=7)
        after = learner.predict(dataset, batch_size=16)
        # One float32 matrix product in another order; probabilities are below 1.
        np.testing.assert_allclose(after, before, atol=1e-6)
        assert dataset.batch([0, 1]).volumes["mri"].shape == (2, 4)
        rows = [5, 3, 30]
        taken = learner.predict(dataset.take(rows), batch_size=16)
        np.testing.assert_allclose(taken, before[rows], atol=1e-6)

    def test_a_site_without_any_image_still_has_the_width(self, tiny: Any) -> None:
        study = tiny.study(model=FROZEN)
        learner = Learner(study, study.run("plain"))
        patients = [dataclasses.replace(p, volumes={}) for p in tiny.patients(6)]
        dataset = PatientDataset(patients, learner.contract)
        before = learner.predict(dataset, batch_size=16)
        apply_frozen_encoders(learner, [dataset], batch_size=4)
        assert dataset.batch([0]).volumes["mri"].shape == (1, 4)
        np.testing.assert_array_equal(learner.predict(dataset, batch_size=16), before)

    def test_an_encoder_that_is_trained_is_left_in_the_model(self, tiny: Any) -> None:
        study = tiny.study()
        learner = Learner(study, study.run("plain"))
        dataset = PatientDataset(tiny.patients(4), learner.contract)
        apply_frozen_encoders(learner, [dataset], batch_size=4)
        assert dataset.batch([0]).volumes["mri"].shape == (1, 1, 8, 8, 8)
