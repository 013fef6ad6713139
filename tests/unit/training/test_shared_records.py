"""Public records in local training: their share of a step, who never sees them, and why they cost no privacy."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedhealth.config.study import Study
from fedhealth.contracts.local_training import PatientMechanism
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.data.batch import PatientDataset
from fedhealth.data.shared import load_shared_cohort
from fedhealth.errors import ConfigError, SiteDataError, TrainingError
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.privacy.randomness import Randomness
from fedhealth.training.learner import Learner, dump
from fedhealth.training.local_steps import StepPlan, run_steps
from fedhealth.training.private_steps import run_private_steps
from fedhealth.training.shared_records import SharedOrder, SharedRecords
from fedhealth.training.supervised import SupervisedSession, SupervisedTraining

RATE = 0.01
SEED = bytes(range(32))
SECTION = {"package": "test-made-up", "options": {"num_patients": 16, "seed": 3}, "fraction": 0.5}


def make_study(tiny: Any, *, shared: dict[str, Any] | None = None, **changes: Any) -> Study:
    training: dict[str, Any] = {
        "local_epochs": 1,
        "batch_size": 8,
        "optimizer": {"name": "sgd", "learning_rate": RATE},
        "modality_dropout": 0.0,
    }
    if shared is not None:
        training["shared_data"] = shared
    made: Study = tiny.study(training=training, **changes)
    return made


def dataset_of(study: Study, patients: Any) -> PatientDataset:
    return PatientDataset(patients, study.data.to_contract(seed=study.seed))


def open_session(study: Study, site: Any) -> tuple[SupervisedSession, Any, TensorSpec]:
    run = study.run("plain")
    tensors = SupervisedTraining().initial_tensors(study, run)
    spec = TensorSpec.of(tensors)
    session = SupervisedTraining().open_session(study, run, spec, site)
    return session, spec.flatten(tensors), spec


class _Listening:
    """The real task; remembers how many records each step had."""

    def __init__(self, task: Any) -> None:
        self._task, self.sizes = task, []  # type: ignore[var-annotated]  # ints
        self.num_outputs = task.num_outputs

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(labels))
        loss: torch.Tensor = self._task.loss(logits, labels)
        return loss


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.5, [16, 16, 8]), (0.2, [10, 10, 5]), (0.1, [9, 9, 4])]
)
def test_a_step_has_its_fraction_of_shared_records_and_all_of_its_own(
    tiny: Any, fraction: float, expected: list[int]
) -> None:
    """20 records in batches of 8, 8 and 4: of 0.1 the round's share is 20 / 9, which is 2 records."""
    study = make_study(tiny)
    learner = Learner(study, study.run("plain"))
    task = _Listening(learner.task)
    learner.task = task  # type: ignore[assignment]  # what steps use of it
    shared = SharedRecords(dataset=dataset_of(study, tiny.patients(30, seed=9)), fraction=fraction)
    plan = StepPlan(
        config=study.training, seed=1, proximal_mu=0.0, is_cancelled=lambda: False, shared=shared
    )
    run_steps(learner, dataset_of(study, tiny.patients(20)), plan)
    assert task.sizes == expected


@given(
    fraction=st.floats(0.01, 0.5),
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=30),
)
def test_over_a_round_the_share_is_exact_and_no_step_takes_a_record_twice(
    fraction: float, steps: list[int]
) -> None:
    class Nine:
        """As long as a dataset of nine."""

        num_patients = 9

        def __len__(self) -> int:
            return 9

    shared = SharedRecords(dataset=Nine(), fraction=fraction)  # type: ignore[arg-type]  # its length
    order = SharedOrder(shared, 7)
    taken = [order.beside(size).tolist() for size in steps]
    total = sum(len(rows) for rows in taken)
    assert total == round(sum(steps) * fraction / (1 - fraction))
    assert all(max(Counter(rows).values(), default=1) == 1 for rows in taken)
    assert all(0 <= row < 9 for rows in taken for row in rows)


def test_shared_records_move_the_model_and_the_same_round_is_the_same(
    tmp_path: Path, tiny: Any
) -> None:
    results = []
    for index, shared in enumerate([None, SECTION, SECTION]):
        study = make_study(tiny, shared=shared)
        site = tiny.site(tmp_path / str(index), study, tiny.patients(30))
        session, vector, spec = open_session(study, site)
        results.append(spec.flatten(session.train(vector, tiny.task(1)).tensors))
    np.testing.assert_array_equal(results[1], results[2])
    assert not np.array_equal(results[0], results[1])


