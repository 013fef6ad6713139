from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedhealth import plugins
from fedhealth.contracts.local_training import RoundTask, SiteContext
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import Batch
from fedhealth.errors import CancelledTrainingError, ConfigError, TrainingError
from fedhealth.training.supervised import SupervisedSession, SupervisedTraining

Vector = NDArray[np.float32]


def _open(study: Any, run_name: str, site: SiteContext) -> tuple[SupervisedSession, Vector]:
    method, run = SupervisedTraining(), study.run(run_name)
    tensors = method.initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    return method.open_session(study, run, spec, site), spec.flatten(tensors)


def _vector(session: SupervisedSession, vector: Vector, task: RoundTask) -> Vector:
    tensors = session.train(vector, task).tensors
    return TensorSpec.of(tensors).flatten(tensors)


def test_initial_tensors_depend_on_the_seed_only(tiny: Any) -> None:
    method = SupervisedTraining()
    first, again, other = (
        method.initial_tensors(study, study.run("plain"))
        for study in (tiny.study(), tiny.study(), tiny.study(seed=8))
    )
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_building_a_model_leaves_the_global_generator_alone(tiny: Any) -> None:
    study = tiny.study()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    SupervisedTraining().initial_tensors(study, study.run("plain"))
    assert torch.equal(torch.rand(1), expected)


def test_private_head_parameters_are_not_among_the_shared_tensors(tiny: Any) -> None:
    study = tiny.study()
    shared = SupervisedTraining().initial_tensors(study, study.run("heads"))
    everything = SupervisedTraining().initial_tensors(study, study.run("plain"))
    assert set(everything) - set(shared) == {"head.weight", "head.bias"}


class _Flat(nn.Module):
    """Everything is `layer.`; which of it is the head is told by the test."""

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        super().__init__()
        self.head_prefixes = prefixes
        self.layer = nn.Linear(3, 1)

    def forward(self, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = self.layer(batch.tables["ehr"])
        return logits


@pytest.mark.parametrize("prefixes", [(), ("layer.",)])
def test_a_private_head_needs_a_head_and_something_to_share(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, prefixes: tuple[str, ...]
) -> None:
    real = plugins.load
    monkeypatch.setattr(
        plugins,
        "load",
        lambda group, name: (
            (lambda *_: _Flat(prefixes)) if group == "fedhealth.models" else real(group, name)
        ),
    )
    study = tiny.study()
    assert SupervisedTraining().initial_tensors(study, study.run("plain"))
    with pytest.raises(ConfigError, match="FH-MODEL-008"):
        SupervisedTraining().initial_tensors(study, study.run("heads"))


def test_training_learns_a_label_that_needs_both_modalities(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(160)))
    losses = []
    for round_number in range(1, 9):
        update = session.train(vector, tiny.task(round_number))
        losses.append(update.metrics["train_loss"])
        vector = TensorSpec.of(update.tensors).flatten(update.tensors)
    assert losses[-1] < 0.8 * losses[0]
    assert session.evaluate(vector)["auc"] > 0.75


def test_the_same_round_gives_the_same_update_bit_for_bit(tmp_path: Path, tiny: Any) -> None:
    study, patients = tiny.study(), tiny.patients(40)
    first, vector = _open(study, "plain", tiny.site(tmp_path / "a", study, patients))
    second, _ = _open(study, "plain", tiny.site(tmp_path / "b", study, patients))
    second.train(vector, tiny.task(1))  # an earlier round, and another caller's random numbers
    torch.rand(5)
    np.testing.assert_array_equal(
        _vector(first, vector, tiny.task(2)), _vector(second, vector, tiny.task(2))
    )


def test_rounds_and_sites_see_their_patients_in_another_order(tmp_path: Path, tiny: Any) -> None:
    study, patients = tiny.study(), tiny.patients(40)
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, patients))
    other, _ = _open(study, "plain", tiny.site(tmp_path, study, patients, site_id="site-b"))
    updates = [
        _vector(session, vector, tiny.task(1)),
        _vector(session, vector, tiny.task(2)),
        _vector(other, vector, tiny.task(1)),
    ]
    assert not np.array_equal(updates[0], updates[1])
    assert not np.array_equal(updates[0], updates[2])


def test_training_does_not_change_the_incoming_vector(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(20)))
    vector.flags.writeable = False
    before = vector.copy()
    session.train(vector, tiny.task())
    np.testing.assert_array_equal(vector, before)


def test_fedprox_keeps_the_update_nearer_to_the_incoming_model(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(40)))
    free = np.linalg.norm(_vector(session, vector, tiny.task()) - vector)
    held = np.linalg.norm(_vector(session, vector, tiny.task(proximal_mu=10.0)) - vector)
    assert held < 0.7 * free


def test_one_fedprox_step_of_sgd_follows_the_formula(tmp_path: Path, tiny: Any) -> None:
    # The first step is at w = w_t, where the proximal gradient is zero; the second one is not.
    sgd = {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "modality_dropout": 0.0}
    one = tiny.study(training={**sgd, "local_steps": 1, "batch_size": 64})
    two = tiny.study(training={**sgd, "local_steps": 2, "batch_size": 64})
    patients = tiny.patients(30)
    session, vector = _open(one, "plain", tiny.site(tmp_path, one, patients))
    after_one = _vector(session, vector, tiny.task(proximal_mu=0.5))
    session, _ = _open(two, "plain", tiny.site(tmp_path, two, patients))
    plain, held = (
        _vector(session, vector, task) for task in (tiny.task(), tiny.task(proximal_mu=0.5))
    )
    np.testing.assert_allclose(held, plain - 0.1 * 0.5 * (after_one - vector), atol=1e-6)


