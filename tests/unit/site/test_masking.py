"""What a hospital's worker does with requests of secure aggregation, and what it remembers across restarts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedhealth.config.load import load_site
from fedhealth.contracts.codes import DropCode
from fedhealth.errors import ConfigError, EvidenceError, GateRefusedError, IdentityError, UsageError
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import Manifest, StudyRoster, open_statement
from fedhealth.gate.gate import ReleaseTerms, clear_metrics, release
from fedhealth.secagg.refusals import MaskingRefusedError
from fedhealth.secagg.site_rules import check_site_rules
from fedhealth.secagg.statements import KeyRequest, MaskKey, UnmaskRequest
from fedhealth.server.enrolment import issue_roster, revoke
from fedhealth.server.outcomes import RoundOutcome, Stopwatch
from fedhealth.server.spool import Spool
from fedhealth.site.enrolment import pin_roster, read_roster_file
from fedhealth.site.home import load_pinned
from fedhealth.testing.flower_task import flower_task

from ..conftest import Consortium, study_content  # noqa: TID252 - tests are no installed package
from ..server.masked import Site, Sites, loop_of, masked_content, step_of  # noqa: TID252

FIVE = ("site-1", "site-2", "site-3", "site-4", "site-5")


@pytest.fixture
def sites(new_consortium: Any) -> Sites:
    return Sites(new_consortium(*FIVE, content=masked_content()))


def refused(site: Site, envelope: Envelope, payload: bytes = b"") -> DropCode:
    with pytest.raises(MaskingRefusedError) as error:
        site.answer(envelope, payload)
    return error.value.drop_code


def after_a_round(sites: Sites, *silent_sites: str) -> list[tuple[str, Envelope, bytes]]:
    """What the server sent while it ran one round in which these sites did not answer."""
    for name in silent_sites:
        sites.faults[name, "manifest"] = lambda *_: None
    with flower_task():
        loop, _, start = loop_of(sites)
        loop._train_round(start, 1)
    return list(sites.sent)


def sent(log: list[tuple[str, Envelope, bytes]], step: str, to: str) -> tuple[Envelope, bytes]:
    return next((e, p) for site, e, p in log if site == to and step_of(e) == step)


def signed_again(sites: Sites, envelope: Envelope, **changes: Any) -> Envelope:
    """The same request with other content, signed by the server: what a malicious one can do."""
    key = sites.consortium.server_key
    said = open_statement(UnmaskRequest, envelope, key.public)
    return said.model_copy(update=changes).sign(key)


def test_the_same_list_may_be_asked_for_again_and_gives_the_same_shares(sites: Sites) -> None:
    log = after_a_round(sites)
    envelope, payload = sent(log, "unmask", "site-1")
    first = sites.sites["site-1"].answer(envelope, payload)
    sites.sites["site-1"].restart()
    again = sites.sites["site-1"].answer(envelope, payload)
    assert bytes(first.outbound.payload) == bytes(again.outbound.payload)


@pytest.mark.parametrize("restarts", [False, True])
def test_another_list_is_refused_for_ever_after_one_was_unmasked(
    sites: Sites, restarts: bool
) -> None:
    log = after_a_round(sites)
    envelope, payload = sent(log, "unmask", "site-1")
    said = open_statement(UnmaskRequest, envelope, sites.consortium.server_key.public)
    fewer = signed_again(
        sites,
        envelope,
        step="agree",
        survivors=FIVE[:4],
        dropped=FIVE[4:],
        commitments=said.commitments[:4],
    )
    if restarts:
        sites.sites["site-1"].restart()
    short = payload[: len(payload) * 4 // 5]
    assert refused(sites.sites["site-1"], fewer, short) is DropCode.SECAGG_SECOND_LIST


def test_agreeing_to_one_list_refuses_another_before_any_share_was_given(sites: Sites) -> None:
    log = after_a_round(sites, "site-5")
    envelope, payload = sent(log, "agree", "site-1")
    said = open_statement(UnmaskRequest, envelope, sites.consortium.server_key.public)
    fewer = signed_again(
        sites,
        envelope,
        survivors=FIVE[:3],
        dropped=FIVE[3:],
        commitments=said.commitments[:3],
    )
    sites.sites["site-1"].restart()
    short = payload[: len(payload) * 3 // 4]
    assert refused(sites.sites["site-1"], fewer, short) is DropCode.SECAGG_SECOND_LIST


def test_a_request_about_a_round_that_was_not_answered_is_refused(sites: Sites) -> None:
    log = after_a_round(sites)
    envelope, payload = sent(log, "unmask", "site-1")
    other = signed_again(sites, envelope, manifest_sha256="0" * 64)
    assert refused(sites.sites["site-1"], other, payload) is DropCode.SECAGG_UNKNOWN_ROUND


def test_an_older_round_cannot_be_unmasked_once_a_newer_one_was_answered(sites: Sites) -> None:
    with flower_task():
        loop, _, start = loop_of(sites)
        _, after = loop._train_round(start, 1)
        envelope, payload = sent(sites.sent, "unmask", "site-1")
        loop._train_round(after, 1)
    assert refused(sites.sites["site-1"], envelope, payload) is DropCode.SECAGG_UNKNOWN_ROUND


def rounds_of(sites: Sites, *attempts: tuple[int, tuple[str, ...]]) -> list[Any]:
    """Attempts at round 1, each without the named sites, as a server that forgets what it opened."""
    outcomes = []
    with flower_task():
        loop, _, start = loop_of(sites)
        for attempt, absent in attempts:
            sites.faults = {(name, "manifest"): lambda *_: None for name in absent}
            loop.folder.opened_sums.unlink(missing_ok=True)
            outcome, _ = loop._train_round(start, attempt)
            outcomes.append(outcome)
    return outcomes


def test_a_second_attempt_at_a_round_opens_no_other_list(sites: Sites) -> None:
    """Local training repeats itself: two sums of one round would show the site that is in one of them."""
    first, second, third = rounds_of(sites, (1, ()), (2, ("site-2",)), (3, ()))
    assert [first.status, second.status, third.status] == ["complete", "void", "complete"]
    assert second.masked.total.unmasked_by == ()


def test_another_round_from_the_same_model_opens_no_other_list(sites: Sites) -> None:
    with flower_task():
        loop, _, start = loop_of(sites)
        loop._train_round(start, 1)
        sites.faults["site-2", "manifest"] = lambda *_: None
        outcome, _ = loop._train_round(replace(start, round_number=1), 1)
    assert outcome.status == "void"
    assert outcome.masked.total.unmasked_by == ()


def with_settings(sites: Sites, *attempts: dict[str, float]) -> list[Any]:
    """Attempts at round 1 by all sites, for each of which the server asks something else of local training."""
    outcomes = []
    with flower_task():
        loop, _, start = loop_of(sites)
        usual = loop.aggregator
        for number, settings in enumerate(attempts, start=1):
            loop.aggregator = Asking(usual, settings)
            loop.folder.opened_sums.unlink(missing_ok=True)
            outcome, _ = loop._train_round(start, number)
            outcomes.append(outcome)
    return outcomes


@dataclass
class Asking:
    """An aggregator of a server that wants other settings than the study's strategy."""

    inner: Any
    settings: dict[str, float]

    def configure(self, *_: Any) -> dict[str, float]:
        return self.settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_two_sums_of_one_round_are_made_with_the_same_settings(sites: Sites) -> None:
    """Local training repeats itself: what counts each site by its steps, and what does not, would tell them apart."""
    by_steps = {"effective_steps": 2.0}
    first, second, third = with_settings(sites, {}, by_steps, {})
    assert [first.status, second.status, third.status] == ["complete", "void", "complete"]
    assert second.masked.total.unmasked_by == ()