def test_no_shared_record_is_on_a_validation_or_training_side(tmp_path: Path, tiny: Any) -> None:
    sessions = []
    for index, shared in enumerate([None, SECTION]):
        study = make_study(tiny, shared=shared)
        site = tiny.site(tmp_path / str(index), study, tiny.patients(60))
        sessions.append(open_session(study, site))
    (plain, vector, _), (mixed, _, _) = sessions
    assert len(mixed._train) == len(plain._train)
    assert mixed.evaluate(vector) == plain.evaluate(vector)
    assert mixed._shared is not None
    ids = {p.patient_id for side in (mixed._train, mixed._validation) for p in side._patients}
    assert ids.isdisjoint({p.patient_id for p in mixed._shared.dataset._patients})


# Under patient-level privacy.


class _Everybody(Randomness):
    """The real noise; at rate 1 nothing is drawn for sampling, so that neighbouring cohorts get the same noise."""

    __slots__ = ()

    def bernoulli(self, count: int, rate: float) -> Any:
        return np.ones(count, dtype=np.bool_) if rate == 1.0 else super().bernoulli(count, rate)


def mechanism(**changes: Any) -> PatientMechanism:
    plain = PatientMechanism(
        sampling_rate=1.0,
        noise_multiplier=1e-7,
        clipping_norm=0.05,
        expected_batch_size=8.0,
        num_steps=1,
    )
    return replace(plain, **changes)


def moved(
    tiny: Any, patients: Any, given: PatientMechanism, shared: Any = None, fraction: float = 0.5
) -> Any:
    """How far the weights moved, over the learning rate: the released mean of one step."""
    study = make_study(tiny, privacy={"noise_multiplier": 1.0})
    learner = Learner(study, study.run("plain"))
    before = dump(learner.shared)
    records = None
    if shared is not None:
        records = SharedRecords(dataset=dataset_of(study, shared), fraction=fraction)
    plan = StepPlan(
        config=study.training, seed=0, proximal_mu=0.0, is_cancelled=lambda: False, shared=records
    )
    dataset = dataset_of(study, patients)
    run_private_steps(learner, dataset, plan, given, _Everybody.seeded_for_tests(SEED))
    after = dump(learner.shared)
    return (
        np.concatenate([(before[n] - after[n]).astype(np.float64).ravel() for n in before]) / RATE
    )


def test_shared_gradients_are_clipped_added_and_divided_by_a_public_constant(tiny: Any) -> None:
    """f = 1/2 of 8 expected patients: 8 shared ones, all drawn; each half alone is the oracle."""
    own, public = tiny.patients(12), tiny.patients(8, seed=5)
    both = moved(tiny, own, mechanism(), public)
    expected = (8.0 * moved(tiny, own, mechanism()) + 8.0 * moved(tiny, public, mechanism())) / 16.0
    np.testing.assert_allclose(both, expected, atol=4e-5)  # float32 weights at this learning rate


@pytest.mark.parametrize("fraction", [0.5, 0.2])
def test_a_removed_patient_changes_the_sum_by_the_clipping_norm_at_most(
    tiny: Any, fraction: float
) -> None:
    """The shared draw and the noise are the same with and without the patient: both come before, or after, anybody."""
    own, public = tiny.patients(10), tiny.patients(9, seed=5)
    given = mechanism(clipping_norm=0.5, noise_multiplier=1.0)
    denominator = 8.0 / (1.0 - fraction)
    distance = float(
        np.linalg.norm(
            moved(tiny, own, given, public, fraction)
            - moved(tiny, own[:-1], given, public, fraction)
        )
    )
    assert distance <= 0.5 / denominator * (1 + 1e-3) + 1e-4
    assert distance > 0.005


def test_the_noise_on_the_sum_is_what_it_is_without_shared_records(tiny: Any) -> None:
    """Standard deviation z C on the sum; the denominator is larger by the public B_s."""
    given = mechanism(noise_multiplier=200.0, clipping_norm=0.5, num_steps=3)
    noise = moved(tiny, (), given, tiny.patients(9, seed=5), 0.5)
    scale = 200.0 * 0.5 / 16.0 * np.sqrt(3)  # shared gradients of 0.5 at most drown in it
    assert stats.kstest(noise / scale, "norm").pvalue > 1e-4


def test_the_account_is_the_same_with_shared_data(tiny: Any) -> None:
    privacy = {"target_epsilon": 3.0}
    plain, mixed = (make_study(tiny, shared=s, privacy=privacy) for s in (None, SECTION))
    assert plan_site(mixed, 120) == plan_site(plain, 120)


def test_what_was_carried_out_is_what_was_reserved(tmp_path: Path, tiny: Any) -> None:
    study = make_study(tiny, shared=SECTION, privacy={"noise_multiplier": 1.0})
    session, vector, _ = open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    task = replace(tiny.task(1), mechanism=mechanism(noise_multiplier=1.0))
    assert session.train(vector, task).mechanism == task.mechanism


