"""A round's cost at one hospital: reserved before anything is computed, sealed before anything is sent."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import GateRefusedError, PrivacyError
from fedhealth.evidence.statements import (
    CohortMember,
    LedgerPlace,
)
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.events import PoissonSubsampledGaussian, UnboundedRelease
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.privacy.ledger.ledger import Reservation, read_ledger

from .hospital import Hospital, private_content


@pytest.fixture
def open_hospital(new_consortium: Any) -> Hospital:
    return Hospital(new_consortium("site-1", "site-2"))


@pytest.fixture
def hospital(new_consortium: Any) -> Hospital:
    return Hospital(new_consortium("site-1", "site-2", content=private_content()))


def test_a_study_without_privacy_is_written_down_as_unbounded(open_hospital: Hospital) -> None:
    spend = open_hospital.spend(open_hospital.round())
    assert spend.round_events == (UnboundedRelease(unit="patient", steps=1),)
    assert compose(spend.study_events, delta=spend.delta).epsilon == float("inf")


def test_a_round_says_what_it_cost_and_what_the_study_cost_so_far(hospital: Hospital) -> None:
    hospital.round()
    spend = hospital.spend(hospital.round(round_number=2))
    study = hospital.pinned.study
    plan = plan_site(study, 10)
    assert plan is not None
    assert spend.round_events == (plan.train_event("main"),)
    (total,) = spend.study_events
    assert isinstance(total, PoissonSubsampledGaussian)
    assert total.steps == 2 * plan.steps_per_round["main"]


def test_rounds_in_fresh_processes_compose_to_the_one_true_epsilon(hospital: Hospital) -> None:
    plan = plan_site(hospital.pinned.study, 10)
    assert plan is not None
    for number in (1, 2, 3):
        hospital.restart()
        answer = hospital.round(round_number=number)
    spent = compose(hospital.spend(answer).study_events, delta=plan.delta)
    assert spent.epsilon == pytest.approx(compose(plan.planned_events(), delta=plan.delta).epsilon)


def test_the_same_manifest_gets_the_same_bytes_again_at_no_cost(hospital: Hospital) -> None:
    first = hospital.round()
    lines = (hospital.ledger / "ledger.jsonl").read_bytes()
    hospital.restart()
    again = hospital.round()
    assert bytes(again.outbound.payload) == bytes(first.outbound.payload)
    assert again.contribution == first.contribution
    assert (hospital.ledger / "ledger.jsonl").read_bytes() == lines


def test_a_new_attempt_costs_anew(hospital: Hospital) -> None:
    hospital.round()
    (total,) = hospital.spend(hospital.round(attempt=2)).study_events
    assert total.steps == 2 * hospital.spend(hospital.round(attempt=3)).round_events[0].steps


def test_a_training_that_failed_stays_spent_and_is_not_tried_again_for_free(
    hospital: Hospital,
) -> None:
    with pytest.raises(Exception, match="cancel"):
        Hospital.round(_waiting(hospital), is_cancelled=True)
    hospital.restart()
    assert hospital.refused() is DropCode.MANIFEST_REPLAYED
    (line,) = read_ledger(hospital.ledger).lines
    assert line.state == "reserved"
    assert line.events


def _waiting(hospital: Hospital) -> Hospital:
    hospital.sessions.open("main")[0]._options["wait_s"] = 5  # type: ignore[attr-defined]  # the scripted session
    return hospital


def test_a_round_before_one_that_was_answered_is_refused(hospital: Hospital) -> None:
    hospital.round(round_number=2, attempt=3)
    hospital.restart()
    for number, attempt in ((1, 1), (1, 9), (2, 1), (2, 2)):
        code = hospital.refused(round_number=number, attempt=attempt)
        assert code is DropCode.MANIFEST_REPLAYED
    hospital.round(round_number=2, attempt=4)


def test_a_method_that_does_not_carry_out_the_mechanism_releases_nothing(
    new_consortium: Any,
) -> None:
    content = private_content()
    content["training"]["options"]["carries_out"] = False
    hospital = Hospital(new_consortium("site-1", "site-2", content=content))
    with pytest.raises(GateRefusedError, match="FH-GATE-007"):
        hospital.round()
    assert read_ledger(hospital.ledger).lines[0].state == "reserved"


def test_more_rounds_than_the_study_promised_are_refused_without_any_limit_of_the_site(
    hospital: Hospital,
) -> None:
    for attempt in (1, 2, 3):
        hospital.round(attempt=attempt)
    assert hospital.refused(attempt=4) is DropCode.PRIVACY_BUDGET
    assert len(read_ledger(hospital.ledger).lines) == 3


def test_what_another_study_spent_on_the_same_data_counts(hospital: Hospital) -> None:
    plan = plan_site(hospital.pinned.study, 10)
    assert plan is not None
    event = plan.train_event("main")
    three, four = (compose([event] * n, delta=plan.delta).epsilon for n in (3, 4))
    hospital.set_policy(f"{{max_epsilon_per_dataset: {(three + four) / 2:.4f}}}")
    hospital.restart()
    earlier = Reservation(
        study_id="earlier",
        study_sha256="ab" * 32,
        run_name="main",
        round_number=1,
        attempt=1,
        kind="train",
        manifest_sha256="cd" * 32,
        events=(event,),
    )
    hospital.account._ledger.reserve(earlier, allow=lambda _: None)
    hospital.round()
    hospital.round(round_number=2)
    assert hospital.refused(round_number=3) is DropCode.PRIVACY_BUDGET


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ("{max_epsilon_per_study: 0.01}", "FH-PRIVACY"),
        ("{max_epsilon_per_dataset: 0.01}", "FH-PRIVACY"),
        ("{min_noise_multiplier: 3}", "FH-PRIVACY"),
        ("{max_clipping_norm: 0.5}", "FH-PRIVACY"),
    ],
)
def test_a_study_outside_the_sites_policy_is_refused_at_the_start(
    hospital: Hospital, policy: str, code: str
) -> None:
    hospital.set_policy(policy)
    with pytest.raises(PrivacyError, match=code) as error:
        hospital.restart()
    assert error.value.exit_code == 5


def test_a_site_with_a_limit_refuses_a_study_without_privacy(open_hospital: Hospital) -> None:
    open_hospital.set_policy("{max_epsilon_per_study: 100}")
    with pytest.raises(PrivacyError):
        open_hospital.restart()


def place(hospital: Hospital, site_id: str = "site-1", **changes: Any) -> dict[str, Any]:
    """The cohort of a manifest whose server has seen some place of this site's ledger."""
    mark = hospital.account._ledger.mark
    seen = LedgerPlace(**({"sequence": mark.sequence, "head": mark.head} | changes))
    lines = [hospital.consortium.line(name) for name in ("site-1", "site-2")]
    cohort = tuple(
        CohortMember(
            site_id=line.entry.site_id,
            key_id=line.entry.key_id,
            ledger=seen if line.entry.site_id == site_id else None,
        )
        for line in lines
    )
    return {"cohort": cohort}


