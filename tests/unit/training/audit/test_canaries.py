"""Gradient canaries: they go through the product's clipping and sampling, and score what theory says."""

from typing import Any

import numpy as np
import torch

from fedhealth.privacy.audit.one_run import epsilon_ceiling, epsilon_lower_bound
from fedhealth.privacy.dp_sgd.noise import normals
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.audit.bench import canary_run, take_steps
from fedhealth.training.audit.gradient_canaries import (
    attack_gradients,
    attack_without_noise,
    num_guesses,
)
from fedhealth.training.audit.made_up_patients import made_up_patients
from fedhealth.training.audit.no_noise import NoNoise
from fedhealth.training.learner import Learner
from fedhealth.training.private_steps import clipped_gradients


def test_no_noise_means_none_and_leaves_sampling_alone() -> None:
    source = NoNoise(Randomness.seeded_for_tests(bytes(range(32))))
    assert not normals(source, 1001).any()
    assert not source.normals(1001).any()
    same = Randomness.seeded_for_tests(bytes(range(32)))
    assert (source.bernoulli(1000, 0.3) == same.bernoulli(1000, 0.3)).all()


def test_canaries_go_through_the_fast_clipping_that_studies_use(small: Any) -> None:
    run = canary_run(small.bench(), np.array([True, False, True]), small.patients())
    gradients = clipped_gradients(run.learner, run.dataset)
    assert gradients.uses_book_keeping
    gradients.close()


def test_canary_weights_change_no_logit(small: Any) -> None:
    run = canary_run(small.bench(), np.ones(5, dtype=bool), small.patients())
    batch = run.dataset.batch(range(len(run.dataset)))
    before = run.learner.model(batch)
    run.learner.shared["canaries.weight"].data.normal_()
    assert torch.equal(run.learner.model(batch), before)


def test_without_noise_a_canary_scores_how_often_it_was_drawn(small: Any) -> None:
    mechanisms = [small.mechanism()] * 4
    found = attack_without_noise(small.bench(), mechanisms, 60)
    scores = found.appearances
    # One part in 10,000: what a canary's gradient has besides its own weight, and the clipping margin.
    assert np.allclose(scores, np.round(scores), atol=40 * 1e-4)
    assert not np.round(scores[~found.is_included]).any()
    drawn = np.round(scores[found.is_included])
    assert drawn.min() >= 0
    assert drawn.max() <= 40
    expected, deviation = 40 * 0.2, np.sqrt(40 * 0.2 * 0.8 / len(drawn))
    assert abs(drawn.mean() - expected) < 5 * deviation


def test_with_noise_the_scores_have_the_spread_of_the_mechanism(small: Any) -> None:
    """Out: N(0, steps * noise^2). In: shifted by steps * rate."""
    found = attack_gradients(small.bench(), [small.mechanism()] * 4, 400)
    out, included = found.appearances[~found.is_included], found.appearances[found.is_included]
    spread = 1.5 * np.sqrt(40)
    assert abs(out.std() / spread - 1) < 5 / np.sqrt(2 * len(out))
    assert abs(out.mean()) < 5 * spread / np.sqrt(len(out))
    assert abs(included.mean() - 8) < 5 * spread / np.sqrt(len(included))


def test_control_reaches_the_ceiling_and_private_steps_stay_far_below(small: Any) -> None:
    mechanisms = [small.mechanism(noise_multiplier=4.0)] * 4
    control = attack_without_noise(small.bench(), mechanisms, 150).guesses
    guessed = {"num_canaries": 150, "delta": 1e-5}
    assert epsilon_lower_bound(control, delta=1e-5) == epsilon_ceiling(num_guesses(150), **guessed)
    private = attack_gradients(small.bench(), mechanisms, 150).guesses
    assert epsilon_lower_bound(private, delta=1e-5) < 1.0


def test_several_rounds_add_up(small: Any) -> None:
    run = canary_run(small.bench(), np.array([True]), [])
    everybody = small.mechanism(sampling_rate=1.0, num_steps=3)
    take_steps(
        small.bench(), run.learner, run.dataset, [everybody] * 2, NoNoise(Randomness.from_os())
    )
    assert np.allclose(run.released(everybody), [6.0], rtol=1e-4)


def test_made_up_patients_keep_the_contract(small: Any) -> None:
    study = small.study(with_volume=True)
    learner = Learner(study, study.runs[0])
    patients = made_up_patients(learner.contract, 20, np.random.default_rng(0))
    assert {patient.label for patient in patients} == {0, 1}
    for patient in patients:
        assert (np.abs(patient.tables["ehr"]) <= 4).all()
        volume = patient.volumes["mri"].load()
        assert volume.shape == (8, 8, 8)
        assert volume.dtype == np.float32
        assert abs(volume.mean()) < 1e-5
        assert abs(volume.std() - 1) < 1e-5
