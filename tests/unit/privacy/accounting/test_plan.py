"""A site's plan follows from the study and its declared size, and from nothing else."""

import inspect
from typing import Any

import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting import plan as plan_module
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.plan import SitePlan, plan_site
from fedhealth.privacy.accounting.split_id import split_id

from .studies import private_study


def plan(size: int = 100, privacy: dict[str, Any] | None = None, **changes: Any) -> SitePlan:
    made = plan_site(private_study(privacy, **changes), size)
    assert made is not None
    return made


FIXED = {"noise_multiplier": 2.0}


def test_a_study_without_privacy_has_no_plan() -> None:
    study = private_study().model_copy(update={"privacy": None})
    assert plan_site(study, 100) is None


def test_rate_and_denominator_come_from_the_declared_size() -> None:
    made = plan(160, FIXED)
    assert (made.sampling_rate, made.expected_batch_size) == (0.1, 16.0)


def test_a_site_smaller_than_a_batch_is_in_every_step() -> None:
    made = plan(10, FIXED)
    assert (made.sampling_rate, made.expected_batch_size) == (1.0, 10.0)


@pytest.mark.parametrize(("size", "steps"), [(160, 20), (161, 22), (1, 2)])
def test_epochs_are_counted_in_the_declared_size(size: int, steps: int) -> None:
    made = plan(size, FIXED, training={"batch_size": 16, "local_epochs": 2})
    assert dict(made.steps_per_round) == {"first": steps, "second": steps}


def test_no_plan_takes_a_true_number_of_patients() -> None:
    # N and N - 1 patients behind one declared size cannot differ: there is nowhere to say N.
    assert list(inspect.signature(plan_site).parameters) == ["study", "declared_train_size"]
    names = {field for field in SitePlan.__dataclass_fields__ if "num_" in field}
    assert names == {"num_rounds"}
    assert plan(100) == plan(100)


def test_the_target_covers_all_runs_rounds_and_spare_rounds() -> None:
    made = plan(100, {"target_epsilon": 3.0, "spare_rounds": 2})
    (event,) = made.planned_events()
    assert event.steps == 4 * (3 + 2 + 2)
    spent = [made.train_event("first")] * 3 + [made.train_event("second")] * 2
    spare = [made.train_event("first")] * 2
    assert compose(spent + spare, delta=made.delta) == compose([event], delta=made.delta)
    assert 2.98 < compose([event], delta=made.delta).epsilon <= 3.0


def test_spare_rounds_ask_for_more_noise() -> None:
    spare = plan(100, {"target_epsilon": 3.0, "spare_rounds": 5})
    assert spare.noise_multiplier > plan(100, {"target_epsilon": 3.0}).noise_multiplier


def test_given_noise_is_taken_as_it_is() -> None:
    privacy = {
        "noise_multiplier": 2.0,
        "release_metrics": "closing",
        "metrics_noise_multiplier": 5.0,
    }
    made = plan(100, privacy)
    assert (made.noise_multiplier, made.metrics_noise_multiplier) == (2.0, 5.0)
    assert made.target_epsilon is None


@pytest.mark.parametrize(("when", "releases"), [("closing", 2), ("every_round", 2 + 5 + 1)])
def test_metrics_get_noise_inside_the_same_target(when: str, releases: int) -> None:
    made = plan(100, {"target_epsilon": 3.0, "release_metrics": when, "spare_rounds": 1})
    assert made.metrics_releases == releases
    own = compose([made.metrics_event()] * releases, delta=made.delta).epsilon
    assert 2.97 < own <= 3.0
    assert compose(made.planned_events(), delta=made.delta).epsilon <= 3.0


def test_no_metrics_are_planned_unless_asked_for() -> None:
    made = plan()
    assert made.metrics_noise_multiplier is None
    with pytest.raises(PrivacyError) as caught:
        made.metrics_event()
    assert caught.value.code == "FH-PRIVACY-029"


@pytest.mark.parametrize(("size", "delta"), [(50, 1e-3), (100, 1e-3), (1000, 1e-4)])
def test_delta_is_a_tenth_of_one_patient_at_most(size: int, delta: float) -> None:
    assert plan(size, FIXED).delta == pytest.approx(delta)


@pytest.mark.parametrize(
    ("delta", "code"),
    [(0.01, "FH-PRIVACY-026"), (0.5, "FH-PRIVACY-026"), (0.0011, "FH-PRIVACY-025")],
)
def test_a_delta_that_allows_to_publish_a_patient_is_refused(delta: float, code: str) -> None:
    with pytest.raises(PrivacyError) as caught:
        plan(100, FIXED | {"delta": delta})
    assert caught.value.code == code


def test_the_mechanism_is_the_one_that_is_charged() -> None:
    made = plan()
    mechanism, event = made.mechanism("first"), made.train_event("first")
    assert mechanism.sampling_rate == event.sampling_rate
    assert mechanism.noise_multiplier == event.noise_multiplier
    assert mechanism.num_steps == event.steps
    assert mechanism.expected_batch_size == mechanism.sampling_rate * 100
    assert mechanism.clipping_norm == 1.0


def test_an_unknown_run_has_no_mechanism() -> None:
    with pytest.raises(KeyError):
        plan().mechanism("third")


def test_the_validation_size_is_public_and_at_least_one() -> None:
    assert plan(70, FIXED).declared_validation_size == 10
    assert plan(1, FIXED).declared_validation_size == 1


def test_a_split_is_named_by_all_that_decides_a_patients_side() -> None:
    study = private_study()
    other_seed = study.model_copy(update={"seed": study.seed + 1})
    renamed = study.data.model_copy(update={"patient_id_column": "other"})
    other_ids = study.model_copy(update={"data": renamed})
    split = study.data.split.model_copy(update={"train": 0.6, "test": 0.3})
    other_split = study.model_copy(update={"data": study.data.model_copy(update={"split": split})})
    ids = {split_id(each) for each in (study, other_seed, other_ids, other_split)}
    assert len(ids) == 4
    assert split_id(study) == split_id(study.model_copy(update={"id": "another"}))
    assert all(len(each) == 16 for each in ids)


def test_plans_are_quick_to_make_again() -> None:
    plan(100, {"target_epsilon": 2.0})
    before = plan_module._training_noise.cache_info().misses
    plan(100, {"target_epsilon": 2.0})
    assert plan_module._training_noise.cache_info().misses == before
