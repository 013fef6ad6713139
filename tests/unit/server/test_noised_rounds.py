"""Distributed noise under the masks, in whole rounds in memory: of sites, and of single patients."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedhealth.evidence.statements import Contribution, open_statement
from fedhealth.privacy.accounting.accountants import compose
from fedhealth.privacy.accounting.events import DistributedSkellam
from fedhealth.report.record import VoidReason
from fedhealth.secagg.statements import Shares
from fedhealth.server.records import round_record

from .masked import Sites, ask, loop_of, masked_content, reply, run, silent

FIVE = ("site-1", "site-2", "site-3", "site-4", "site-5")
NOISE: dict[str, Any] = {
    "unit": "site",
    "num_sites": 5,
    "clipping_norm": 1.0,
    "noise_multiplier": 0.5,
    "modulus_bits": 24,
}


def noised(new_consortium: Any, *, patients: bool = False, **changes: Any) -> Sites:
    content = masked_content({"distributed_privacy": NOISE | changes})
    if patients:
        content["training"]["options"] = {"step": 0.5, "num_patients": 7}
    return Sites(new_consortium(*FIVE, content=content))


def test_the_model_moves_by_the_clipped_mean_and_noise_of_the_planned_size(
    new_consortium: Any,
) -> None:
    sites = noised(new_consortium)
    loop, _, start = loop_of(sites)
    outcome, after = loop._train_round(start, 1)
    # Every site moves all 100 values by the same amount: clipped to norm 1, that is 0.1 each.
    plan_std = 0.5 * 1.0 / 5 * np.sqrt(5 / 3)  # five shares, each sized for three honest sites
    assert abs(after.vector.mean() - 0.1) < 6 * plan_std / 10 + 0.01
    assert 0.5 * plan_std < after.vector.std() < 2 * plan_std
    assert outcome.total is not None
    assert outcome.total.num_cut is None
    assert outcome.total.train_metrics == {}
    assert outcome.total.evaluate_metrics == {}


def test_nothing_but_the_noised_vector_is_in_the_mask(new_consortium: Any) -> None:
    sites = noised(new_consortium)
    loop, _, start = loop_of(sites)
    outcome, _ = loop._train_round(start, 1)
    assert outcome.masked is not None
    assert outcome.masked.layout.tail is None
    # 100 values, filled up to a power of two, and two words that count the sites.
    assert outcome.masked.layout.num_words == 128 + 2


def test_the_sum_is_on_the_account_of_sites_and_of_patients(new_consortium: Any) -> None:
    sites = noised(new_consortium)
    _, rounds = run(sites)
    study = sites.consortium.server.require()[0]
    records = [round_record(one, study.runs[0], sites.roster(), {}) for one in rounds]
    last = records[2]
    assert last.site_level is not None
    assert last.site_level.mechanism == "distributed-skellam"
    (event,) = last.site_level.run_events
    assert isinstance(event, DistributedSkellam)
    assert event.steps == 3
    assert event.num_honest == 3
    assert last.site_level.epsilon is not None
    for site in last.sites:
        assert site.privacy is not None
        assert site.privacy.is_bounded
        (own,) = site.privacy.study_events
        assert isinstance(own, DistributedSkellam)
        assert own.unit == "patient"
        assert own.steps == 3
        assert own.l2_sensitivity == 2 * event.l2_sensitivity
    closing = records[-1]
    assert closing.aggregate_evaluate_metrics == {}
    assert closing.status == "complete"
    assert closing.masking is not None
    assert not closing.masking.is_masked


def test_a_server_that_asks_for_more_sums_than_planned_gets_none(new_consortium: Any) -> None:
    sites = noised(new_consortium)
    loop, _, start = loop_of(sites)
    for attempt in range(1, 4):
        outcome, _ = loop._train_round(start, attempt)
        assert outcome.status == "complete"
    outcome, _ = loop._train_round(start, 4)
    assert outcome.status == "void"
    codes = {site.drop_code.value for site in outcome.sites if site.drop_code}
    assert codes == {"privacy_budget"}


def test_the_account_of_noised_sums_survives_a_restart_of_the_server(new_consortium: Any) -> None:
    sites = noised(new_consortium)
    loop, _, start = loop_of(sites)
    _, after = loop._train_round(start, 1)
    again, notes, stored = loop_of(sites)
    assert stored.round_number == after.round_number == 1
    again.run_all(stored)
    counted = [
        one.aggregate.site_level_so_far for one in notes.closed_rounds if one.aggregate is not None
    ]
    assert [len(one) for one in counted] == [2, 3]


@pytest.mark.parametrize("target", [2.0, 8.0])
def test_a_target_epsilon_is_kept_over_the_whole_run(new_consortium: Any, target: float) -> None:
    sites = noised(
        new_consortium, noise_multiplier=None, target_epsilon=target, delta=1e-3, num_sites=5
    )
    _, rounds = run(sites)
    release = rounds[2].aggregate
    assert release is not None
    from fedhealth.privacy.accounting.site_level import site_level_events

    spent = compose(site_level_events(release.site_level_so_far), delta=1e-3)
    assert 0.9 * target <= spent.epsilon <= target


def test_patients_gradients_make_one_global_step(new_consortium: Any) -> None:
    sites = noised(
        new_consortium,
        patients=True,
        unit="patient",
        num_patients=35,
        noise_multiplier=1.0,
        clipping_norm=1.0,
    )
    study = sites.consortium.server.require()[0]
    loop, _, start = loop_of(sites)
    outcome, after = loop._train_round(start, 1)
    assert outcome.status == "complete"
    rate = study.training.optimizer.learning_rate
    # Each of 35 patients has the same gradient, of norm 1 after clipping: 0.1 in every coordinate.
    noise = rate * 1.0 / 35 * np.sqrt(5 / 3)
    assert abs(after.vector.mean() + rate * 0.1) < 6 * noise / 10 + 1e-4
    assert 0.5 * noise < after.vector.std() < 2 * noise
    record = round_record(outcome, study.runs[0], sites.roster(), {})
    assert record.site_level is None
    for site in record.sites:
        assert site.privacy is not None
        assert site.privacy.is_bounded
        (own,) = site.privacy.study_events
        assert isinstance(own, DistributedSkellam)
        assert own.unit == "patient"


def test_a_wrong_share_makes_a_noised_round_void_not_wrong(new_consortium: Any) -> None:
    """Exactly a threshold of answers, one of them false: nothing but the counting words can tell."""
    sites = noised(new_consortium)

    def lies(all_sites: Sites, site_id: str, envelope: Any, payload: bytes) -> Any:
        honest = ask(all_sites, site_id, envelope, payload)
        wrong = bytes(32) + b"\x01" + honest.payload[33:]
        key = all_sites.consortium.site_key(site_id)
        said = open_statement(Shares, honest.envelope, key.public).model_copy(
            update={"shares_sha256": hashlib.sha256(wrong).hexdigest()}
        )
        return reply(site_id, said.sign(key), wrong)

    sites.faults = {("site-1", "unmask"): lies}
    sites.faults |= {(f"site-{n}", "unmask"): silent for n in (4, 5)}
    loop, _, start = loop_of(sites)
    outcome, after = loop._train_round(start, 1)
    assert outcome.void_reason is VoidReason.SUM_NOT_USABLE
    assert (after.vector == 0).all()


def test_spare_rounds_pay_for_a_round_that_must_be_repeated(new_consortium: Any) -> None:
    sites = noised(new_consortium, spare_rounds=1)
    sites.faults = {(f"site-{n}", "unmask"): silent for n in (1, 2, 3)}
    loop, _, start = loop_of(sites)
    first, _ = loop._train_round(start, 1)
    assert first.status == "void"
    sites.faults.clear()
    now = start
    for number in range(3):
        outcome, now = loop._train_round(now, 2 if number == 0 else 1)
        assert outcome.status == "complete", [s.drop_code for s in outcome.sites]


def test_what_sites_sign_about_their_patients_does_not_tell_their_size(new_consortium: Any) -> None:
    sites = noised(new_consortium)
    loop, _, start = loop_of(sites)
    outcome, _ = loop._train_round(start, 1)
    said = {
        open_statement(
            Contribution, one.envelope, sites.consortium.site_key(one.line.entry.site_id).public
        )
        .privacy.model_copy(update={"ledger": None})
        .model_dump_json()  # type: ignore[union-attr]
        for one in outcome.sites
        if one.envelope is not None
    }
    assert len(said) == 1
