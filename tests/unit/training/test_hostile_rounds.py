"""What a hostile server, or a damaged file, must not be able to do to the bound on one patient."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.data.batch import PatientDataset
from fedhealth.errors import SiteDataError
from fedhealth.privacy.dp_sgd.clipped_gradients import ClippedGradients
from fedhealth.privacy.dp_sgd.gradient_sum import GradientSum
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.learner import Learner, dump
from fedhealth.training.local_steps import StepPlan
from fedhealth.training.private_steps import clipped_gradients, run_private_steps

SEED = bytes(range(32))


def learner_of(tiny: Any) -> tuple[Any, Learner]:
    study = tiny.study(privacy={"noise_multiplier": 1.0})
    return study, Learner(study, study.run("plain"))


def largest_share(learner: Learner, dataset: PatientDataset, gradients: ClippedGradients) -> float:
    """The longest contribution of one patient, in clipping norms of 1."""
    sums = GradientSum({**learner.shared, **learner.private})
    longest = 0.0
    for patient in range(dataset.num_patients):
        sums.clear()
        rows, owners = dataset.records_of(np.array([patient]))
        gradients.add_to(sums.by_name, dataset.batch(rows), owners, clipping_norm=1.0)
        total = sum(float(part.double().square().sum()) for part in sums.by_name.values())
        longest = max(longest, total**0.5)
    return longest


@pytest.mark.parametrize("exponent", [0.0, 3.0, 10.0, 19.5, 21.0, 22.0, 22.1, 22.35, 30.0])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_no_finite_weights_let_a_patient_add_more_than_the_clipping_norm(
    tiny: Any, exponent: float, *, one_by_one: bool
) -> None:
    """Weights that make a gradient 1e40 times too long: its factor would be below what float32 holds exactly."""
    study, learner = learner_of(tiny)
    dataset = PatientDataset(tiny.patients(6, seed=3), study.data.to_contract(seed=study.seed))
    gradients = clipped_gradients(learner, dataset)
    if one_by_one:
        gradients.close()
    with torch.no_grad():
        for name, parameter in {**learner.shared, **learner.private}.items():
            is_loud = "table_ehr.hidden" in name or name == "head.weight"
            parameter.fill_(10.0**exponent if is_loud else 0.0)
    learner.model.train()
    assert largest_share(learner, dataset, gradients) <= 1.0


@pytest.mark.parametrize("seed", range(40))
def test_random_magnitudes_never_break_the_bound(tiny: Any, seed: int) -> None:
    study, learner = learner_of(tiny)
    dataset = PatientDataset(tiny.patients(3, seed=seed), study.data.to_contract(seed=study.seed))
    gradients = clipped_gradients(learner, dataset)
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in {**learner.shared, **learner.private}.values():
            parameter.copy_(torch.randn_like(parameter) * 10.0 ** generator.uniform(-20, 25))
    learner.model.train()
    assert largest_share(learner, dataset, gradients) <= 1.0


class Unreadable:
    """A volume whose voxels are gone."""

    def load(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        raise SiteDataError("FH-DATA-021", "the volume is truncated.")


def test_a_file_that_cannot_be_read_does_not_tell_who_was_drawn(
    tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The round ends as if that patient had not been drawn: an error would say in which rounds it was."""
    study, learner = learner_of(tiny)
    contract = study.data.to_contract(seed=study.seed)
    patients = list(tiny.patients(6, seed=3))
    name = contract.volumes[0].name
    damaged: Patient = replace(patients[2], volumes={name: Unreadable()})

    def trained(cohort: list[Patient]) -> dict[str, Any]:
        fresh = Learner(study, study.run("plain"))
        plan = StepPlan(config=study.training, seed=1, proximal_mu=0.0, is_cancelled=lambda: False)
        mechanism = PatientMechanism(
            sampling_rate=1.0,
            noise_multiplier=1.0,
            clipping_norm=1.0,
            expected_batch_size=6.0,
            num_steps=2,
        )
        dataset = PatientDataset(tuple(cohort), contract)
        run_private_steps(fresh, dataset, plan, mechanism, Randomness.seeded_for_tests(SEED))
        return dump({**fresh.shared, **fresh.private})

    found = trained([*patients[:2], damaged, *patients[3:]])
    assert all(np.isfinite(values).all() for values in found.values())
    assert "left out 2 times" in caplog.text
    assert set(found) == set(dump({**learner.shared, **learner.private}))


def test_a_gradient_that_is_far_too_long_is_counted_as_left_out(tiny: Any) -> None:
    study, learner = learner_of(tiny)
    dataset = PatientDataset(tiny.patients(4, seed=3), study.data.to_contract(seed=study.seed))
    gradients = clipped_gradients(learner, dataset)
    with torch.no_grad():
        for name, parameter in {**learner.shared, **learner.private}.items():
            is_loud = "table_ehr.hidden" in name or name == "head.weight"
            parameter.fill_(1e10 if is_loud else 0.0)
    rows, owners = dataset.records_of(np.arange(4))
    for way in ("book-keeping", "one by one"):
        if way == "one by one":
            gradients.close()
        sums = GradientSum({**learner.shared, **learner.private})
        left_out = gradients.add_to(sums.by_name, dataset.batch(rows), owners, clipping_norm=1.0)
        assert left_out == 4, way
        assert all(float(part.abs().max()) == 0 for part in sums.by_name.values())