def test_a_ledger_that_is_older_than_what_the_server_saw_is_refused(hospital: Hospital) -> None:
    backup = None
    for number in (1, 2):
        hospital.round(round_number=number)
        hospital.account.commit(hospital.consortium.signed(round_number=number).payload_digest)
        backup = backup or (hospital.ledger / "ledger.jsonl").read_bytes()
    newest = place(hospital)
    hospital.round(round_number=3, attempt=1, **newest)
    (hospital.ledger / "ledger.jsonl").write_bytes(backup or b"")
    hospital.restart()
    assert hospital.refused(round_number=3, attempt=2, **newest) is DropCode.LEDGER_REFUSED


def test_another_head_at_the_same_place_is_refused(hospital: Hospital) -> None:
    hospital.round()
    other = place(hospital, head="ab" * 32)
    assert hospital.refused(round_number=2, **other) is DropCode.LEDGER_REFUSED


def test_noised_metrics_leave_when_the_study_says_so_and_are_charged(new_consortium: Any) -> None:
    content = private_content(release_metrics="every_round", metrics_noise_multiplier=5.0)
    content["release"] = {"metrics": ["accuracy", "log_loss"]}
    hospital = Hospital(new_consortium("site-1", "site-2", content=content))
    answer = hospital.round()
    said = hospital.said(answer)
    assert set(said.evaluate_metrics) == {"accuracy", "log_loss"}
    assert said.train_metrics == {}
    assert [event.kind for event in hospital.spend(answer).round_events] == [
        "poisson_subsampled_gaussian",
        "gaussian",
    ]