def test_a_masked_round_that_cuts_each_site_to_a_norm_is_refused(sites: Sites) -> None:
    (only,) = with_settings(sites, {"clipping_norm": 0.5})
    assert {site.drop_code for site in only.sites} == {DropCode.SECAGG_SETTINGS}


@pytest.mark.parametrize("damage", ["", '{"sums": [', "[]"])
def test_no_share_leaves_where_the_memory_of_lists_is_damaged(sites: Sites, damage: str) -> None:
    log = after_a_round(sites)
    envelope, payload = sent(log, "unmask", "site-1")
    site = sites.sites["site-1"]
    (site.pinned.folder.state / "opened_sums.json").write_text(damage)
    site.restart()
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-031"):
        site.answer(envelope, payload)


def test_a_server_that_lost_its_memory_of_lists_begins_no_round(sites: Sites) -> None:
    with flower_task():
        loop, _, start = loop_of(sites)
        loop._train_round(start, 1)
        loop.folder.opened_sums.write_text('{"sums": [')
        with pytest.raises(EvidenceError, match="FH-EVIDENCE-031"):
            loop._train_round(start, 2)


def asked(loop: Any, now: Any, kind: Any, names: tuple[str, ...], attempt: int = 1) -> RoundOutcome:
    """One trip of a server that chooses the cohort itself, and remembers nothing of what it opened."""
    loop.folder.opened_sums.unlink(missing_ok=True)
    lines = loop._masking.with_keys(loop._gathering.gather(kind))
    cohort = [line for line in lines if line.entry.site_id in names]
    manifest = loop._manifest(now, cohort, attempt, kind)
    return loop._exchange(manifest, now, cohort, Spool(loop.folder.spool), Stopwatch())


