"""The order RESERVE, SEAL, COMMIT, what each refuses, and what a ledger says about itself."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.events import GaussianRelease, UnboundedRelease
from fedhealth.privacy.ledger.entries import GENESIS
from fedhealth.privacy.ledger.ledger import LedgerMark, LedgerView, Reservation, read_ledger
from fedhealth.privacy.ledger.state import KEPT_ANSWERS


def test_a_reservation_counts_at_once_and_for_ever(desk: Any) -> None:
    ledger = desk.open()
    desk.reserve(ledger, 1)
    desk.answered(ledger, 2)
    for view in (ledger.view(), desk.open().view(), read_ledger(desk.folder)):
        assert view.events() == (desk.event(1), desk.event(2))
        assert [line.state for line in view.lines] == ["reserved", "committed"]


def test_a_view_tells_studies_apart_and_adds_them_up(desk: Any) -> None:
    ledger = desk.open()
    desk.reserve(ledger, 1)
    desk.reserve(ledger, 2, study_id="study-b")
    view = ledger.view()
    assert view.events("study-a") == (desk.event(1),)
    assert view.events("study-b") == (desk.event(2),)
    assert view.events("study-c") == ()
    assert view.events() == (desk.event(1), desk.event(2))


def test_facts_of_a_reservation_are_what_was_asked_for(desk: Any) -> None:
    ledger = desk.open()
    asked = desk.reservation(
        3,
        attempt=2,
        kind="evaluate",
        events=(
            UnboundedRelease(unit="patient", steps=1),
            GaussianRelease(
                unit="patient",
                noise_multiplier=5,
                steps=1,
                population="validation",
                split_id="a1",
                generator="seeded_for_tests",
            ),
        ),
    )
    mark = ledger.reserve(asked, allow=lambda _: None)
    (facts,) = desk.open().view().lines
    assert {name: getattr(facts, name) for name in Reservation.__slots__} == {
        name: getattr(asked, name) for name in Reservation.__slots__
    }
    assert (facts.state, facts.sequence) == ("reserved", mark.sequence)
    assert facts.at.endswith("Z")


def test_the_policy_is_asked_under_the_lock_with_all_that_was_spent(desk: Any) -> None:
    first, second = desk.open(), desk.open()
    desk.reserve(first, 1)
    seen: list[LedgerView] = []
    second.reserve(desk.reservation(2), allow=seen.append)
    assert [view.events() for view in seen] == [(desk.event(1),)]


def test_what_the_policy_refuses_is_not_spent(desk: Any) -> None:
    ledger = desk.open()
    before = desk.file.read_bytes()

    def refuse(_: LedgerView) -> None:
        raise PrivacyError("FH-PRIVACY-030", "no.", why="w", fix="f")

    assert (
        desk.refused(lambda: ledger.reserve(desk.reservation(), allow=refuse)) == "FH-PRIVACY-030"
    )
    assert desk.file.read_bytes() == before
    desk.reserve(ledger)


@pytest.mark.parametrize(
    ("number", "attempt", "kind"),
    [(2, 3, "train"), (2, 2, "train"), (1, 9, "train"), (2, 2, "evaluate"), (1, 9, "evaluate")],
)
def test_a_round_that_is_not_after_the_last_one_is_a_replay(
    desk: Any, number: int, attempt: int, kind: str
) -> None:
    ledger = desk.open()
    desk.reserve(ledger, 2, attempt=3)
    for handle in (ledger, desk.open()):
        again = desk.reservation(number, attempt=attempt, kind=kind, manifest_sha256="7" * 64)
        assert desk.refused(lambda h=handle, a=again: h.reserve(a, allow=lambda _: None)) == (
            "FH-LEDGER-006"
        )


@pytest.mark.parametrize(
    ("number", "attempt", "kind"), [(2, 3, "evaluate"), (2, 4, "train"), (3, 1, "train")]
)
def test_a_later_attempt_round_or_evaluation_is_new(
    desk: Any, number: int, attempt: int, kind: str
) -> None:
    ledger = desk.open()
    desk.reserve(ledger, 2, attempt=3)
    desk.reserve(ledger, number, attempt=attempt, kind=kind)
    assert len(ledger.view().events()) == 2


def test_training_does_not_come_after_the_evaluation_of_its_round(desk: Any) -> None:
    ledger = desk.open()
    desk.reserve(ledger, 1, kind="evaluate")
    assert desk.refused(lambda: desk.reserve(ledger, 1)) == "FH-LEDGER-006"


def test_runs_and_studies_have_rounds_of_their_own(desk: Any) -> None:
    ledger = desk.open()
    desk.reserve(ledger, 5)
    desk.reserve(ledger, 1, run_name="other")
    desk.reserve(ledger, 1, study_id="study-b")
    desk.reserve(ledger, 1, study_sha256="1" * 64)
    assert desk.refused(lambda: desk.reserve(ledger, 1, study_sha256="1" * 64)) == "FH-LEDGER-006"
    assert len(ledger.view().events("study-a")) == 3, (
        "a changed study file pays into the same account"
    )


def test_the_same_manifest_is_a_replay_also_under_a_later_round(desk: Any) -> None:
    ledger = desk.open()
    manifest = desk.reserve(ledger, 1)
    for study in ("study-a", "study-b"):
        assert (
            desk.refused(
                lambda s=study: desk.reserve(ledger, 2, manifest_sha256=manifest, study_id=s)
            )
            == "FH-LEDGER-006"
        )


def test_a_sealed_answer_comes_back_byte_for_byte_also_in_a_new_process(desk: Any) -> None:
    ledger = desk.open()
    manifest = desk.reserve(ledger)
    assert ledger.sealed(manifest) is None
    ledger.seal(manifest, desk.answer())
    for handle in (ledger, desk.open()):
        assert handle.sealed(manifest) == desk.answer()
    ledger.commit(manifest)
    assert desk.open().sealed(manifest) == desk.answer()
    assert ledger.sealed("f" * 64) is None


def test_an_empty_payload_can_be_sealed(desk: Any) -> None:
    ledger = desk.open()
    manifest = desk.reserve(ledger)
    ledger.seal(manifest, replace(desk.answer(), payload=b""))
    assert desk.open().sealed(manifest) == replace(desk.answer(), payload=b"")


def test_sealing_and_committing_out_of_order_is_refused(desk: Any) -> None:
    ledger = desk.open()
    assert desk.refused(lambda: ledger.seal("f" * 64, desk.answer())) == "FH-LEDGER-010"
    assert desk.refused(lambda: ledger.commit("f" * 64)) == "FH-LEDGER-010"
    manifest = desk.reserve(ledger)
    assert desk.refused(lambda: ledger.commit(manifest)) == "FH-LEDGER-010"
    ledger.seal(manifest, desk.answer())
    assert desk.refused(lambda: ledger.seal(manifest, desk.answer(2))) == "FH-LEDGER-010"
    assert ledger.sealed(manifest) == desk.answer()


def test_committing_twice_writes_one_line(desk: Any) -> None:
    ledger = desk.open()
    manifest = desk.answered(ledger)
    before = desk.file.read_bytes()
    ledger.commit(manifest)
    desk.open().commit(manifest)
    assert desk.file.read_bytes() == before


def test_old_answers_are_pruned_and_stay_spent(desk: Any) -> None:
    ledger = desk.open()
    other = desk.answered(ledger, 1, run_name="other")
    manifests = [desk.answered(ledger, number) for number in range(1, 6)]
    kept = [m for m in manifests if ledger.sealed(m)]
    assert kept == manifests[-KEPT_ANSWERS:]
    assert ledger.sealed(other), "each run keeps its own"
    assert {path.stem for path in (desk.folder / "sealed").iterdir()} == {*kept, other}
    assert desk.refused(lambda: desk.reserve(ledger, 1)) == "FH-LEDGER-006"
    assert len(ledger.view().events()) == 6


def test_what_lies_on_the_disk_is_encrypted_and_private(desk: Any) -> None:
    ledger = desk.open()
    manifest = desk.answered(ledger)
    sealed = desk.folder / "sealed" / f"{manifest}.sealed"
    everything = b"".join(p.read_bytes() for p in desk.folder.rglob("*") if p.is_file())
    assert desk.answer().payload[:16] not in everything
    assert desk.answer().header not in everything
    for path in (sealed, desk.file):
        assert path.stat().st_mode & 0o777 == 0o600
    for path in (desk.folder, sealed.parent, desk.folder.parent):
        assert path.stat().st_mode & 0o777 == 0o700


def test_two_answers_never_share_a_nonce(desk: Any) -> None:
    ledger = desk.open()
    files = []
    for number in (1, 2):
        manifest = desk.reserve(ledger, number)
        ledger.seal(manifest, desk.answer())
        files.append((desk.folder / "sealed" / f"{manifest}.sealed").read_bytes())
    assert files[0][:12] != files[1][:12]


def test_a_mark_is_the_number_and_hash_of_the_last_line(desk: Any) -> None:
    ledger = desk.open()
    assert ledger.mark.sequence == 1
    mark = ledger.reserve(desk.reservation(), allow=lambda _: None)
    assert mark == ledger.mark == desk.open().mark == read_ledger(desk.folder).mark
    assert mark.sequence == 2
    assert mark.head in desk.file.read_text().splitlines()[-1]


def test_a_ledger_contains_its_own_lines_and_no_others(desk: Any, tmp_path: Path) -> None:
    ledger = desk.open()
    marks = [ledger.mark, ledger.reserve(desk.reservation(), allow=lambda _: None)]
    assert all(desk.open().contains(mark) for mark in marks)
    assert all(read_ledger(desk.folder).contains(mark) for mark in marks)
    for mark in (
        LedgerMark(sequence=0, head=GENESIS),
        LedgerMark(sequence=2, head=marks[0].head),
        LedgerMark(sequence=3, head="ab" * 32),
        replace(marks[1], head="00" * 32),
    ):
        assert not ledger.contains(mark)
        assert not ledger.view().contains(mark)
    another = type(desk)(folder=tmp_path / "another").open()
    assert not any(another.contains(mark) for mark in marks)


def test_another_process_s_lines_are_seen_without_opening_anew(desk: Any) -> None:
    first, second = desk.open(), desk.open()
    manifest = desk.answered(first, 1)
    assert second.contains(first.mark)
    assert second.sealed(manifest) == desk.answer(1)
    assert second.view() == first.view()
    desk.reserve(second, 2)
    assert first.view().events() == (desk.event(1), desk.event(2))


def test_a_ledger_of_another_dataset_is_refused(desk: Any) -> None:
    desk.open()
    assert desk.refused(lambda: desk.open(dataset="other")) == "FH-LEDGER-003"


@pytest.mark.parametrize(
    "changes", [{"key": b"short"}, {"key": b""}, {"dataset": "Not a slug"}, {"dataset": ""}]
)
def test_a_bad_key_or_name_is_refused_before_anything_is_made(
    desk: Any, changes: dict[str, Any]
) -> None:
    assert desk.refused(lambda: desk.open(**changes)) == "FH-LEDGER-015"
    assert not desk.folder.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"study_id": "../a"},
        {"run_name": ""},
        {"manifest_sha256": "xyz"},
        {"round_number": 0},
        {"attempt": 0},
        {"attempt": 2**53},
        {"kind": "other"},
        {"events": ({"kind": "unheard_of"},)},
    ],
)
def test_a_reservation_that_could_not_be_read_again_is_not_written(
    desk: Any, changes: dict[str, Any]
) -> None:
    ledger = desk.open()
    before = desk.file.read_bytes()
    asked = desk.reservation(**changes)
    assert desk.refused(lambda: ledger.reserve(asked, allow=lambda _: None)) == "FH-LEDGER-015"
    assert desk.file.read_bytes() == before


def test_a_reader_needs_a_ledger_and_makes_none(tmp_path: Path, desk: Any) -> None:
    assert desk.refused(lambda: read_ledger(tmp_path / "nothing")) == "FH-LEDGER-013"
    assert not (tmp_path / "nothing").exists()


def test_a_lock_that_is_never_given_back_is_an_error(desk: Any) -> None:
    holder, waiting = desk.open(), desk.open(lock_timeout_s=0.05)

    def ask_meanwhile(_: LedgerView) -> None:
        assert desk.refused(waiting.view) == "FH-LEDGER-005"

    holder.reserve(desk.reservation(), allow=ask_meanwhile)
    assert len(waiting.view().events()) == 1


def test_threads_of_one_process_take_turns(desk: Any) -> None:
    ledger = desk.open()

    def work(study: str) -> None:
        for number in range(1, 6):
            desk.answered(ledger, number, study_id=study)

    threads = [threading.Thread(target=work, args=(f"study-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(desk.open().view().events()) == 20


def test_a_forked_process_may_not_use_its_parents_handle(desk: Any) -> None:
    ledger = desk.open()
    child = os.fork()
    if child == 0:
        try:
            ledger.view()
        except PrivacyError as error:
            os._exit(0 if error.code == "FH-LEDGER-014" else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    desk.reserve(ledger)


def test_a_closed_ledger_is_of_no_use(desk: Any) -> None:
    with desk.open() as ledger:
        pass
    ledger.close()
    assert desk.refused(ledger.view) == "FH-LEDGER-014"
    assert desk.refused(lambda: desk.reserve(ledger)) == "FH-LEDGER-014"