def test_no_metric_leaves_when_none_is_charged(hospital: Hospital) -> None:
    said = hospital.said(hospital.round())
    assert (said.evaluate_metrics, said.train_metrics) == ({}, {})


def test_the_final_model_comes_also_when_its_metrics_cannot_be_paid(new_consortium: Any) -> None:
    content = private_content(release_metrics="closing", metrics_noise_multiplier=0.01)
    content["release"] = {"metrics": ["accuracy"]}
    hospital = Hospital(new_consortium("site-1", "site-2", content=content))
    hospital.set_policy("{max_epsilon_per_dataset: 50}")
    with pytest.raises(PrivacyError):
        hospital.restart()


def test_a_damaged_sealing_key_is_an_error_and_not_a_new_key(hospital: Hospital) -> None:
    hospital.home.ledger_key.write_bytes(b"short")
    with pytest.raises(PrivacyError, match="FH-PRIVACY-090"):
        hospital.restart()


def test_two_homes_on_the_same_data_share_one_ledger(new_consortium: Any, tmp_path: Path) -> None:
    """Two studies, one data set: what the first spent counts in the second, whatever order they come in."""
    shared = tmp_path / "shared-ledger"
    hospitals = []
    for study_id in ("first", "second"):
        content = private_content() | {"id": study_id}
        hospital = Hospital(new_consortium("site-1", "site-2", name=study_id, content=content))
        hospital.set_policy(f"{{ledger_dir: {shared}}}")
        hospital.restart()
        hospitals.append(hospital)
    first, second = hospitals
    first.round()
    second.round()
    first.round(round_number=2)
    assert first.ledger == second.ledger
    plan = plan_site(first.pinned.study, 10)
    assert plan is not None
    thrice = compose([plan.train_event("main")] * 3, delta=plan.delta).epsilon
    spent = compose(read_ledger(second.ledger).events(), delta=plan.delta).epsilon
    assert spent == pytest.approx(thrice)


def test_the_clipping_norm_of_a_strategy_bounds_the_whole_update(open_hospital: Hospital) -> None:
    answer = open_hospital.round(strategy_config={"clipping_norm": 0.25})
    moved = np.frombuffer(answer.outbound.payload, dtype="<f4").astype(np.float64)
    assert float(np.linalg.norm(moved)) <= 0.25
    assert float(np.linalg.norm(moved)) == pytest.approx(0.25, rel=1e-5)


def test_with_a_split_of_the_site_package_no_side_is_counted_by_itself(new_consortium: Any) -> None:
    content = private_content(release_metrics="every_round", metrics_noise_multiplier=5.0)
    content["release"] = {"metrics": ["accuracy"]}
    hospital = Hospital(new_consortium("site-1", "site-2", content=content))
    hospital.sessions._has_own_split = True
    spend = hospital.spend(hospital.round())
    assert {event.population for event in spend.round_events} == {"all"}  # type: ignore[union-attr]
    seeded = Hospital(hospital.consortium, "site-2")
    sides = seeded.spend(seeded.round())
    apart = compose(sides.study_events, delta=spend.delta).epsilon
    assert compose(spend.study_events, delta=spend.delta).epsilon > apart
