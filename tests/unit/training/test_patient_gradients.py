"""Each patient's own gradient for one global step a round: the right ones, one by one, and nobody else's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedhealth.contracts.local_training import GivesPatientGradients
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import CancelledTrainingError
from fedhealth.training.supervised import SupervisedTraining, protects_patients


def session_of(tiny: Any, tmp_path: Path, patients: Any) -> tuple[Any, Any, TensorSpec]:
    plan = {"local_steps": 1, "batch_size": 8, "modality_dropout": 0.0}
    noise = {
        "unit": "patient",
        "num_sites": 3,
        "num_patients": 30,
        "clipping_norm": 1.0,
        "noise_multiplier": 1.0,
    }
    study = tiny.study(
        training=plan,
        runs=[{"name": "plain", "num_rounds": 3}],
        federation={"min_cohort": 3},
        secure_aggregation={"distributed_privacy": noise},
    )
    method = SupervisedTraining()
    tensors = method.initial_tensors(study, study.run("plain"))
    spec = TensorSpec.of(tensors)
    site = tiny.site(tmp_path, study, patients)
    session = method.open_session(study, study.run("plain"), spec, site)
    return session, spec.flatten(tensors), spec


def gradients(session: Any, vector: Any) -> list[Any]:
    return list(session.patient_gradients(vector, lambda: False))


def test_their_mean_is_the_gradient_of_the_mean_loss(tiny: Any, tmp_path: Path) -> None:
    session, vector, spec = session_of(tiny, tmp_path, tiny.patients(40, seed=3))
    found = gradients(session, vector)
    assert len(found) == session._train.num_patients
    learner = session._learner
    batch = session._train.batch(np.arange(len(session._train)))
    learner.model.train()
    loss = learner.task.loss(learner.model(batch), batch.labels)
    expected = torch.autograd.grad(loss, list(learner.shared.values()), allow_unused=True)
    flat = spec.flatten(
        {
            name: np.zeros(tuple(p.shape), dtype=np.float32) if g is None else g.numpy()
            for (name, p), g in zip(learner.shared.items(), expected, strict=True)
        }
    )
    np.testing.assert_allclose(np.mean(found, axis=0), flat, atol=2e-6)


def test_one_patient_more_adds_one_gradient_and_changes_no_other(tiny: Any, tmp_path: Path) -> None:
    patients = tiny.patients(40, seed=3)
    session, vector, _ = session_of(tiny, tmp_path, patients)
    all_of_them = gradients(session, vector)
    fewer, vector, _ = session_of(tiny, tmp_path, patients[:-1])
    rest = gradients(fewer, vector)
    assert len(all_of_them) - len(rest) in {0, 1}
    unmatched = [g for g in all_of_them if not any(np.allclose(g, r, atol=1e-6) for r in rest)]
    assert len(unmatched) == len(all_of_them) - len(rest)


def test_it_stops_when_the_round_is_cancelled(tiny: Any, tmp_path: Path) -> None:
    session, vector, _ = session_of(tiny, tmp_path, tiny.patients(40, seed=3))
    with pytest.raises(CancelledTrainingError):
        list(session.patient_gradients(vector, lambda: True))


def test_such_a_study_protects_patients_and_its_session_gives_gradients(
    tiny: Any, tmp_path: Path
) -> None:
    session, _, _ = session_of(tiny, tmp_path, tiny.patients(10, seed=3))
    assert isinstance(session, GivesPatientGradients)
    assert protects_patients(session._study)
    assert not protects_patients(tiny.study())