def test_evaluating_a_model_that_was_trained_from_opens_no_other_list(sites: Sites) -> None:
    """Both tell the metrics of one model: their difference would be one site's."""
    with flower_task():
        loop, _, start = loop_of(sites)
        last = replace(start, round_number=loop.run.num_rounds)
        assert asked(loop, start, "train", FIVE).status == "complete"
        other, same = (
            asked(loop, last, "evaluate", FIVE[:4]),
            asked(loop, last, "evaluate", FIVE, 2),
        )
    assert [other.status, same.status] == ["void", "complete"]
    assert other.masked.total.unmasked_by == ()


def test_a_final_model_is_evaluated_after_the_last_round_only(sites: Sites) -> None:
    with flower_task():
        loop, _, start = loop_of(sites)
        early = asked(loop, start, "evaluate", FIVE)
    assert {one.drop_code for one in early.sites} == {DropCode.STUDY_MISMATCH}


def test_another_run_from_the_same_model_opens_no_other_list(new_consortium: Any) -> None:
    content = masked_content()
    content["runs"].append({"name": "second", "num_rounds": 1})
    sites = Sites(new_consortium(*FIVE, content=content))
    with flower_task():
        loop, _, start = loop_of(sites)
        assert asked(loop, start, "train", FIVE).status == "complete"
        loop, _, start = loop_of(sites, "second")
        other, same = (
            asked(loop, start, "train", FIVE[:4]),
            asked(loop, start, "train", FIVE, 2),
        )
    assert [other.status, same.status] == ["void", "complete"]


def test_a_sum_in_between_does_not_make_a_round_forget_its_list(sites: Sites) -> None:
    """Round 1 of five; round 2 of four from another model; then round 2 of five from the first model again."""
    with flower_task():
        loop, _, start = loop_of(sites)
        moved = start.vector.copy()
        moved[0] = 0.5
        assert asked(loop, start, "train", FIVE).status == "complete"
        between = asked(loop, replace(start, vector=moved, round_number=1), "train", FIVE[:4])
        third = asked(loop, replace(start, round_number=1), "train", FIVE, 2)
    assert [between.status, third.status] == ["complete", "void"]


def test_agreeing_alone_does_not_bind_a_further_attempt(sites: Sites) -> None:
    sites.faults = {(f"site-{n}", "agree"): lambda *_: None for n in (3, 4)}
    sites.faults["site-2", "manifest"] = lambda *_: None
    with flower_task():
        loop, _, start = loop_of(sites)
        first, _ = loop._train_round(start, 1)
        sites.faults.clear()
        second, _ = loop._train_round(start, 2)
    assert [first.status, second.status] == ["void", "complete"]


def test_the_server_asks_the_same_sites_again_after_it_began_to_open_a_sum(sites: Sites) -> None:
    """site-4 is late at first; three sites then give no shares. The next attempt is about the same four."""
    sites.faults = {(f"site-{n}", "unmask"): lambda *_: None for n in (1, 2, 3)}
    sites.faults["site-4", "manifest"] = lambda *_: None
    with flower_task():
        loop, _, start = loop_of(sites)
        first, _ = loop._train_round(start, 1)
        sites.faults.clear()
        second, _ = loop._train_round(start, 2)
    assert [first.status, second.status] == ["void", "complete"]
    assert second.masked.total.survivors == ("site-1", "site-2", "site-3", "site-5")


