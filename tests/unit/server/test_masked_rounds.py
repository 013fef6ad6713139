"""Masked rounds from end to end, in memory: right sums, every stage of dropping out, nothing readable at the server."""

import base64
from typing import Any

import numpy as np
import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import QuorumError
from fedhealth.evidence.signing import _pae
from fedhealth.evidence.statements import Contribution, Manifest, open_statement
from fedhealth.report.record import VoidReason
from fedhealth.secagg.statements import MaskKey
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.records import round_record

from .masked import Sites, ask, loop_of, masked_content, reply, run, silent, step_of

FIVE = ("site-1", "site-2", "site-3", "site-4", "site-5")
STEP = 8.0 / (2**15 - 1)
SIZES = {f"site-{n}": 10 * n for n in range(1, 6)}


def weighted(*names: str) -> float:
    """Site n adds n / 2 everywhere, and weighs 10 n."""
    total = sum(SIZES[name] for name in names)
    return sum(0.5 * int(name[-1]) * SIZES[name] for name in names) / total


@pytest.fixture
def five(new_consortium: Any) -> Sites:
    return Sites(new_consortium(*FIVE, content=masked_content()))


def one_round(sites: Sites) -> Any:
    loop, _, start = loop_of(sites)
    outcome, after = loop._train_round(start, 1)
    return outcome, after


def test_a_whole_run_gives_the_weighted_means(five: Sites) -> None:
    vector, rounds = run(five)
    assert np.abs(vector - 3 * weighted(*FIVE)).max() <= 3 * STEP
    assert [r.status for r in rounds] == ["complete"] * 4
    assert [r.masked.unmask_trips for r in rounds if r.masked] == [1] * 4
    closing = rounds[-1].total
    assert closing is not None
    assert closing.vector is None
    auc = sum((0.5 + 0.01 * n) * 10 * n for n in range(1, 6)) / 150
    # Each site's metric is anywhere within its third digit.
    assert closing.evaluate_metrics["auc"] == pytest.approx(auc, abs=5e-4)


def test_keys_are_asked_for_once_a_run_and_survive_a_restart_of_the_server(five: Sites) -> None:
    run(five)
    asked = [site for site, envelope, _ in five.sent if step_of(envelope) == "keyrequest"]
    assert sorted(asked) == list(FIVE)


def test_a_site_that_drops_out_before_masking_is_left_out_of_the_sum(five: Sites) -> None:
    five.faults["site-2", "manifest"] = silent
    outcome, after = one_round(five)
    left = [name for name in FIVE if name != "site-2"]
    assert np.abs(after.vector - weighted(*left)).max() <= STEP
    assert outcome.masked.unmask_trips == 2
    assert outcome.masked.agreed >= 3


def test_a_site_that_drops_out_after_masking_stays_in_the_sum(five: Sites) -> None:
    five.faults["site-2", "unmask"] = silent
    outcome, after = one_round(five)
    assert np.abs(after.vector - weighted(*FIVE)).max() <= STEP
    assert "site-2" not in outcome.masked.total.unmasked_by


def test_drop_outs_before_between_and_during_unmasking_together(five: Sites) -> None:
    five.faults["site-2", "manifest"] = silent
    five.faults["site-4", "agree"] = silent
    five.faults["site-4", "unmask"] = silent
    outcome, after = one_round(five)
    left = [name for name in FIVE if name != "site-2"]
    assert np.abs(after.vector - weighted(*left)).max() <= STEP
    assert outcome.masked.total.unmasked_by == ("site-1", "site-3", "site-5")


@pytest.mark.parametrize("step", ["agree", "unmask"])
def test_too_few_sites_in_an_unmasking_trip_make_the_round_void(five: Sites, step: str) -> None:
    five.faults["site-2", "manifest"] = silent
    for name in ("site-3", "site-4"):
        five.faults[name, step] = silent
    outcome, after = one_round(five)
    assert outcome.void_reason is VoidReason.MASKS_NOT_REMOVED
    assert outcome.model_out_sha256 == outcome.manifest.model_sha256
    assert (after.vector == 0).all()
    record = record_of(five, outcome)
    assert record.masking is not None
    assert len(record.masking.unmasked_by) < record.masking.threshold
    assert not any(site.evaluate_metrics for site in record.sites)


