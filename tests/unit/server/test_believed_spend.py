"""What a server believes of a site's account: the plan that follows from public numbers, and nothing cheaper."""

from typing import Any

import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.statements import Contribution, LedgerPlace, Manifest, PrivacySpend
from fedhealth.privacy.accounting.events import (
    DistributedSkellam,
    Event,
    UnboundedRelease,
    merge_events,
)
from fedhealth.privacy.accounting.plan import SitePlan, plan_site
from fedhealth.secagg.patient_account import SumTerms
from fedhealth.server.believed_spend import spend_is_believed

from ..conftest import Consortium, study_content  # noqa: TID252 - tests are no installed package

SIZE = 10
HEX = "ab" * 32


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    content = study_content() | {
        "privacy": {
            "noise_multiplier": 2.0,
            "clipping_norm": 1.0,
            "release_metrics": "every_round",
            "metrics_noise_multiplier": 5.0,
        },
        "release": {"metrics": ["accuracy"]},
    }
    content["training"]["batch_size"] = 2
    made = Consortium(root=tmp_path_factory.mktemp("p") / "c", content=content)
    made.enrol("site-1")
    made.enrol("site-2")
    return made


@pytest.fixture
def plan(private: Consortium) -> SitePlan:
    found = plan_site(private.server.require()[0], SIZE)
    assert found is not None
    return found


def spend(plan: SitePlan, *events: Event, **changes: Any) -> PrivacySpend:
    said: dict[str, Any] = {
        "round_events": events,
        "study_events": merge_events(events),
        "delta": plan.delta,
        "clipping_norm": plan.clipping_norm,
        "ledger": LedgerPlace(sequence=2, head=HEX),
    }
    return PrivacySpend(**(said | changes))


def said(manifest: Manifest, account: PrivacySpend | None, **changes: Any) -> Contribution:
    is_training = manifest.kind == "train"
    content: dict[str, Any] = {
        "study_id": manifest.study_id,
        "site_id": "site-1",
        "manifest_sha256": HEX,
        "run_name": manifest.run_name,
        "round_number": manifest.round_number,
        "attempt": manifest.attempt,
        "kind": manifest.kind,
        "update_sha256": HEX if is_training else None,
        "num_elements": 5 if is_training else 0,
        "evaluate_metrics": {"accuracy": 0.5},
        "privacy": account,
    }
    return Contribution(**(content | changes))


def is_believed(private: Consortium, plan: SitePlan | None, answer: Contribution) -> bool:
    manifest = private.manifest(kind=answer.kind)
    return spend_is_believed(answer, manifest, plan, declared_train_size=SIZE)


def test_what_was_planned_is_believed(private: Consortium, plan: SitePlan) -> None:
    manifest = private.manifest()
    trained, told = plan.train_event("main"), plan.metrics_event()
    assert is_believed(private, plan, said(manifest, spend(plan, trained, told)))
    assert is_believed(private, plan, said(manifest, spend(plan, trained), evaluate_metrics={}))
    closing = private.manifest(kind="evaluate")
    assert is_believed(private, plan, said(closing, spend(plan, told)))
    assert is_believed(private, plan, said(closing, spend(plan), evaluate_metrics={}))


def test_an_answer_without_an_account_is_not_believed(private: Consortium, plan: SitePlan) -> None:
    assert not is_believed(private, plan, said(private.manifest(), None))


def test_a_cheaper_mechanism_is_not_believed(private: Consortium, plan: SitePlan) -> None:
    trained, told = plan.train_event("main"), plan.metrics_event()
    for cheaper in (
        trained.model_copy(update={"noise_multiplier": plan.noise_multiplier * 0.9}),
        trained.model_copy(update={"sampling_rate": plan.sampling_rate / 2}),
        trained.model_copy(update={"steps": trained.steps - 1}),
        trained.model_copy(update={"split_id": "other"}),
        UnboundedRelease(unit="patient", steps=1),
    ):
        assert not is_believed(private, plan, said(private.manifest(), spend(plan, cheaper, told)))


def test_metrics_that_were_not_paid_for_are_not_believed(
    private: Consortium, plan: SitePlan
) -> None:
    trained, told = plan.train_event("main"), plan.metrics_event()
    manifest = private.manifest()
    assert not is_believed(private, plan, said(manifest, spend(plan, trained)))
    paid = spend(plan, trained, told)
    assert not is_believed(private, plan, said(manifest, paid, train_metrics={"train_loss": 0.1}))