def test_a_round_is_masked_once_even_where_the_ledger_forgot_it(sites: Sites) -> None:
    log = after_a_round(sites)
    envelope, _ = sent(log, "manifest", "site-1")
    key = sites.consortium.server_key
    site, said = sites.sites["site-1"], open_statement(Manifest, envelope, key.public)
    again = said.model_copy(update={"deadline_s": 9.0})
    for manifest in (said, again):
        with pytest.raises(MaskingRefusedError) as error:
            site.masking.prepare(manifest, manifest.sign(key))
        assert error.value.drop_code is DropCode.MANIFEST_REPLAYED
    later = said.model_copy(update={"attempt": 2})
    assert site.masking.prepare(later, later.sign(key)) is not None


def test_a_request_that_the_pinned_server_did_not_sign_is_refused(sites: Sites) -> None:
    log = after_a_round(sites)
    envelope, payload = sent(log, "unmask", "site-1")
    said = open_statement(UnmaskRequest, envelope, sites.consortium.server_key.public)
    forged = said.sign(SigningKey.generate())
    assert refused(sites.sites["site-1"], forged, payload) is DropCode.MANIFEST_INVALID


def test_the_key_of_a_run_is_the_same_after_a_restart_and_another_one_for_another_run(
    new_consortium: Any,
) -> None:
    content = masked_content()
    content["runs"].append({"name": "second", "num_rounds": 1})
    sites = Sites(new_consortium(*FIVE[:3], content=content))
    site = sites.sites["site-1"]

    def key(run: str) -> str:
        request = KeyRequest(
            study_id="scripted", study_sha256=site.pinned.study_sha256, run_name=run
        )
        answer = site.answer(request.sign(sites.consortium.server_key), b"")
        return open_statement(
            MaskKey, answer.contribution, site.pinned.signing_key.public
        ).public_key

    first = key("main")
    site.restart()
    assert key("main") == first
    assert key("second") != first
    path = site.pinned.folder.state / "main" / "masking" / "mask_key"
    assert path.stat().st_mode & 0o077 == 0


def test_a_key_request_for_another_study_or_run_is_refused(sites: Sites) -> None:
    site = sites.sites["site-1"]
    for changes in ({"study_sha256": "0" * 64}, {"run_name": "other"}):
        request = KeyRequest(
            **{"study_id": "scripted", "study_sha256": site.pinned.study_sha256, "run_name": "main"}
            | changes
        )
        assert refused(site, request.sign(sites.consortium.server_key)) is DropCode.STUDY_MISMATCH


def test_a_repeated_manifest_gets_the_same_masked_bytes(sites: Sites) -> None:
    log = after_a_round(sites)
    envelope, payload = sent(log, "manifest", "site-1")
    site = sites.sites["site-1"]
    site.restart()
    first, again = site.answer(envelope, payload), site.answer(envelope, payload)
    assert first.outbound.kind == again.outbound.kind == "masked"
    assert bytes(first.outbound.payload) == bytes(again.outbound.payload)
    assert first.contribution == again.contribution


def test_a_manifest_without_the_studys_masks_is_refused(sites: Sites) -> None:
    site = sites.sites["site-1"]
    with pytest.raises(MaskingRefusedError) as error:
        site.answer(sites.consortium.signed(min_cohort=3), bytes(sites.consortium.payload()))
    assert error.value.drop_code is DropCode.SECAGG_SETTINGS


def test_what_a_masked_study_releases_cannot_leave_in_the_clear(sites: Sites) -> None:
    terms = ReleaseTerms(
        spec=sites.consortium.spec, metrics=("auc",), metric_digits=3, is_masked=True
    )
    with pytest.raises(GateRefusedError, match="FH-GATE-010"):
        release(clear_metrics({"auc": 0.7}, terms=terms))
    assert release(clear_metrics({}, terms=terms)).payload == b""


def test_a_site_that_asks_for_masks_refuses_a_study_without(new_consortium: Any) -> None:
    consortium = new_consortium("site-1", "site-2", content=study_content())
    set_rules(consortium, "site-1", "{required: true}")
    pinned = consortium.pinned("site-1")
    with pytest.raises(GateRefusedError, match="FH-SECAGG-011"):
        check_site_rules(pinned.study, pinned.config)


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ("{min_survivors: 4, colluding: 0}", "FH-SECAGG-012"),
        ("{colluding: 1}", "FH-SECAGG-013"),
    ],
)
def test_a_study_below_the_sites_own_floor_is_refused_at_the_start(
    sites: Sites, rules: str, code: str
) -> None:
    set_rules(sites.consortium, "site-1", rules)
    pinned = sites.consortium.pinned("site-1")
    with pytest.raises(GateRefusedError, match=code):
        check_site_rules(pinned.study, pinned.config)