def test_below_the_floor_nobody_is_even_asked_to_unmask(five: Sites) -> None:
    for name in ("site-2", "site-3", "site-4"):
        five.faults[name, "manifest"] = silent
    outcome, after = one_round(five)
    assert outcome.void_reason is VoidReason.MINIMUM_COHORT
    assert (after.vector == 0).all()
    assert {step_of(envelope) for _, envelope, _ in five.sent} == {"keyrequest", "manifest"}


def test_what_was_spent_in_a_void_round_stays_spent(five: Sites) -> None:
    for name in ("site-2", "site-3", "site-4"):
        five.faults[name, "manifest"] = silent
    one_round(five)
    ledger = five.sites["site-1"].account._ledger
    assert len(ledger.view().lines) == 1


def test_a_vector_that_comes_after_the_list_is_fixed_is_not_added(five: Sites) -> None:
    late: list[Any] = []

    def comes_late(sites: Sites, site_id: str, *rest: Any) -> None:
        late.append(ask(sites, site_id, *rest))

    five.faults["site-2", "manifest"] = comes_late
    outcome, _ = one_round(five)
    (answer,) = late
    said = open_statement(Contribution, answer.envelope, five.consortium.site_key("site-2").public)
    assert said.masked is not None
    assert not outcome.masked.total.add("site-2", said.masked.envelope, answer.payload)
    assert outcome.masked.total.survivors == ("site-1", "site-3", "site-4", "site-5")


def test_a_site_that_answers_in_the_clear_does_not_count(five: Sites) -> None:
    def plain(sites: Sites, site_id: str, envelope: Any, payload: bytes) -> Any:
        manifest = open_statement(Manifest, envelope, sites.consortium.server_key.public)
        said = Contribution(
            study_id=manifest.study_id,
            site_id=site_id,
            manifest_sha256=envelope.payload_digest,
            run_name=manifest.run_name,
            round_number=1,
            attempt=1,
            kind="train",
            update_sha256="0" * 64,
            num_elements=100,
        )
        return reply(site_id, said.sign(sites.consortium.site_key(site_id)), payload)

    five.faults["site-2", "manifest"] = plain
    outcome, _ = one_round(five)
    dropped = {s.line.entry.site_id: s.drop_code for s in outcome.sites}
    assert dropped["site-2"] is DropCode.CONTRIBUTION_INVALID


def test_a_site_that_lies_about_a_share_makes_the_round_void_not_wrong(five: Sites) -> None:
    def lies(sites: Sites, site_id: str, envelope: Any, payload: bytes) -> Any:
        import hashlib

        from fedhealth.secagg.statements import Shares

        honest = ask(sites, site_id, envelope, payload)
        wrong = bytes(33) + honest.payload[33:]
        said = open_statement(
            Shares, honest.envelope, sites.consortium.site_key(site_id).public
        ).model_copy(update={"shares_sha256": hashlib.sha256(wrong).hexdigest()})
        return reply(site_id, said.sign(sites.consortium.site_key(site_id)), wrong)

    five.faults["site-2", "unmask"] = lies
    outcome, after = one_round(five)
    assert outcome.void_reason is VoidReason.SUM_NOT_USABLE or (
        np.abs(after.vector - weighted(*FIVE)).max() <= STEP
    )


def test_a_site_that_lost_its_key_is_asked_again(five: Sites) -> None:
    loop, _, start = loop_of(five)
    first, after = loop._train_round(start, 1)
    assert first.status == "complete"
    site = five.sites["site-2"]
    (site.pinned.folder.state / "main" / "masking" / "mask_key").unlink()
    site.restart()
    second, after = loop._train_round(after, 1)
    dropped = {s.line.entry.site_id: s.drop_code for s in second.sites}
    assert dropped["site-2"] is DropCode.MASK_KEY_INVALID
    third, _ = loop._train_round(after, 1)
    assert third.status == "complete"
    assert third.masked is not None
    assert third.masked.total.is_whole