def test_training_that_was_not_paid_for_is_not_believed(
    private: Consortium, plan: SitePlan
) -> None:
    answer = said(private.manifest(), spend(plan, plan.metrics_event()))
    assert not is_believed(private, plan, answer)


def test_a_round_that_is_not_in_the_studys_account_is_not_believed(
    private: Consortium, plan: SitePlan
) -> None:
    trained, told = plan.train_event("main"), plan.metrics_event()
    short = spend(plan, trained, told, study_events=(told,))
    assert not is_believed(private, plan, said(private.manifest(), short))


def test_another_delta_or_clipping_norm_is_not_believed(
    private: Consortium, plan: SitePlan
) -> None:
    events = (plan.train_event("main"), plan.metrics_event())
    for changes in ({"delta": plan.delta * 10}, {"clipping_norm": 0.5}, {"clipping_norm": None}):
        assert not is_believed(
            private, plan, said(private.manifest(), spend(plan, *events, **changes))
        )


def test_a_refusal_carries_no_account(private: Consortium, plan: SitePlan) -> None:
    bare = {"update_sha256": None, "num_elements": 0, "evaluate_metrics": {}}
    code = DropCode.PRIVACY_BUDGET
    assert is_believed(private, plan, said(private.manifest(), None, drop_code=code, **bare))
    full = spend(plan, plan.train_event("main"))
    assert not is_believed(private, plan, said(private.manifest(), full, drop_code=code, **bare))


def test_without_patient_privacy_only_an_unbounded_account_is_believed(
    private: Consortium, plan: SitePlan
) -> None:
    unbounded = UnboundedRelease(unit="patient", steps=1)
    manifest = private.manifest()
    account = spend(plan, unbounded, clipping_norm=None)
    assert is_believed(private, None, said(manifest, account))
    assert is_believed(private, None, said(manifest, None))
    dressed = spend(plan, plan.train_event("main"))
    assert not is_believed(private, None, said(manifest, dressed))


def test_metrics_that_no_account_can_bound_are_not_believed(
    private: Consortium, plan: SitePlan
) -> None:
    """A round record refuses them beside a bound: believing one would stop the server."""
    paid = spend(plan, plan.train_event("main"), plan.metrics_event())
    for name in ("auc", "calibration_error", "train_loss"):
        answer = said(private.manifest(), paid, evaluate_metrics={name: 0.5})
        assert not is_believed(private, plan, answer)


def test_without_patient_privacy_what_left_is_not_believed_to_have_cost_nothing(
    private: Consortium, plan: SitePlan
) -> None:
    nothing = spend(plan, clipping_norm=None)
    closing = private.manifest(kind="evaluate")
    assert not is_believed(private, None, said(private.manifest(), nothing))
    assert not is_believed(private, None, said(private.manifest(), nothing, evaluate_metrics={}))
    assert not is_believed(private, None, said(closing, nothing))
    assert is_believed(private, None, said(closing, nothing, evaluate_metrics={}))


@pytest.mark.parametrize(
    ("changes", "is_good"),
    [
        ({}, True),
        ({"delta": 1e-3}, False),
        ({"clipping_norm": 0.5}, False),
        ({"clipping_norm": None}, False),
    ],
)
def test_a_patients_account_of_a_noised_sum_has_the_studys_delta_and_norm(
    private: Consortium, changes: dict[str, Any], is_good: bool
) -> None:
    terms = SumTerms(
        event=DistributedSkellam(
            unit="patient",
            l1_sensitivity=4000.0,
            l2_sensitivity=1000.0,
            variance=4e6,
            num_honest=3,
            steps=1,
            population="train",
            split_id="study",
        ),
        delta=1e-5,
        clipping_norm=1.0,
    )
    manifest = private.manifest()
    account = PrivacySpend(
        **{
            "round_events": (terms.event,),
            "study_events": (terms.event,),
            "delta": terms.delta,
            "clipping_norm": terms.clipping_norm,
            "ledger": LedgerPlace(sequence=2, head=HEX),
        }
        | changes
    )
    answer = said(manifest, account, evaluate_metrics={})
    believed = spend_is_believed(answer, manifest, None, declared_train_size=1, sums=terms)
    assert believed is is_good
