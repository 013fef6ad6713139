"""SCAFFOLD at a site: corrected steps by hand, durable state, why its second half is no new release."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedhealth.config.study import Study
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import PatientMechanism, RoundTask, SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import TrainingError
from fedhealth.gate.gate import ReleaseTerms, UpdateClip, clear_update
from fedhealth.training.evaluation import scores_on_test
from fedhealth.training.supervised import SupervisedSession, SupervisedTraining

RATE = 0.05
SGD = {"name": "sgd", "learning_rate": RATE}
SEED = bytes(range(32))


def make_study(tiny: Any, **changes: Any) -> Study:
    runs = [
        {
            "name": "corrected",
            "num_rounds": 3,
            "control_variates": True,
            "strategy": {"name": "scaffold"},
        },
        {"name": "plain", "num_rounds": 3},
    ]
    training = {"local_steps": 3, "batch_size": 8, "optimizer": SGD, "modality_dropout": 0.0}
    made: Study = tiny.study(**{"training": training, "runs": runs, **changes})
    return made


def open_session(study: Study, site: SiteContext) -> tuple[SupervisedSession, Any, TensorSpec]:
    run = study.run("corrected")
    tensors = SupervisedTraining().initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    session = SupervisedTraining().open_session(study, run, spec, site)
    return session, spec.flatten(tensors), spec


def halves(vector: Any) -> tuple[Any, Any]:
    middle = vector.size // 2
    return vector[:middle], vector[middle:]


def go(session: SupervisedSession, spec: TensorSpec, vector: Any, task: RoundTask) -> Any:
    return spec.flatten(session.train(vector, task).tensors)


def test_the_run_has_every_shared_tensor_twice_the_second_at_zero(tiny: Any) -> None:
    study = make_study(tiny)
    corrected = SupervisedTraining().initial_tensors(study, study.run("corrected"))
    plain = SupervisedTraining().initial_tensors(study, study.run("plain"))
    assert list(corrected) == [*plain, *(f"control.{name}" for name in plain)]
    for name, tensor in plain.items():
        np.testing.assert_array_equal(corrected[name], tensor)
        assert corrected[f"control.{name}"].shape == tensor.shape
        assert not corrected[f"control.{name}"].any()


def test_with_zero_controls_the_first_round_trains_as_fedavg_does(
    tmp_path: Path, tiny: Any
) -> None:
    study = make_study(tiny)
    # The batch order is of the run's name: give FedAvg the same.
    plain_runs = [{"name": "corrected", "num_rounds": 3}]
    plain = make_study(tiny, runs=plain_runs)
    first, vector, spec = open_session(study, tiny.site(tmp_path / "a", study, tiny.patients(30)))
    second, start, half = open_session(plain, tiny.site(tmp_path / "b", plain, tiny.patients(30)))
    y, control = halves(go(first, spec, vector, tiny.task(1)))
    np.testing.assert_array_equal(y, go(second, half, start, tiny.task(1)))
    np.testing.assert_allclose(control, (start - y) / (3 * RATE), rtol=1e-5, atol=1e-6)


def test_every_step_is_corrected_by_c_minus_c_i(tmp_path: Path, tiny: Any) -> None:
    """One step: a correction d moves y by exactly -eta d more, in every tensor, one without a gradient too."""
    study = make_study(
        tiny,
        training={"local_steps": 1, "batch_size": 8, "optimizer": SGD, "modality_dropout": 0.0},
    )
    session, vector, spec = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    plain, _ = halves(go(session, spec, vector, tiny.task(1)))
    shifted = vector.copy()
    d = np.random.default_rng(1).normal(size=vector.size // 2).astype(np.float32)
    shifted[vector.size // 2 :] = d
    corrected, _ = halves(go(session, spec, shifted, tiny.task(1)))
    np.testing.assert_allclose(corrected - plain, -RATE * d, atol=1e-6)


def test_c_i_follows_option_ii_over_rounds_and_survives_a_restart(
    tmp_path: Path, tiny: Any
) -> None:
    study, patients = make_study(tiny), tiny.patients(30)
    session, vector, spec = open_session(study, tiny.site(tmp_path, study, patients))
    c_own = np.zeros(vector.size // 2)
    for number in (1, 2):
        x, c = halves(vector.astype(np.float64))
        y, _ = halves(go(session, spec, vector, tiny.task(number)))
        session.commit(number)
        c_own = c_own - c + (x - y) / (3 * RATE)
        vector = np.concatenate([y, (0.5 * (c + c_own)).astype(np.float32)])
    expected = go(session, spec, vector, tiny.task(3))
    stored = session._controls.before(3)
    flat = np.concatenate([stored[name].ravel() for name in stored])
    np.testing.assert_allclose(flat, c_own, rtol=1e-4, atol=1e-5)
    again, _, _ = open_session(study, tiny.site(tmp_path, study, patients))
    np.testing.assert_array_equal(go(again, spec, vector, tiny.task(3)), expected)


def test_a_repeated_round_begins_from_the_control_variate_before_it(
    tmp_path: Path, tiny: Any
) -> None:
    study = make_study(tiny)
    session, vector, spec = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    first = go(session, spec, vector, tiny.task(1))
    session.commit(1)
    second = go(session, spec, first, tiny.task(2))
    session.commit(2)
    np.testing.assert_array_equal(go(session, spec, first, tiny.task(2)), second)
    session.commit(2)
    np.testing.assert_array_equal(go(session, spec, vector, tiny.task(1)), first)


def test_a_round_that_was_never_committed_leaves_no_trace(tmp_path: Path, tiny: Any) -> None:
    study = make_study(tiny)
    session, vector, spec = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    moved = go(session, spec, vector, tiny.task(1))  # void at the server, not sealed here
    after = go(session, spec, moved, tiny.task(2))
    fresh, _, _ = open_session(study, tiny.site(tmp_path / "b", study, tiny.patients(30)))
    np.testing.assert_array_equal(go(fresh, spec, moved, tiny.task(2)), after)


def _mechanism() -> PatientMechanism:
    return PatientMechanism(
        sampling_rate=0.3,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        expected_batch_size=8.0,
        num_steps=4,
    )


def _privately(tmp_path: Path, tiny: Any, count: int) -> tuple[Any, list[Any], list[Any]]:
    """Two private rounds of a site: what came in, and what left."""
    study = make_study(tiny, privacy={"noise_multiplier": 1.0})
    site = replace(tiny.site(tmp_path, study, tiny.patients(count)), noise_seed=SEED)
    session, vector, spec = open_session(study, site)
    came, left = [], []
    for number in (1, 2):
        came.append(vector)
        task = replace(tiny.task(number), mechanism=_mechanism())
        left.append(go(session, spec, vector, task))
        session.commit(number)
        y, control = halves(left[-1])
        vector = np.concatenate([y, 0.3 * control])
    return session, came, left


@pytest.mark.parametrize("count", [0, 30])
def test_under_patient_privacy_all_that_is_new_follows_from_the_noised_tensors(
    tmp_path: Path, tiny: Any, count: int
) -> None:
    """Post-processing: both the second half that leaves and c_i are worked out here without the site, from what came
    in and the trained tensors that left, so neither tells more about a patient than these. K and eta are public."""
    session, came, left = _privately(tmp_path, tiny, count)
    c_own = np.zeros(came[0].size // 2)
    for incoming, outgoing in zip(came, left, strict=True):
        (x, c), (y, second) = halves(incoming.astype(np.float64)), halves(outgoing)
        seen = (x - y) / (4 * RATE)
        np.testing.assert_allclose(second, seen, rtol=1e-5, atol=1e-6)
        c_own = c_own - c + seen
    stored = session._controls.before(3)
    flat = np.concatenate([stored[name].ravel() for name in stored])
    np.testing.assert_allclose(flat, c_own, rtol=1e-4, atol=1e-5)


def test_noise_is_on_both_halves_without_any_patient(tmp_path: Path, tiny: Any) -> None:
    _, came, left = _privately(tmp_path, tiny, 0)
    for half in halves(left[0] - came[0]):
        assert np.all(half != 0)


def test_one_global_norm_clips_both_halves_together(tmp_path: Path, tiny: Any) -> None:
    """What the gate clips under site-level privacy, and what distributed noise is sized for, is the whole vector."""
    study = make_study(tiny)
    session, vector, spec = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    update = session.train(vector, tiny.task(1))
    whole = np.linalg.norm((spec.flatten(update.tensors) - vector).astype(np.float64))
    model, control = (
        float(np.linalg.norm(half.astype(np.float64)))
        for half in halves(spec.flatten(update.tensors) - vector)
    )
    limit = 0.5 * whole
    assert model < limit < control  # a clip of the model's half alone would leave all as it is
    terms = ReleaseTerms(
        spec=spec,
        metrics=(),
        metric_digits=3,
        mechanism=None,
        clip=UpdateClip(origin=vector, norm=limit),
        is_masked=False,
    )
    cleared = clear_update(
        update.tensors,
        train_metrics={},
        evaluate_metrics={},
        terms=terms,
        carried_out=None,
        generator=None,
    )
    moved = cleared.vector - vector
    assert np.linalg.norm(moved.astype(np.float64)) <= limit
    scale = limit / whole
    np.testing.assert_allclose(moved, scale * (spec.flatten(update.tensors) - vector), atol=1e-5)


def test_a_private_head_is_trained_beside_and_never_corrected(tmp_path: Path, tiny: Any) -> None:
    runs = [
        {
            "name": "corrected",
            "num_rounds": 3,
            "control_variates": True,
            "personalisation": "private_head",
            "strategy": {"name": "scaffold"},
        }
    ]
    study = make_study(tiny, runs=runs)
    session, vector, spec = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    assert not [name for name in spec.names() if "head." in name]
    go(session, spec, vector, tiny.task(1))
    session.commit(1)
    assert sorted(path.parent.parent.name for path in tmp_path.rglob("head_00001.*")) == [
        "control_variates",
        "private_heads",
    ]


def test_a_strategy_that_asks_for_more_is_refused(tmp_path: Path, tiny: Any) -> None:
    study = make_study(tiny)
    session, vector, _ = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    with pytest.raises(TrainingError, match="FH-TRAIN-007"):
        session.train(vector, tiny.task(1, proximal_mu=0.1))


def test_a_damaged_control_variate_is_named_and_not_replaced_by_zeros(
    tmp_path: Path, tiny: Any
) -> None:
    study = make_study(tiny)
    session, vector, spec = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    go(session, spec, vector, tiny.task(1))
    session.commit(1)
    next(tmp_path.rglob("head_00001.safetensors")).write_bytes(b"?")
    with pytest.raises(TrainingError, match="the control variate in"):
        open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))


def test_the_models_half_alone_is_judged_on_test_patients(tmp_path: Path, tiny: Any) -> None:
    study = make_study(tiny)
    site = tiny.site(tmp_path, study, tiny.patients(60))
    _, vector, _ = open_session(study, site)
    half = vector[: vector.size // 2]
    with_controls = scores_on_test(study, study.run("corrected"), vector, site)
    plain = scores_on_test(study, study.run("plain"), half, site)
    np.testing.assert_array_equal(with_controls.probabilities, plain.probabilities)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"name": "adam", "learning_rate": 0.01}}, "sgd without momentum"),
        ({"optimizer": {**SGD, "momentum": 0.9}}, "sgd without momentum"),
    ],
)
def test_steps_that_are_not_plain_are_refused_with_the_reason(
    tiny: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make_study(tiny, training={"local_steps": 1, **changes})


def test_a_study_that_averages_encoders_by_modality_is_refused(tiny: Any) -> None:
    with pytest.raises(ValueError, match="sites_with_modality"):
        make_study(tiny, federation={"average_encoders_over": "sites_with_modality"})


def test_study_check_refuses_a_training_method_that_does_not_know_them(tiny: Any) -> None:
    from fedhealth.cli.study_check import check_whole_study

    made = make_study(tiny, training={"name": "add_one", "local_steps": 1, "optimizer": SGD})
    found = check_whole_study(made, build=False)
    assert "FH-TRAIN-051" in [one.code for one in found if one.level == "error"]
    fine = check_whole_study(make_study(tiny), build=False)
    assert [one for one in fine if one.level == "error"] == []


def by_epochs(tiny: Any, **changes: Any) -> Study:
    training = {"local_epochs": 1, "batch_size": 8, "optimizer": SGD, "modality_dropout": 0.0}
    return make_study(tiny, training=training, **changes)


def test_both_halves_of_a_sum_tell_the_site_that_takes_other_steps_than_the_rest(
    tmp_path: Path, tiny: Any
) -> None:
    # Why masks and control variates need `local_steps`: the second half is the first over a site's own number of steps.
    study, sums, changes = by_epochs(tiny), [], []
    weights = {"a": 16.0, "b": 16.0, "c": 8.0}  # two sites of two steps, one of one
    for name, size in weights.items():
        patients = tiny.patients(int(size), seed=ord(name))
        split = dict.fromkeys((p.patient_id for p in patients), SplitName.TRAIN)
        site = tiny.site(tmp_path / name, study, patients, site_id=name, fixed_split=split)
        session, vector, spec = open_session(study, site)
        y, control = halves(go(session, spec, vector, tiny.task(1)).astype(np.float64))
        x, c = halves(vector.astype(np.float64))
        changes.append(y - x)
        sums.append((size * (y - x), size * (control - c)))
    model, controls = (np.sum([s[half] for s in sums], axis=0) for half in (0, 1))
    shown = (-2 * RATE * controls - model) / weights["c"]  # twice what one step is, less what it is
    assert np.linalg.norm(changes[2]) > 1e-3
    assert np.linalg.norm(shown - changes[2]) < 1e-2 * np.linalg.norm(changes[2])


def test_masks_take_control_variates_of_equal_numbers_of_steps_only(tiny: Any) -> None:
    masks = {"secure_aggregation": {"min_survivors": 3}, "federation": {"min_cohort": 3}}
    assert make_study(tiny, **masks).secure_aggregation is not None
    with pytest.raises(ValidationError, match=r"need training\.local_steps"):
        by_epochs(tiny, **masks)
    noise = {"unit": "site", "num_sites": 5, "clipping_norm": 1.0, "noise_multiplier": 1.0}
    noised = masks | {"secure_aggregation": {"distributed_privacy": noise}}
    assert by_epochs(tiny, **noised).secure_aggregation is not None


def test_a_removed_patient_moves_both_halves_by_the_step_of_one_clipped_gradient_at_most(
    tmp_path: Path, tiny: Any
) -> None:
    # By trying every neighbour, after a round that left a control variate: given it, nothing of a patient adds up.
    training = {"local_steps": 1, "batch_size": 4, "optimizer": SGD, "modality_dropout": 0.0}
    nearly_none = {"noise_multiplier": 1e-6, "clipping_norm": 0.02}
    study = make_study(tiny, training=training, privacy=nearly_none, release={"metrics": []})
    mechanism = PatientMechanism(
        sampling_rate=1.0,
        noise_multiplier=1e-6,
        clipping_norm=0.02,
        expected_batch_size=4.0,
        num_steps=1,
    )
    patients = tiny.patients(6)

    def released(left: Any, folder: Path, *, number: int, vector: Any = None) -> Any:
        split = dict.fromkeys((p.patient_id for p in left), SplitName.TRAIN)
        site = tiny.site(folder, study, left, fixed_split=split)
        session, first, spec = open_session(study, site)
        task = replace(tiny.task(number, run_name="corrected"), mechanism=mechanism)
        vector = first if vector is None else vector
        found = go(session, spec, vector, task).astype(np.float64)
        session.commit(number)
        return found

    state = tmp_path / "state"
    second = released(patients, state, number=1).astype(
        np.float32
    )  # what a server of one site would send back
    shutil.copytree(state, tmp_path / "whole")
    y, control = halves(released(patients, tmp_path / "whole", number=2, vector=second))
    for place in range(len(patients)):
        folder = shutil.copytree(state, tmp_path / f"without-{place}")
        left = patients[:place] + patients[place + 1 :]
        y_less, control_less = halves(released(left, folder, number=2, vector=second))
        one = 0.02 / 4.0  # a clipped gradient over the expected batch
        assert 0.5 * one < np.linalg.norm(control - control_less) <= one * 1.001
        assert np.linalg.norm(y - y_less) <= RATE * one * 1.001
        np.testing.assert_allclose(control - control_less, (y_less - y) / RATE, atol=2e-5)
