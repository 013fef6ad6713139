"""Models that differ between sites: the shared blocks travel, everything else stays and is trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhealth.config.study import Study
from fedhealth.config.variants import own_study
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.data.split import split_patients
from fedhealth.errors import ConfigError
from fedhealth.training.evaluation import evaluate_on_test, train_alone
from fedhealth.training.learner import Learner, load
from fedhealth.training.supervised import SupervisedTraining

METHOD = SupervisedTraining()
OPTIONS = {"image_widths": [4, 8], "embedding_size": 4}
BLOCKS = ["encoders.table_ehr.", "absent.", "fusion."]
SITES = {"st-mary": "wide", "st-john": None, "st-anne": "tables"}


def study_of(tiny: Any, *, blocks: list[str] | None = None, **changes: Any) -> Study:
    models = {
        "shared_blocks": blocks or BLOCKS,
        "variants": {
            "wide": {
                "model": {"name": "multimodal", "options": OPTIONS | {"image_widths": [8, 8]}}
            },
            "tables": {"model": {"name": "multimodal", "options": OPTIONS | {"image_widths": [4]}}},
        },
    }
    run = {"name": "plain", "num_rounds": 3, "personalisation": "private_blocks"}
    study: Study = tiny.study(**({"site_models": models, "runs": [run]} | changes))
    return study


def first(study: Study) -> tuple[TensorSpec, Any]:
    tensors = METHOD.initial_tensors(study, study.runs[0])
    spec = TensorSpec.of(tensors)
    return spec, spec.flatten(tensors)


def test_three_sites_with_three_models_train_the_blocks_they_share(
    tmp_path: Path, tiny: Any
) -> None:
    study = study_of(tiny)
    spec, vector = first(study)
    assert all(name.startswith(tuple(BLOCKS)) for name in spec.names())
    sessions = {}
    for number, (site_id, variant) in enumerate(SITES.items()):
        own = own_study(study, variant)
        assert TensorSpec.of(METHOD.initial_tensors(own, own.runs[0])) == spec
        site = tiny.site(tmp_path / site_id, own, tiny.patients(40, seed=number), site_id=site_id)
        sessions[site_id] = METHOD.open_session(own, own.runs[0], spec, site)
    for round_number in (1, 2):
        updates = []
        for session in sessions.values():
            update = session.train(vector, tiny.task(round_number))
            assert list(update.tensors) == spec.names()
            updates.append(spec.flatten(update.tensors))
            session.commit(round_number)
        before, vector = vector, np.mean(updates, axis=0, dtype=np.float32)
        assert not np.array_equal(vector, before)
    kept = {
        site_id: sum(path.stat().st_size for path in (tmp_path / site_id).rglob("head_00002*"))
        for site_id in SITES
    }
    assert kept["st-mary"] > kept["st-john"] > kept["st-anne"] > 0
    assert all("log_loss" in session.evaluate(vector) for session in sessions.values())


def test_what_is_kept_is_taken_up_by_a_restarted_site(tmp_path: Path, tiny: Any) -> None:
    study = study_of(tiny)
    spec, vector = first(study)
    own = own_study(study, "wide")
    site = tiny.site(tmp_path, own, tiny.patients(40))
    session = METHOD.open_session(own, own.runs[0], spec, site)
    untrained = session.evaluate(vector)
    session.train(vector, tiny.task(1))
    session.commit(1)
    trained = session.evaluate(vector)
    assert trained != untrained
    assert METHOD.open_session(own, own.runs[0], spec, site).evaluate(vector) == trained


def test_blocks_that_leave_out_the_head_alone_are_the_private_head(
    tmp_path: Path, tiny: Any
) -> None:
    blocks = study_of(tiny, blocks=["encoders.", "absent.", "fusion."])
    heads: Study = tiny.study(
        runs=[{"name": "plain", "num_rounds": 3, "personalisation": "private_head"}]
    )
    results = []
    for name, study in (("blocks", blocks), ("heads", heads)):
        spec, vector = first(study)
        site = tiny.site(tmp_path / name, study, tiny.patients(40))
        session = METHOD.open_session(study, study.runs[0], spec, site)
        results.append(session.train(vector, tiny.task(1)).tensors)
    assert set(results[0]) == set(results[1])
    for name, tensor in results[0].items():
        assert np.array_equal(tensor, results[1][name])


def test_under_privacy_what_stays_is_noised_too(tmp_path: Path, tiny: Any) -> None:
    privacy = {"noise_multiplier": 1.0, "clipping_norm": 1.0}
    study = study_of(tiny, privacy=privacy, release={"metrics": []})
    spec, vector = first(study)
    own = own_study(study, "tables")
    site = tiny.site(tmp_path, own, tiny.patients(40))
    session = METHOD.open_session(own, own.runs[0], spec, site)
    before = {name: tensor.copy() for name, tensor in session._first_private.items()}
    mechanism = PatientMechanism(
        sampling_rate=0.5,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        expected_batch_size=14,
        num_steps=1,
    )
    task = tiny.task(1)
    session.train(vector, type(task)(**{**_fields(task), "mechanism": mechanism}))
    session.commit(1)
    assert any(name.startswith("encoders.volume_mri.") for name in before)
    for name, tensor in before.items():
        # Noise is continuous: a number that did not move got none.
        assert (session._state.own[name] != tensor).all(), name


def _fields(task: Any) -> dict[str, Any]:
    return {name: getattr(task, name) for name in task.__dataclass_fields__}


def test_a_site_does_not_open_a_session_on_other_shared_tensors(tmp_path: Path, tiny: Any) -> None:
    spec, _ = first(study_of(tiny))
    other = study_of(tiny, blocks=["fusion."])
    with pytest.raises(ConfigError, match="FH-TRAIN-003"):
        METHOD.open_session(
            other, other.runs[0], spec, tiny.site(tmp_path, other, tiny.patients(20))
        )


def test_a_site_is_judged_with_its_own_blocks_and_alone_with_its_own_whole_model(
    tmp_path: Path, tiny: Any
) -> None:
    study = study_of(tiny)
    spec, vector = first(study)
    own = own_study(study, "wide")
    site = tiny.site(tmp_path, own, tiny.patients(60))
    alone = train_alone(own, own.runs[0], site)
    assert alone.num_patients > 0
    assert not list(tmp_path.iterdir())
    session = METHOD.open_session(own, own.runs[0], spec, site)
    update = session.train(vector, tiny.task(1))
    session.commit(1)
    shared = spec.flatten(update.tensors)
    judged = evaluate_on_test(own, own.runs[0], shared, site)
    learner = Learner(own, own.runs[0])
    load(learner.shared, spec.unflatten(shared))
    load(learner.private, session._state.own)
    sides = split_patients(site.load_cohort())
    dataset = PatientDataset(sides[SplitName.TEST], learner.contract)
    expected = learner.task.metrics(learner.predict(dataset, batch_size=64), dataset.labels.numpy())
    assert judged.log_loss == pytest.approx(expected["log_loss"], rel=1e-6)
