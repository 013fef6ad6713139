"""What a strategy asks of local training, against the formulas of FedNova (Wang et al. 2020, section 4.1)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhealth.config.study import OptimizerConfig
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import TrainingError
from fedhealth.training.strategy_wishes import StrategyWishes, accumulated_gradients
from fedhealth.training.supervised import SupervisedTraining


def sgd(learning_rate: float = 0.1, momentum: float = 0.0) -> OptimizerConfig:
    return OptimizerConfig(name="sgd", learning_rate=learning_rate, momentum=momentum)


@given(steps=st.integers(1, 200), momentum=st.floats(0.0, 0.99))
def test_momentum_weighs_gradients_by_the_papers_formula(steps: int, momentum: float) -> None:
    expected = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    made = accumulated_gradients(sgd(momentum=momentum), proximal_mu=0.0, num_steps=steps)
    assert made == pytest.approx(expected, rel=1e-9)


@given(steps=st.integers(1, 200), mu=st.floats(0.01, 5.0))
def test_a_proximal_term_weighs_gradients_by_the_papers_formula(steps: int, mu: float) -> None:
    made = accumulated_gradients(sgd(0.1), proximal_mu=mu, num_steps=steps)
    assert made == pytest.approx((1 - (1 - 0.1 * mu) ** steps) / (0.1 * mu), rel=1e-9)


def test_momentum_and_pull_together_are_what_torchs_optimiser_does() -> None:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.7)
    for _ in range(9):
        weight.grad = 1.0 + 0.5 * weight.detach()  # a gradient of 1 everywhere, and mu (w - 0)
        optimizer.step()
    made = accumulated_gradients(sgd(0.1, 0.7), proximal_mu=0.5, num_steps=9)
    assert made == pytest.approx(-float(weight.detach()[0]) / 0.1, rel=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_counts_its_steps(name: Any) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.1)
    assert accumulated_gradients(config, proximal_mu=0.3, num_steps=7) == 7.0


def test_without_the_wish_tensors_go_out_as_trained() -> None:
    trained = {"w": np.ones(3, dtype=np.float32)}
    wishes = StrategyWishes.of({"proximal_mu": 0.5})
    made = wishes.outgoing(
        {"w": np.zeros(3, dtype=np.float32)}, trained, optimizer=sgd(), num_steps=5
    )
    assert made is trained
    assert wishes == StrategyWishes(proximal_mu=0.5)


def test_the_wish_brings_an_update_to_that_many_steps() -> None:
    made = StrategyWishes.of({"effective_steps": 4}).outgoing(
        {"w": np.full(2, 1.0, dtype=np.float32)},
        {"w": np.full(2, 3.0, dtype=np.float32)},
        optimizer=sgd(),
        num_steps=16,
    )
    np.testing.assert_array_equal(made["w"], np.full(2, 1.5, dtype=np.float32))


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True])
def test_a_number_of_steps_that_means_nothing_is_refused(value: Any) -> None:
    with pytest.raises(TrainingError, match="FH-TRAIN-007"):
        StrategyWishes.of({"effective_steps": value})


def test_a_pull_that_overshoots_is_refused_and_not_turned_around() -> None:
    wishes = StrategyWishes(proximal_mu=25.0, effective_steps=3.0)
    tensors = {"w": np.zeros(1, dtype=np.float32)}
    with pytest.raises(TrainingError, match="FH-TRAIN-050"):
        wishes.outgoing(tensors, tensors, optimizer=sgd(0.1), num_steps=2)


def test_a_site_scales_its_update_by_its_own_number_of_steps(tmp_path: Path, tiny: Any) -> None:
    """20 training patients and batches of 4: the epoch's steps, counted by what the site does."""
    optimizer = {"name": "sgd", "learning_rate": 0.05}
    study = tiny.study(training={"local_epochs": 2, "batch_size": 4, "optimizer": optimizer})
    run = study.run("plain")
    tensors = SupervisedTraining().initial_tensors(study, run)
    spec, vector = TensorSpec.of(tensors), TensorSpec.of(tensors).flatten(tensors)
    session = SupervisedTraining().open_session(
        study, run, spec, tiny.site(tmp_path, study, tiny.patients(30))
    )
    plain, asked = (
        spec.flatten(session.train(vector, tiny.task(**wish)).tensors)
        for wish in ({}, {"effective_steps": 3.0})
    )
    steps = 2 * -(-len(session._train) // 4)
    np.testing.assert_allclose(asked - vector, (plain - vector) * 3.0 / steps, atol=1e-6)


def test_under_privacy_the_number_of_steps_is_the_mechanisms_public_one(
    tmp_path: Path, tiny: Any
) -> None:
    """No training patient at all, and many: the same public factor, since the data has no part in it."""
    optimizer = {"name": "sgd", "learning_rate": 0.05}
    study = tiny.study(
        training={"local_epochs": 1, "batch_size": 4, "optimizer": optimizer},
        privacy={"noise_multiplier": 1.0},
    )
    run = study.run("plain")
    tensors = SupervisedTraining().initial_tensors(study, run)
    spec, vector = TensorSpec.of(tensors), TensorSpec.of(tensors).flatten(tensors)
    mechanism = PatientMechanism(
        sampling_rate=1e-12,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        expected_batch_size=4.0,
        num_steps=5,
    )
    seed = bytes(range(32))
    moved = []
    for index, (count, wish) in enumerate([(0, {}), (0, {"effective_steps": 1.0}), (40, {})]):
        from dataclasses import replace

        site = tiny.site(tmp_path / str(index), study, tiny.patients(count))
        session = SupervisedTraining().open_session(
            study, run, spec, replace(site, noise_seed=seed)
        )
        task = replace(tiny.task(**wish), mechanism=mechanism)
        moved.append(spec.flatten(session.train(vector, task).tensors) - vector)
    np.testing.assert_allclose(moved[1], moved[0] / 5.0, atol=1e-6)
    assert np.abs(moved[0]).max() > 1e-3


@given(steps=st.integers(1, 200), more=st.integers(1, 50), pull=st.floats(0.001, 1.0))
def test_under_the_longest_pull_more_steps_lead_no_further_than_they_would_without_one(
    steps: int, more: int, pull: float
) -> None:
    # What a masked sum holds of a site may grow with its number of steps, which is its size, but not by powers of it.
    few, many = (
        accumulated_gradients(sgd(0.1), proximal_mu=pull / 0.1, num_steps=count)
        for count in (steps, steps + more)
    )
    assert 0.99 <= few <= many + 1e-9
    assert many / few <= (steps + more) / steps + 1e-9
    # Beyond it: the site with three more steps is a thousand million times as loud.
    loud = [
        abs(accumulated_gradients(sgd(0.1), proximal_mu=1e4, num_steps=n))
        for n in (steps % 20, steps % 20 + 3)
    ]
    assert loud[1] > 9e8 * max(loud[0], 1e-9)