@pytest.mark.parametrize(
    "config", [{"proximal_mu": -1.0}, {"proximal_mu": float("nan")}, {"unknown": 1.0}]
)
def test_an_unknown_or_wrong_strategy_setting_is_refused(
    tmp_path: Path, tiny: Any, config: dict[str, float]
) -> None:
    study = tiny.study()
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(20)))
    with pytest.raises(TrainingError, match="FH-TRAIN-007"):
        session.train(vector, tiny.task(**config))


def test_a_cancelled_training_raises_and_leaves_nothing(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    session, vector = _open(study, "heads", tiny.site(tmp_path, study, tiny.patients(40)))
    calls = iter([False, False, True])
    with pytest.raises(CancelledTrainingError, match="FH-TRAIN-001"):
        session.train(vector, tiny.task(is_cancelled=lambda: next(calls)))
    with pytest.raises(TrainingError, match="FH-TRAIN-008"):
        session.commit(1)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_site_without_training_patients_is_refused_with_its_code(
    tmp_path: Path, tiny: Any
) -> None:
    study = tiny.study()
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, ()))
    assert session.evaluate(vector) == {}
    with pytest.raises(TrainingError, match="FH-TRAIN-005"):
        session.train(vector, tiny.task())


def test_a_one_class_site_trains_and_leaves_auc_out(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    patients = tiny.patients(60, one_class=True)
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, patients))
    assert np.isfinite(_vector(session, vector, tiny.task())).all()
    metrics = session.evaluate(vector)
    assert "auc" not in metrics
    assert "log_loss" in metrics


def test_a_diverged_model_is_refused_without_a_value_in_the_message(
    tmp_path: Path, tiny: Any
) -> None:
    study = tiny.study()
    session, vector = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(60)))
    with pytest.raises(TrainingError, match="FH-TRAIN-004"):
        session.train(np.full_like(vector, np.nan), tiny.task())
    with pytest.raises(TrainingError, match="FH-TRAIN-004"):
        session.evaluate(np.full_like(vector, np.nan))


def test_another_models_spec_is_refused(tmp_path: Path, tiny: Any) -> None:
    study = tiny.study()
    spec = TensorSpec.of({"other": np.zeros(3, dtype=np.float32)})
    with pytest.raises(ConfigError, match="FH-TRAIN-003"):
        SupervisedTraining().open_session(
            study, study.run("plain"), spec, tiny.site(tmp_path, study, tiny.patients(5))
        )


@pytest.mark.parametrize("device", ["tpu", "cuda"])
def test_a_device_that_is_not_here_is_refused(tmp_path: Path, tiny: Any, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has cuda")
    study = tiny.study()
    with pytest.raises(ConfigError, match="FH-TRAIN-002"):
        _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(5), device=device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_cpu_give_the_same_update_within_tolerance(tmp_path: Path, tiny: Any) -> None:
    study, patients = tiny.study(), tiny.patients(40)
    on_cpu, vector = _open(study, "plain", tiny.site(tmp_path, study, patients))
    on_cuda, _ = _open(study, "plain", tiny.site(tmp_path, study, patients, device="cuda"))
    np.testing.assert_allclose(
        _vector(on_cuda, vector, tiny.task()), _vector(on_cpu, vector, tiny.task()), atol=1e-4
    )


class TestPrivateHead:
    def _round(self, session: SupervisedSession, vector: Vector, tiny: Any, number: int) -> Vector:
        result = _vector(session, vector, tiny.task(number, run_name="heads"))
        session.commit(number)
        return result

    def test_a_restarted_site_goes_on_from_its_committed_head(
        self, tmp_path: Path, tiny: Any
    ) -> None:
        study, patients = tiny.study(), tiny.patients(40)
        kept, vector = _open(study, "heads", tiny.site(tmp_path / "a", study, patients))
        broken, _ = _open(study, "heads", tiny.site(tmp_path / "b", study, patients))
        for session in (kept, broken):
            after = self._round(session, vector, tiny, 1)
        restarted, _ = _open(study, "heads", tiny.site(tmp_path / "b", study, patients))
        assert restarted.evaluate(after) == kept.evaluate(after)
        np.testing.assert_array_equal(
            self._round(restarted, after, tiny, 2), self._round(kept, after, tiny, 2)
        )

    def test_an_uncommitted_head_is_forgotten(self, tmp_path: Path, tiny: Any) -> None:
        study, patients = tiny.study(), tiny.patients(40)
        session, vector = _open(study, "heads", tiny.site(tmp_path, study, patients))
        first = _vector(session, vector, tiny.task(1, run_name="heads"))
        np.testing.assert_array_equal(first, self._round(session, vector, tiny, 1))

    @pytest.mark.parametrize("restart", [False, True])
    def test_a_repeated_round_does_not_use_its_own_or_a_later_head(
        self, tmp_path: Path, tiny: Any, restart: bool
    ) -> None:
        study, patients = tiny.study(), tiny.patients(40)
        site = tiny.site(tmp_path, study, patients)
        session, vector = _open(study, "heads", site)
        first = self._round(session, vector, tiny, 1)
        second = self._round(session, first, tiny, 2)
        self._round(session, second, tiny, 3)
        if restart:
            session, _ = _open(study, "heads", site)
        np.testing.assert_array_equal(self._round(session, first, tiny, 2), second)

    def test_without_personalisation_nothing_is_written(self, tmp_path: Path, tiny: Any) -> None:
        study = tiny.study()
        session, vector = _open(study, "plain", tiny.site(tmp_path, study, tiny.patients(20)))
        session.train(vector, tiny.task())
        session.commit(1)
        assert not list(tmp_path.iterdir())