def test_nothing_that_the_server_received_or_kept_holds_an_update_a_size_or_a_metric(
    five: Sites,
) -> None:
    run(five)
    kept = [p.read_bytes() for p in five.consortium.server.root.rglob("*") if p.is_file()]
    everything = b"\0".join([*five.received, *kept])
    for number in range(1, 6):
        vector = np.full(100, 0.5 * number, dtype=np.float32)
        assert vector[:4].tobytes() not in everything
        rounded = np.full(4, round(0.5 * number / STEP) * 10 * number, dtype=np.uint32)
        assert rounded.tobytes() not in everything
        assert f"{0.5 + 0.01 * number:.2f}".encode() not in everything
    assert b'"train_size":10' not in everything.replace(b" ", b"")


def test_a_run_stops_when_too_few_sites_give_a_key(five: Sites) -> None:
    for name in ("site-1", "site-2", "site-3"):
        five.faults[name, "keyrequest"] = silent
    with pytest.raises(QuorumError, match="gave a key"):
        run(five)


@pytest.mark.parametrize("bits", [8, 16])
def test_random_coordinates_and_few_bits_still_give_the_mean(
    new_consortium: Any, bits: int
) -> None:
    content = masked_content({"bits": bits, "kept_share": 0.5})
    sites = Sites(new_consortium(*FIVE[:3], content=content))
    outcome, after = one_round(sites)
    moved = after.vector[after.vector != 0]
    step = 8.0 / (2 ** (bits - 1) - 1)
    assert 20 <= moved.size <= 80
    assert np.abs(moved / 2 - weighted(*FIVE[:3])).max() <= step
    assert outcome.masked.layout.num_values == moved.size


def test_uniform_weights_are_the_strategys_choice(new_consortium: Any) -> None:
    content = masked_content()
    content["runs"][0]["strategy"] = {"name": "fedavg", "options": {"weighting": "uniform"}}
    sites = Sites(new_consortium(*FIVE[:3], content=content))
    outcome, after = one_round(sites)
    assert np.abs(after.vector - 1.0).max() <= STEP
    assert outcome.total.weight == 3


@pytest.mark.parametrize("name", ["fedprox", "flower-fedavg", "flower-fedadam"])
def test_strategies_that_need_the_mean_only_work_on_it(new_consortium: Any, name: str) -> None:
    content = masked_content()
    content["runs"][0]["strategy"] = {"name": name}
    if name == "fedprox":
        content["runs"][0]["strategy"]["options"] = {"proximal_mu": 0.0}
    sites = Sites(new_consortium(*FIVE[:3], content=content))
    vector, rounds = run(sites)
    assert [r.status for r in rounds] == ["complete"] * 4
    assert np.isfinite(vector).all()
    assert vector.any()


def record_of(sites: Sites, outcome: Any) -> Any:
    study = sites.consortium.server.require()[0]
    return round_record(outcome, study.runs[0], sites.roster(), {})


def test_the_record_of_a_masked_round_is_consistent(five: Sites) -> None:
    outcome, _ = one_round(five)
    record = record_of(five, outcome)
    assert record.masking is not None
    assert record.masking.total_weight == 150
    assert all(site.declared_train_size is None for site in record.sites)
    assert read_last_checkpoint(five.consortium.server.run("main")).round_number == 1


def test_a_key_that_is_padded_or_another_sites_leaves_its_site_out(five: Sites) -> None:
    """The other sites would refuse a cohort with it: one site must not end the round for all."""

    def padded(sites: Sites, site_id: str, envelope: Any, payload: bytes) -> Any:
        honest = ask(sites, site_id, envelope, payload).envelope
        longer = f" {honest.payload}"
        signed = sites.consortium.site_key(site_id)._key.sign(
            _pae(honest.payload_type, longer.encode())
        )
        return reply(
            site_id,
            honest.model_copy(
                update={"payload": longer, "signature": base64.b64encode(signed).decode()}
            ),
        )

    def copied(sites: Sites, site_id: str, envelope: Any, payload: bytes) -> Any:
        other = ask(sites, "site-1", envelope, payload)
        said = open_statement(
            MaskKey, other.envelope, sites.consortium.site_key("site-1").public
        ).model_copy(update={"site_id": site_id})
        return reply(site_id, said.sign(sites.consortium.site_key(site_id)))

    five.faults = {("site-2", "keyrequest"): padded, ("site-4", "keyrequest"): copied}
    outcome, _ = one_round(five)
    assert outcome.status == "complete"
    assert [one.line.entry.site_id for one in outcome.sites] == ["site-1", "site-3", "site-5"]
