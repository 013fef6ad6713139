"""What a site keeps between rounds belongs to one version of a study: none of another's reaches a round."""

from pathlib import Path
from typing import Any

import pytest

from fedhealth.config.study import Study
from fedhealth.contracts.local_training import PatientMechanism, SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import TrainingError
from fedhealth.training.supervised import SupervisedSession, SupervisedTraining

NOISE = {"noise_multiplier": 1.0, "clipping_norm": 1.0}
MECHANISM = PatientMechanism(
    sampling_rate=0.5,
    noise_multiplier=1.0,
    clipping_norm=1.0,
    expected_batch_size=8.0,
    num_steps=2,
)
KEEP_STATE = {
    "private_head": {"personalisation": "private_head"},
    "mr_mtl": {"personalisation": "mr_mtl"},
    "ditto": {"personalisation": "ditto"},
    "control variates": {"control_variates": True, "strategy": {"name": "scaffold"}},
}


def make_study(tiny: Any, run: dict[str, Any], **changes: Any) -> Study:
    runs = [{"name": "main", "num_rounds": 3} | run]
    sgd = {"name": "sgd", "learning_rate": 0.05}
    training = {"local_steps": 2, "batch_size": 8, "optimizer": sgd}
    made: Study = tiny.study(training=training, runs=runs, **changes)
    return made


def opened(study: Study, site: SiteContext) -> tuple[SupervisedSession, Any]:
    run = study.runs[0]
    tensors = SupervisedTraining().initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    return SupervisedTraining().open_session(study, run, spec, site), spec.flatten(tensors)


@pytest.mark.parametrize("run", KEEP_STATE.values(), ids=KEEP_STATE)
def test_what_was_trained_without_noise_never_begins_a_private_round(
    tmp_path: Path, tiny: Any, run: dict[str, Any]
) -> None:
    # A consortium adds `privacy` to its study and keeps the id; a site with the old state misses round 1.
    plain = make_study(tiny, run)
    site = tiny.site(tmp_path, plain, tiny.patients(30))
    session, vector = opened(plain, site)
    session.train(vector, tiny.task(1))
    session.commit(1)
    opened(plain, site)  # the same study goes on from it
    private = make_study(tiny, run, privacy=NOISE, release={"metrics": []})
    with pytest.raises(TrainingError, match="FH-TRAIN-006"):
        opened(private, site)
