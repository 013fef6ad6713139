"""What a round freezes stays as it came, bit for bit, with every optimiser and under private steps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.blocks import blocks_of
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.training.supervised import SupervisedTraining

METHOD = SupervisedTraining()
MECHANISM = PatientMechanism(
    sampling_rate=0.5,
    noise_multiplier=1.0,
    clipping_norm=1.0,
    expected_batch_size=8.0,
    num_steps=3,
)
PRIVATE = {"noise_multiplier": 1.0, "clipping_norm": 1.0}
OPTIMIZERS = [
    {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
]


def opened(tiny: Any, folder: Any, study: Any) -> tuple[Any, TensorSpec, dict[str, Any], set[str]]:
    """A session, its spec, the initial tensors, and the names of the image encoder's."""
    run = study.runs[0]
    tensors = METHOD.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    blocks = {b.modality: b for b in blocks_of(spec, METHOD.modality_prefixes(study, run))}
    site = tiny.site(folder, study, tiny.patients(30))
    return METHOD.open_session(study, run, spec, site), spec, tensors, set(blocks["mri"].tensors)


def task(tiny: Any, number: int, frozen: set[str], mechanism: Any = None, **config: float) -> Any:
    made = tiny.task(number, **config)
    return replace(made, frozen=frozenset(frozen), mechanism=mechanism)


def moved(update: Any, before: dict[str, Any]) -> set[str]:
    return {n for n, t in update.tensors.items() if t.tobytes() != before[n].tobytes()}


def test_the_blocks_of_the_default_model_are_its_encoders_and_no_absent_token(tiny: Any) -> None:
    study = tiny.study()
    names = list(METHOD.initial_tensors(study, study.runs[0]))
    prefixes = METHOD.modality_prefixes(study, study.runs[0])
    owned = {n for own in prefixes.values() for n in names if n.startswith(own)}
    assert {n for n in names if n.startswith("encoders.")} == owned
    assert any(n.startswith("absent.") for n in names)
    assert not any("absent" in n for n in owned)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o["name"])
def test_no_step_decay_or_proximal_pull_moves_a_frozen_tensor(
    tiny: Any, tmp_path: Any, optimizer: dict[str, Any]
) -> None:
    study = tiny.study(training={"local_epochs": 1, "batch_size": 8, "optimizer": optimizer})
    session, spec, before, frozen = opened(tiny, tmp_path, study)
    vector = spec.flatten(before)
    update = session.train(vector, task(tiny, 1, frozen, proximal_mu=0.5))
    assert moved(update, before) == set(before) - frozen
    # The next round may train what this one froze, and the same task without freezing does.
    assert moved(session.train(vector, task(tiny, 1, set())), before) == set(before)


def test_a_strategy_that_stretches_updates_leaves_the_bits_of_a_frozen_tensor(
    tiny: Any, tmp_path: Any
) -> None:
    session, spec, before, frozen = opened(tiny, tmp_path, tiny.study())
    for name in frozen:
        before[name].flat[0] = -0.0  # a sum with a change of zero would lose the sign
    update = session.train(spec.flatten(before), task(tiny, 1, frozen, effective_steps=2.5))
    assert moved(update, before) == set(before) - frozen


@pytest.mark.parametrize("mechanism", [None, MECHANISM], ids=["plain", "private"])
def test_control_variates_of_frozen_tensors_stay_too(
    tiny: Any, tmp_path: Any, mechanism: Any
) -> None:
    runs = [{"name": "plain", "num_rounds": 3, "control_variates": True}]
    sgd = {"name": "sgd", "learning_rate": 0.05}
    training = {"local_epochs": 1, "batch_size": 8, "optimizer": sgd}
    privacy = {} if mechanism is None else {"privacy": PRIVATE}
    study = tiny.study(training=training, runs=runs, **privacy)
    session, spec, before, frozen = opened(tiny, tmp_path, study)
    assert {name.removeprefix("control.") for name in frozen} < frozen
    for name in before:
        if name.startswith("control."):  # as in a later round: its correction would move the tensor
            before[name] = np.full_like(before[name], 0.01)
    for number in (1, 2):
        update = session.train(spec.flatten(before), task(tiny, number, frozen, mechanism))
        assert moved(update, before) == set(before) - frozen
        session.commit(number)


def test_frozen_tensors_get_no_noise_and_all_others_do(tiny: Any, tmp_path: Any) -> None:
    study = tiny.study(privacy=PRIVATE)
    session, spec, before, frozen = opened(tiny, tmp_path, study)
    vector = spec.flatten(before)
    for number, chosen in enumerate([frozen, set(), frozen], start=1):
        update = session.train(vector, task(tiny, number, chosen, MECHANISM))
        assert moved(update, before) == set(before) - chosen
        assert update.mechanism == MECHANISM


def test_freezing_what_no_patient_has_changes_nothing_else(tiny: Any, tmp_path: Any) -> None:
    # An encoder that is never used has no gradient: the rest is trained as it would be.
    from dataclasses import replace

    study = tiny.study()
    patients = tuple(replace(p, volumes={}) for p in tiny.patients(30))
    run, tensors = study.runs[0], METHOD.initial_tensors(study, study.runs[0])
    spec = TensorSpec.of(tensors)
    frozen = {n for n in tensors if n.startswith("encoders.volume_mri.")}
    session = METHOD.open_session(study, run, spec, tiny.site(tmp_path, study, patients))
    vector = spec.flatten(tensors)
    free = session.train(vector, task(tiny, 1, set())).tensors
    held = session.train(vector, task(tiny, 1, frozen)).tensors
    assert all(np.array_equal(free[name], held[name]) for name in tensors)


def test_a_site_without_images_adds_an_exact_zero_to_an_image_encoder_that_all_sites_average(
    tiny: Any, tmp_path: Any
) -> None:
    # Why masks need a floor of owners there too: the encoder's part of a sum is that of the sites with images.
    study = tiny.study()
    run = study.runs[0]
    before = METHOD.initial_tensors(study, run)
    spec = TensorSpec.of(before)
    blocks = {b.modality: b for b in blocks_of(spec, METHOD.modality_prefixes(study, run))}
    without = [replace(p, volumes={}) for p in tiny.patients(30)]
    session = METHOD.open_session(study, run, spec, tiny.site(tmp_path, study, without))
    update = session.train(spec.flatten(before), tiny.task(1))
    assert blocks["mri"].tensors
    assert not moved(update, before) & set(blocks["mri"].tensors)
    assert set(blocks["ehr"].tensors) <= moved(update, before)