def test_a_site_without_patients_trains_on_shared_records_and_noise(
    tmp_path: Path, tiny: Any
) -> None:
    study = make_study(tiny, shared=SECTION, privacy={"noise_multiplier": 1.0})
    session, vector, _ = open_session(study, tiny.site(tmp_path, study, ()))
    task = replace(tiny.task(1), mechanism=mechanism(noise_multiplier=1.0))
    assert session.train(vector, task).tensors


def test_too_few_shared_records_are_refused_and_not_silently_a_smaller_share(
    tmp_path: Path, tiny: Any
) -> None:
    few = {**SECTION, "options": {"num_patients": 4}}
    study = make_study(tiny, shared=few)
    with pytest.raises(TrainingError, match="FH-TRAIN-053"):
        open_session(study, tiny.site(tmp_path / "a", study, tiny.patients(30)))
    private = make_study(tiny, shared=few, privacy={"noise_multiplier": 1.0})
    session, vector, _ = open_session(
        private, tiny.site(tmp_path / "b", private, tiny.patients(30))
    )
    with pytest.raises(TrainingError, match="FH-TRAIN-053"):
        session.train(vector, replace(tiny.task(1), mechanism=mechanism()))


# The package.


def test_a_missing_package_is_named_with_what_to_do(tmp_path: Path, tiny: Any) -> None:
    study = make_study(tiny, shared={**SECTION, "package": "nobody-has-it"})
    with pytest.raises(ConfigError, match="FH-CONFIG-042") as error:
        open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))
    assert "nobody-has-it" in str(error.value)


def test_an_empty_cohort_is_refused(tmp_path: Path, tiny: Any) -> None:
    study = make_study(tiny, shared={**SECTION, "options": {"num_patients": 0}})
    with pytest.raises(SiteDataError, match="FH-DATA-070"):
        open_session(study, tiny.site(tmp_path, study, tiny.patients(30)))


def test_the_synthetic_package_makes_the_same_patients_from_a_seed_at_every_site(
    tmp_path: Path,
) -> None:
    import yaml

    path = Path(__file__).parents[3] / "configs" / "synthetic" / "study.yaml"
    content = yaml.safe_load(path.read_text("utf-8"))
    content["training"]["shared_data"] = {
        "package": "synthetic",
        "options": {"num_patients": 4, "size": 16, "seed": 11},
        "fraction": 0.1,
    }
    study = Study.model_validate(content)
    contract = study.data.to_contract(seed=study.seed)
    section = study.training.shared_data
    assert section is not None
    first, second = (
        load_shared_cohort(section, contract, cache_dir=tmp_path / site) for site in ("a", "b")
    )
    assert len(first.patients) == 4
    for one, other in zip(first.patients, second.patients, strict=True):
        assert (one.patient_id, one.label) == (other.patient_id, other.label)
        for name, values in one.tables.items():
            np.testing.assert_array_equal(values, other.tables[name])
        for name, volume in one.volumes.items():
            np.testing.assert_array_equal(volume.load(), other.volumes[name].load())


@pytest.mark.parametrize("fraction", [0.0, 0.6, -0.1])
def test_a_fraction_out_of_range_is_refused(tiny: Any, fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        make_study(tiny, shared={**SECTION, "fraction": fraction})


def test_one_global_step_of_patients_gradients_does_not_take_shared_data(tiny: Any) -> None:
    noise = {"unit": "patient", "noise_multiplier": 1.0, "clipping_norm": 1.0, "num_sites": 3}
    with pytest.raises(ValueError, match="shared_data would never be used"):
        tiny.study(
            training={
                "local_steps": 1,
                "optimizer": {"name": "sgd", "learning_rate": RATE},
                "shared_data": SECTION,
            },
            federation={"min_cohort": 3},
            runs=[{"name": "plain", "num_rounds": 3}],
            secure_aggregation={"distributed_privacy": {**noise, "num_patients": 100}},
        )


def test_study_check_says_what_shared_data_is_and_who_must_have_it(tiny: Any) -> None:
    from fedhealth.cli.study_check import check_whole_study

    found = check_whole_study(
        make_study(tiny, shared={**SECTION, "package": "nobody-has-it"}), build=False
    )
    said = {one.code: one.level for one in found}
    assert said["FH-CONFIG-043"] == "note"
    assert said["FH-CONFIG-010"] == "warning"
    other = make_study(tiny, shared=SECTION)
    content = other.model_dump(mode="json")
    content["training"]["name"] = "add_one"
    unknown = check_whole_study(Study.model_validate(content), build=False)
    assert "FH-TRAIN-054" in [one.code for one in unknown if one.level == "error"]
