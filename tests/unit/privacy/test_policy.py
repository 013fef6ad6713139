"""The hospital's limits: each its own refusal, before any training."""

from typing import Any

import pytest

from fedhealth.config.privacy import SitePrivacy
from fedhealth.errors import ExitCode, PrivacyError
from fedhealth.privacy.accounting.accountants import compose, rdp_bound
from fedhealth.privacy.accounting.events import Event, PoissonSubsampledGaussian, UnboundedRelease
from fedhealth.privacy.accounting.plan import SitePlan, plan_site
from fedhealth.privacy.policy import check_budget, check_patients, check_plan

from .accounting.studies import private_study


def policy(**limits: Any) -> SitePrivacy:
    return SitePrivacy.model_validate(limits)


def plan(size: int = 100, **privacy: Any) -> SitePlan:
    made = plan_site(private_study(privacy or {"target_epsilon": 8.0}), size)
    assert made is not None
    return made


def refusal(limits: dict[str, Any], site_plan: SitePlan | None, size: int = 100) -> PrivacyError:
    with pytest.raises(PrivacyError) as caught:
        check_plan(policy(**limits), site_plan, declared_train_size=size)
    error = caught.value
    assert error.what
    assert error.why
    assert error.fix
    assert error.exit_code is ExitCode.PRIVACY_BUDGET
    return error


def steps(num_steps: int) -> PoissonSubsampledGaussian:
    return PoissonSubsampledGaussian(
        sampling_rate=0.1, noise_multiplier=1.5, steps=num_steps, split_id="s"
    )


def test_without_limits_any_plan_is_accepted() -> None:
    check_plan(policy(), None, declared_train_size=100)
    check_plan(policy(), plan(), declared_train_size=100)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_epsilon_per_study": 1000.0},
        {"max_epsilon_per_dataset": 1000.0},
        {"min_noise_multiplier": 0.01},
        {"max_clipping_norm": 1e6},
    ],
)
def test_a_study_without_privacy_is_refused_by_any_limit(limits: dict[str, Any]) -> None:
    assert refusal(limits, None).code == "FH-PRIVACY-020"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"max_epsilon_per_study": 7.9}, "FH-PRIVACY-021"),
        ({"max_epsilon_per_dataset": 7.9}, "FH-PRIVACY-022"),
        ({"min_noise_multiplier": 100.0}, "FH-PRIVACY-023"),
        ({"max_clipping_norm": 0.99}, "FH-PRIVACY-024"),
    ],
)
def test_each_limit_has_its_own_refusal(limits: dict[str, Any], code: str) -> None:
    error = refusal(limits, plan())
    assert error.code == code
    assert next(iter(limits)) in error.what


def test_a_plan_at_its_limits_is_accepted() -> None:
    made = plan()
    limits = policy(
        max_epsilon_per_study=8.0,
        max_epsilon_per_dataset=8.0,
        min_noise_multiplier=made.noise_multiplier,
        max_clipping_norm=1.0,
    )
    check_plan(limits, made, declared_train_size=100)


def test_a_delta_too_large_for_the_declared_size_is_refused() -> None:
    made = plan(100, noise_multiplier=2.0, delta=1e-3)
    assert refusal({}, made, size=101).code == "FH-PRIVACY-025"
    assert refusal({}, made, size=1000).code == "FH-PRIVACY-026"


def test_too_few_patients_are_refused_without_telling_how_many() -> None:
    check_patients(policy(min_patients=50), 50)
    with pytest.raises(PrivacyError) as caught:
        check_patients(policy(min_patients=50), 49)
    assert caught.value.code == "FH-PRIVACY-027"
    assert "49" not in str(caught.value)


def budget(
    limits: dict[str, Any],
    *,
    study: list[Event],
    dataset: list[Event],
    new: list[Event],
    target: float | None = None,
) -> None:
    check_budget(
        policy(**limits),
        study_events=study,
        dataset_events=dataset,
        new_events=new,
        delta=1e-4,
        target_epsilon=target,
    )


def test_without_limits_nothing_is_too_much() -> None:
    unbounded = UnboundedRelease(unit="patient", steps=5)
    budget({}, study=[unbounded], dataset=[unbounded], new=[steps(10**5)])


def test_what_was_spent_counts_with_what_is_new() -> None:
    limit = compose([steps(100)], delta=1e-4).epsilon
    limits = {"max_epsilon_per_study": limit}
    budget(limits, study=[steps(50)], dataset=[], new=[steps(50)])
    with pytest.raises(PrivacyError) as caught:
        budget(limits, study=[steps(50)], dataset=[], new=[steps(51)])
    assert caught.value.code == "FH-PRIVACY-030"


def test_other_studies_on_the_same_data_count() -> None:
    limit = compose([steps(100)], delta=1e-4).epsilon
    limits = {"max_epsilon_per_dataset": limit}
    budget(limits, study=[], dataset=[steps(90)], new=[steps(10)])
    with pytest.raises(PrivacyError) as caught:
        budget(limits, study=[], dataset=[steps(90)], new=[steps(11)])
    assert caught.value.code == "FH-PRIVACY-031"


