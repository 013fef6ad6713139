from typing import Any, cast

import pytest
import torch

from fedhealth.data.batch import Batch, PatientDataset
from fedhealth.errors import TrainingError
from fedhealth.models.protocol import Task
from fedhealth.training.learner import Learner
from fedhealth.training.local_steps import StepPlan, batch_order, run_steps
from fedhealth.training.modality_dropout import drop_modalities, scores_from


def _order(tiny: Any, count: int, **training: Any) -> list[torch.Tensor]:
    config = tiny.study(training={"batch_size": 4, **training}).training
    return list(batch_order(count, config, torch.Generator().manual_seed(1)))


def test_an_epoch_visits_every_patient_once(tiny: Any) -> None:
    batches = _order(tiny, 10, local_epochs=2)
    assert [len(rows) for rows in batches] == [4, 4, 2] * 2
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))


def test_steps_are_exactly_as_many_as_asked_for(tiny: Any) -> None:
    assert [len(rows) for rows in _order(tiny, 10, local_steps=5)] == [4, 4, 2, 4, 4]
    assert [len(rows) for rows in _order(tiny, 3, local_steps=2)] == [3, 3]


class _ExplodingTask:
    """A finite loss whose gradient is not."""

    num_outputs = 1

    def loss(self, logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (logits * 0).abs().sqrt().sum()


def test_a_weight_that_is_not_finite_is_refused_even_when_the_loss_is_finite(tiny: Any) -> None:
    study = tiny.study(training={"local_steps": 1})
    learner = Learner(study, study.run("heads"))
    learner.task = cast("Task", _ExplodingTask())
    dataset = PatientDataset(tiny.patients(4), learner.contract)
    plan = StepPlan(config=study.training, seed=1, proximal_mu=0.0, is_cancelled=lambda: False)
    with pytest.raises(TrainingError, match=r"FH-TRAIN-004 a trained weight"):
        run_steps(learner, dataset, plan)


def _batch(present: list[list[bool]]) -> Batch:
    flags = torch.tensor(present)
    count = len(flags)
    return Batch(
        tables={"ehr": flags[:, :1].float().expand(-1, 2).clone()},
        missing={"ehr": 1 - flags[:, :1].float()},
        volumes={"mri": flags[:, 1, None, None, None, None].float().expand(-1, 1, 2, 2, 2).clone()},
        present={"ehr": flags[:, 0], "mri": flags[:, 1]},
        labels=torch.zeros(count, dtype=torch.int64),
    )


def test_modality_dropout_hides_at_its_rate_and_never_all_of_a_patient() -> None:
    batch = _batch([[True, True]] * 4000)
    dropped = drop_modalities(batch, 0.3, scores_from(torch.Generator().manual_seed(1)))
    shown = torch.stack(list(dropped.present.values()))
    assert shown.any(dim=0).all()
    # Both would be hidden with probability 0.09, of which each keeps one half: 0.3 - 0.045.
    assert float((~shown).float().mean()) == pytest.approx(0.255, abs=0.02)


def test_a_hidden_modality_looks_like_one_that_is_absent() -> None:
    batch = _batch([[True, True], [True, False], [False, True], [False, False]] * 50)
    dropped = drop_modalities(batch, 0.5, scores_from(torch.Generator().manual_seed(1)))
    expected = _batch(torch.stack(list(dropped.present.values()), dim=1).tolist())
    for part in ("tables", "missing", "volumes"):
        for name, tensor in getattr(dropped, part).items():
            assert torch.equal(tensor, getattr(expected, part)[name])
    for name, flags in dropped.present.items():
        assert not (flags & ~batch.present[name]).any()


def test_no_dropout_returns_the_batch_itself() -> None:
    batch = _batch([[True, True]])
    assert drop_modalities(batch, 0.0, scores_from(torch.Generator())) is batch