def test_a_site_below_whose_floor_a_round_is_refuses_it_while_the_others_go_on(
    sites: Sites,
) -> None:
    set_rules(sites.consortium, "site-1", "{min_survivors: 4, colluding: 0}")
    sites.sites["site-1"].restart()
    with flower_task():
        loop, _, start = loop_of(sites)
        outcome, _ = loop._train_round(start, 1)
    codes = {one.line.entry.site_id: one.drop_code for one in outcome.sites}
    assert codes["site-1"] is DropCode.SECAGG_FLOOR
    assert outcome.status == "complete"


def test_a_site_larger_than_the_studys_sums_allow_is_told_so(new_consortium: Any) -> None:
    consortium = new_consortium(*FIVE[:3], content=masked_content({"max_train_size": 20}))
    set_rules(consortium, "site-3", "{colluding: 0}")
    pinned = consortium.pinned("site-3")
    with pytest.raises(ConfigError, match="FH-CONFIG-032"):
        check_site_rules(pinned.study, pinned.config)


def test_a_site_without_a_pinned_roster_does_not_start(new_consortium: Any) -> None:
    consortium = new_consortium(*FIVE[:3], content=masked_content())
    consortium.enrol("site-4", 10)
    with pytest.raises(IdentityError, match="FH-IDENTITY-013"):
        consortium.pinned("site-4")


def test_a_roster_shows_what_is_new_and_what_changed(new_consortium: Any, tmp_path: Path) -> None:
    consortium = new_consortium(*FIVE[:3], content=masked_content())
    home = consortium.sites["site-1"]
    consortium.enrol("site-4", 10)
    offered = read_roster_file(home, issue_roster(consortium.server, tmp_path / "r.json").path)
    assert offered.changes == {
        "site-1": "same",
        "site-2": "same",
        "site-3": "same",
        "site-4": "new",
    }
    pin_roster(home, offered)
    assert set(load_pinned(home, "scripted").roster) == set(FIVE[:4])
    revoke(consortium.server, "site-2")
    shrunk = read_roster_file(home, issue_roster(consortium.server, tmp_path / "r.json").path)
    assert shrunk.changes["site-2"] == "gone"


def test_a_site_that_is_not_on_the_issued_roster_is_not_asked(sites: Sites) -> None:
    sites.consortium.enrol("site-6", 10)
    with flower_task():
        loop, _, start = loop_of(sites)
        outcome, _ = loop._train_round(start, 1)
    assert outcome.status == "complete"
    assert "site-6" not in {one.line.entry.site_id for one in outcome.sites}


def test_a_roster_that_the_server_did_not_sign_or_without_this_site_is_refused(
    new_consortium: Any, tmp_path: Path
) -> None:
    consortium = new_consortium(*FIVE[:3], content=masked_content())
    home, key = consortium.sites["site-1"], consortium.server_key
    path = issue_roster(consortium.server, tmp_path / "r.json").path
    roster = open_statement(StudyRoster, Envelope.from_bytes(path.read_bytes()), key.public)
    forged = tmp_path / "forged.json"
    forged.write_bytes(roster.sign(SigningKey.generate()).to_bytes())
    with pytest.raises(IdentityError):
        read_roster_file(home, forged)
    without = roster.model_copy(update={"sites": roster.sites[1:]})
    forged.write_bytes(without.sign(key).to_bytes())
    with pytest.raises(IdentityError, match="not on it"):
        read_roster_file(home, forged)


def test_a_roster_needs_an_admitted_site(new_consortium: Any, tmp_path: Path) -> None:
    consortium = new_consortium(content=study_content())
    with pytest.raises(UsageError, match="FH-USAGE-022"):
        issue_roster(consortium.server, tmp_path / "r.json")


def test_the_size_of_a_site_is_in_no_file_that_the_server_gets(sites: Sites) -> None:
    for name in FIVE:
        request = sites.consortium.sites[name].study("scripted").request.read_text()
        assert 'train_size\\":null' in request
        assert load_site(sites.consortium.sites[name].config_path).declared_train_size >= 10


def set_rules(consortium: Consortium, site_id: str, rules: str) -> None:
    path = consortium.sites[site_id].config_path
    kept = [line for line in path.read_text().splitlines() if "secure_aggregation" not in line]
    path.write_text("\n".join([*kept, f"secure_aggregation: {rules}", ""]))