def test_a_studys_delta_does_not_make_the_spending_of_all_studies_look_small() -> None:
    large, fixed = 1e-2, 1e-5
    at_large, at_fixed = (compose([steps(100)], delta=d).epsilon for d in (large, fixed))
    limit = (at_large + at_fixed) / 2
    assert at_large < limit < at_fixed

    def ask(limits: dict[str, float], dataset_delta: float | None) -> None:
        check_budget(
            policy(**limits),
            study_events=[steps(90)],
            dataset_events=[steps(90)],
            new_events=[steps(10)],
            delta=large,
            dataset_delta=dataset_delta,
            target_epsilon=limit,
        )

    ask({"max_epsilon_per_dataset": limit}, None)
    ask(
        {"max_epsilon_per_study": limit}, fixed
    )  # this limit, and the promise, are at the study's delta
    with pytest.raises(PrivacyError) as caught:
        ask({"max_epsilon_per_dataset": limit}, fixed)
    assert caught.value.code == "FH-PRIVACY-031"
    assert "1e-05" in caught.value.what


def test_a_plan_with_a_large_delta_is_held_to_the_delta_of_the_sites_size() -> None:
    made = plan(20, noise_multiplier=2.0, delta=5e-3)  # the size's own delta is 1e-3
    shown, held = (compose(made.planned_events(), delta=d).epsilon for d in (5e-3, 1e-3))
    limit = (shown + held) / 2
    check_plan(policy(max_epsilon_per_study=limit), made, declared_train_size=20)
    error = refusal({"max_epsilon_per_dataset": limit}, made, size=20)
    assert error.code == "FH-PRIVACY-022"
    assert "delta 0.001" in error.what
    check_plan(policy(max_epsilon_per_dataset=held), made, declared_train_size=20)


def test_a_plan_with_a_small_delta_is_held_to_its_own() -> None:
    made = plan(20, noise_multiplier=2.0, delta=1e-6)
    at_own, at_size = (compose(made.planned_events(), delta=d).epsilon for d in (1e-6, 1e-3))
    limit = {"max_epsilon_per_dataset": (at_own + at_size) / 2}
    assert refusal(limit, made, size=20).code == "FH-PRIVACY-022"


def test_an_answer_that_costs_nothing_is_never_refused() -> None:
    spent = [steps(10**5), UnboundedRelease(unit="patient", steps=1)]
    limits = {"max_epsilon_per_study": 0.1, "max_epsilon_per_dataset": 0.1}
    budget(limits, study=[*spent], dataset=[*spent], new=[], target=0.1)
    with pytest.raises(PrivacyError):
        budget(limits, study=[*spent], dataset=[*spent], new=[steps(1)], target=0.1)


def test_a_study_never_costs_more_than_it_promised() -> None:
    made = plan(100, target_epsilon=3.0)
    rounds = [made.train_event("first")] * 3 + [made.train_event("second")]
    last: list[Event] = [made.train_event("second")]
    study: list[Event] = list(rounds)
    check_budget(
        policy(),
        study_events=study,
        dataset_events=study,
        new_events=last,
        delta=made.delta,
        target_epsilon=made.target_epsilon,
    )
    with pytest.raises(PrivacyError) as caught:
        check_budget(
            policy(),
            study_events=study + last,
            dataset_events=study + last,
            new_events=last,
            delta=made.delta,
            target_epsilon=made.target_epsilon,
        )
    assert caught.value.code == "FH-PRIVACY-032"


def test_after_an_unbounded_release_no_limit_holds() -> None:
    unbounded = UnboundedRelease(unit="patient", steps=1)
    with pytest.raises(PrivacyError) as caught:
        budget({"max_epsilon_per_dataset": 1000.0}, study=[], dataset=[unbounded], new=[steps(1)])
    assert caught.value.code == "FH-PRIVACY-031"


def test_privacy_loss_distributions_decide_where_rdp_would_refuse() -> None:
    events = [steps(100)]
    limit = compose(events, delta=1e-4).epsilon * 1.01
    assert rdp_bound(events, delta=1e-4) > limit
    budget({"max_epsilon_per_study": limit}, study=[], dataset=[], new=list(events))


def test_a_limit_over_all_studies_holds_at_a_delta_that_no_study_chooses() -> None:
    """With a larger delta the same events show a smaller epsilon: a study could make the others' look small."""
    events = [steps(100)]
    small, large = (compose(events, delta=delta).epsilon for delta in (8e-3, 1e-3))
    limit = (small + large) / 2
    asked = {
        "study_events": [],
        "dataset_events": [],
        "new_events": events,
        "delta": 8e-3,
    }
    check_budget(policy(max_epsilon_per_dataset=limit), **asked)
    with pytest.raises(PrivacyError) as caught:
        check_budget(policy(max_epsilon_per_dataset=limit), **asked, dataset_delta=1e-3)
    assert caught.value.code == "FH-PRIVACY-031"


def test_what_costs_nothing_is_allowed_also_when_the_budget_is_spent() -> None:
    """The final model may come to a site whose patients' budget is spent."""
    unbounded = UnboundedRelease(unit="patient", steps=1)
    budget({"max_epsilon_per_dataset": 1.0}, study=[], dataset=[unbounded], new=[])
