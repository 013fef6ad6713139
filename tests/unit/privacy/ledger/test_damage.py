"""Files that somebody or something changed: refused, kept as they are, and never counted too low."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedhealth.privacy.ledger.entries import GENESIS, OpenBody, encode_line
from fedhealth.privacy.ledger.ledger import LedgerMark, read_ledger
from fedhealth.privacy.ledger.storage import OsStorage

BROKEN, UNKNOWN = "FH-LEDGER-001", "FH-LEDGER-002"


def filled(desk: Any) -> Any:
    ledger = desk.open()
    desk.answered(ledger, 1)
    desk.reserve(ledger, 2)
    return ledger


def refuse(desk: Any, code: str = BROKEN) -> None:
    before = desk.file.read_bytes()
    assert desk.refused(desk.open) == code
    assert desk.refused(lambda: read_ledger(desk.folder)) == code
    assert desk.file.read_bytes() == before, "the evidence stays as it was found"


def test_a_flipped_bit_is_found_at_every_byte_the_last_lines_too(desk: Any) -> None:
    filled(desk)
    whole = desk.file.read_bytes()
    for position in range(len(whole) - 1):
        changed = bytes([whole[position] ^ 1])
        desk.file.write_bytes(whole[:position] + changed + whole[position + 1 :])
        assert desk.refused(lambda: read_ledger(desk.folder)) in {BROKEN, UNKNOWN}
    desk.file.write_bytes(whole)
    assert len(read_ledger(desk.folder).lines) == 2


def test_lines_that_are_missing_swapped_or_repeated_are_found(desk: Any) -> None:
    filled(desk)
    lines = desk.file.read_bytes().splitlines(keepends=True)
    first, second, third, *rest = lines
    for changed in (
        lines[1:],
        [first, third, *rest],
        [first, third, second, *rest],
        [first, second, second, third, *rest],
        [*lines, lines[-1]],
        [b"", b"\n", *lines],
        [*lines, b"\n"],
        [*lines, b"{}\n"],
        [*lines, b"\xff\n"],
    ):
        desk.file.write_bytes(b"".join(changed))
        refuse(desk)


def test_bytes_that_are_missing_in_the_middle_are_found(desk: Any) -> None:
    filled(desk)
    whole = desk.file.read_bytes()
    for start in range(0, len(whole) - 200, 97):
        desk.file.write_bytes(whole[:start] + whole[start + 100 :])
        refuse(desk)


def written(desk: Any, kind: str, body: dict[str, Any]) -> bytes:
    """A whole line with a right hash, as a later version might write it."""
    import hashlib

    mark = read_ledger(desk.folder).mark
    content = json.dumps(
        {
            "at": "2026-01-01T00:00:00.000Z",
            "body": body,
            "kind": kind,
            "previous": mark.head,
            "seq": mark.sequence + 1,
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    return content[:-1] + b',"sha256":"%s"}\n' % hashlib.sha256(content).hexdigest().encode()


RESERVE: dict[str, Any] = {
    "study_id": "study-a",
    "study_sha256": "0" * 64,
    "run_name": "main",
    "round_number": 9,
    "attempt": 1,
    "kind": "train",
    "manifest_sha256": "1" * 64,
    "events": [{"kind": "unbounded", "unit": "patient", "steps": 1}],
}


def test_a_line_of_the_right_shape_is_read(desk: Any) -> None:
    """Positive control of the two tests below."""
    filled(desk)
    with desk.file.open("ab") as file:
        file.write(written(desk, "reserve", RESERVE))
    assert len(desk.open().view().lines) == 3


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("refund", RESERVE),
        ("reserve", RESERVE | {"discount": 1}),
        ("reserve", RESERVE | {"events": [{"kind": "laplace", "steps": 1}]}),
        ("reserve", RESERVE | {"events": [{"kind": "unbounded", "unit": "patient", "steps": 0}]}),
        ("reserve", {name: RESERVE[name] for name in RESERVE if name != "events"}),
        ("commit", RESERVE),
    ],
)
def test_a_whole_line_that_this_version_does_not_know_is_refused(
    desk: Any, kind: str, body: dict[str, Any]
) -> None:
    filled(desk)
    with desk.file.open("ab") as file:
        file.write(written(desk, kind, body))
    refuse(desk, UNKNOWN)


SEAL = {"header_sha256": "0" * 64, "payload_sha256": "0" * 64, "file_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("open", {"version": 1, "dataset": "cohort", "ledger": "0" * 32}),
        ("reserve", RESERVE | {"round_number": 1}),
        ("seal", SEAL | {"manifest_sha256": "7" * 64}),
        ("commit", {"manifest_sha256": "7" * 64}),
    ],
)
def test_a_whole_line_out_of_order_is_refused(desk: Any, kind: str, body: dict[str, Any]) -> None:
    filled(desk)
    with desk.file.open("ab") as file:
        file.write(written(desk, kind, body))
    refuse(desk)


def test_a_file_that_begins_with_another_line_is_refused(desk: Any) -> None:
    filled(desk)
    origin = LedgerMark(sequence=0, head=GENESIS)
    line = encode_line(
        OpenBody(dataset="cohort", ledger="0" * 32), last=origin, at="2026-01-01T00:00:00.000Z"
    )
    desk.file.write_bytes(line.replace(b'"kind":"open"', b'"kind":"seal"'))
    refuse(desk)
    desk.file.write_bytes(line)
    shutil.rmtree(desk.folder / "sealed")
    assert desk.open().view().ledger_id == "0" * 32


def test_a_last_line_torn_at_any_byte_is_set_aside_by_the_writer_alone(desk: Any) -> None:
    """Torn lines were never acknowledged: what came before them stays, and the next line follows it."""
    ledger = filled(desk)
    whole = desk.file.read_bytes()
    mark = ledger.mark
    manifest = desk.reserve(ledger, 3)
    last = desk.file.read_bytes()[len(whole) :]
    ledger.close()
    aside = desk.folder / "ledger.broken"
    for size in range(1, len(last)):
        desk.file.write_bytes(whole + last[:size])
        assert read_ledger(desk.folder).mark == mark
        assert desk.file.read_bytes() == whole + last[:size], "a reader changes nothing"
        assert not aside.exists()
        with desk.open(storage=Unsynced()) as again:
            assert again.mark == mark
            assert desk.file.read_bytes() == whole
            assert aside.read_bytes() == last[:size] + b"\n"
            assert not any(line.manifest_sha256 == manifest for line in again.view().lines)
        aside.unlink()
    with desk.open() as again:
        desk.reserve(again, 3)
        assert len(again.view().events()) == 3


class Unsynced(OsStorage):
    """Quick: no power is cut in this test."""

    def fsync(self, descriptor: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


def test_a_torn_line_of_a_killed_process_is_set_aside_by_a_running_one(desk: Any) -> None:
    ledger = filled(desk)
    for torn in (b'{"at":"2026', b"second"):
        with desk.file.open("ab") as file:
            file.write(torn)
        assert len(ledger.view().events()) == 2
    assert (desk.folder / "ledger.broken").read_bytes() == b'{"at":"2026\nsecond\n'
    desk.reserve(ledger, 3)
    assert len(read_ledger(desk.folder).events()) == 3


def test_a_broken_ledger_is_not_even_freed_of_its_torn_line(desk: Any) -> None:
    filled(desk)
    whole = desk.file.read_bytes()
    desk.file.write_bytes(whole.replace(b'"attempt":1', b'"attempt":2', 1) + b'{"at"')
    refuse(desk)
    assert not (desk.folder / "ledger.broken").exists()


def remove(file: Path, backup: Path) -> None:
    file.unlink()


def move_a_copy_in(file: Path, backup: Path) -> None:
    shutil.copy(file, backup.with_suffix(".same"))
    backup.with_suffix(".same").replace(file)


def move_the_backup_in(file: Path, backup: Path) -> None:
    shutil.copy(backup, backup.with_suffix(".moved"))
    backup.with_suffix(".moved").replace(file)


def copy_the_backup_over(file: Path, backup: Path) -> None:
    file.write_bytes(backup.read_bytes())


def grow_past_the_end(file: Path, backup: Path) -> None:
    file.write_bytes(backup.read_bytes() + b" " * 10_000 + b"\n")


@pytest.mark.parametrize(
    "change",
    [remove, move_a_copy_in, move_the_backup_in, copy_the_backup_over, grow_past_the_end],
)
def test_a_file_that_changes_under_a_running_process_is_refused(
    desk: Any, tmp_path: Path, change: Any
) -> None:
    ledger = desk.open()
    desk.reserve(ledger, 1)
    backup = tmp_path / "backup"
    shutil.copy(desk.file, backup)
    desk.reserve(ledger, 2)
    change(desk.file, backup)
    for _ in range(2):
        assert desk.refused(lambda: desk.reserve(ledger, 3)) == "FH-LEDGER-004"
    assert not (desk.folder / "ledger.broken").exists()


def test_an_emptied_ledger_beside_sealed_answers_does_not_begin_again_at_zero(desk: Any) -> None:
    filled(desk).close()
    for empty in (lambda: desk.file.write_bytes(b""), desk.file.unlink):
        empty()
        assert desk.refused(desk.open) == "FH-LEDGER-016"


def test_an_older_copy_lacks_the_witnessed_line_and_says_so(desk: Any, tmp_path: Path) -> None:
    with desk.open() as ledger:
        desk.answered(ledger, 1)
        shutil.copytree(desk.folder, tmp_path / "backup")
        desk.answered(ledger, 2)
        witness = ledger.mark
    shutil.rmtree(desk.folder)
    shutil.copytree(tmp_path / "backup", desk.folder)
    with desk.open() as older:
        assert not older.contains(witness)
        mark = older.recover([desk.event(2)], study_id="study-a", witness=witness)
        assert mark.sequence == witness.sequence + 1, "sequence numbers never fall"
        assert older.recover([desk.event(2)], study_id="study-a", witness=witness) == mark
    with desk.open() as again:
        assert again.contains(witness)
        assert again.contains(mark)
        assert again.view().events() == (desk.event(1), desk.event(2))
        (facts,) = again.view().recoveries
        assert (facts.study_id, facts.events, facts.witness) == (
            "study-a",
            (desk.event(2),),
            witness,
        )
        desk.answered(again, 3)
        assert again.mark.sequence == mark.sequence + 3
    assert len(read_ledger(desk.folder).events("study-a")) == 3


def test_a_recovery_can_only_add(desk: Any) -> None:
    ledger = filled(desk)
    before = ledger.view().events()
    for sequence in (1, 3, 1000):
        for lost in ([], [desk.event(7)]):
            witness = LedgerMark(sequence=sequence, head="ab" * 32)
            ledger.recover(lost, study_id="study-b", witness=witness)
            assert ledger.contains(witness)
    assert desk.open().view().events() == (*before, *[desk.event(7)] * 3)


@pytest.mark.parametrize(
    "witness",
    [
        LedgerMark(sequence=0, head="ab" * 32),
        LedgerMark(sequence=2**40, head="ab" * 32),
        LedgerMark(sequence=1, head="no"),
    ],
)
def test_a_witness_outside_of_its_range_is_refused(desk: Any, witness: LedgerMark) -> None:
    ledger = desk.open()
    call = lambda: ledger.recover([], study_id="study-a", witness=witness)  # noqa: E731  one line
    assert desk.refused(call) == "FH-LEDGER-015"


def test_a_sealed_answer_with_a_flipped_bit_is_never_sent(desk: Any) -> None:
    ledger = desk.open()
    manifest = desk.answered(ledger)
    path = desk.folder / "sealed" / f"{manifest}.sealed"
    whole = path.read_bytes()
    for position in (0, 11, 12, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert desk.refused(lambda: ledger.sealed(manifest)) == "FH-LEDGER-011"
    for wrong in (b"", whole[:-1], whole + b"x"):
        path.write_bytes(wrong)
        assert desk.refused(lambda: ledger.sealed(manifest)) == "FH-LEDGER-011"
    path.unlink()
    assert desk.refused(lambda: ledger.sealed(manifest)) == "FH-LEDGER-011"
    assert len(ledger.view().events()) == 1, "the spend stands"
    path.write_bytes(whole)
    assert ledger.sealed(manifest) == desk.answer()


def test_an_answer_sealed_with_another_key_is_told_from_a_damaged_one(desk: Any) -> None:
    manifest = desk.answered(desk.open())
    other = desk.open(key=b"o" * 32)
    assert desk.refused(lambda: other.sealed(manifest)) == "FH-LEDGER-012"
    desk.answered(other, 2)
    assert len(desk.open().view().events()) == 2


def test_what_a_crash_left_of_a_longer_answer_is_not_in_the_next_one(desk: Any) -> None:
    ledger = desk.open()
    manifest = desk.reserve(ledger)
    (desk.folder / "sealed" / f"{manifest}.tmp").write_bytes(b"x" * 100_000)
    (desk.folder / "sealed" / f"{'f' * 64}.sealed").write_bytes(b"no seal line names it")
    ledger.seal(manifest, desk.answer())
    assert ledger.sealed(manifest) == desk.answer()
    assert [path.name for path in (desk.folder / "sealed").iterdir()] == [f"{manifest}.sealed"]


def test_a_sealed_file_of_another_manifest_does_not_open(desk: Any) -> None:
    ledger = desk.open()
    one, two = desk.answered(ledger, 1), desk.answered(ledger, 2)
    folder = desk.folder / "sealed"
    shutil.copy(folder / f"{one}.sealed", folder / f"{two}.sealed")
    assert desk.refused(lambda: ledger.sealed(two)) == "FH-LEDGER-011"


class FailingOnce(OsStorage):
    """A disk that fails at one call, once."""

    def __init__(self, call: str, code: int) -> None:
        self.call, self.code = call, code
        self.is_armed = False

    def _fail(self, call: str) -> None:
        if self.is_armed and call == self.call:
            self.is_armed = False
            raise OSError(self.code, os.strerror(self.code))

    def fsync(self, descriptor: int) -> None:
        self._fail("fsync")
        super().fsync(descriptor)

    def write_at(self, descriptor: int, data: bytes, offset: int) -> int:
        self._fail("write_at")
        return super().write_at(descriptor, data, offset)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_after_a_failed_fsync_the_handle_is_of_no_use_until_it_is_opened_anew(
    desk: Any, code: int
) -> None:
    disk = FailingOnce("fsync", code)
    ledger = desk.open(storage=disk)
    disk.is_armed = True
    expected = "FH-LEDGER-008" if code == errno.EIO else "FH-LEDGER-007"
    assert desk.refused(lambda: desk.reserve(ledger, 1)) == expected
    for call in (ledger.view, lambda: desk.reserve(ledger, 2), lambda: ledger.mark):
        assert desk.refused(call) == "FH-LEDGER-009"
    again = desk.open()
    assert again.view().events() == (desk.event(1),), "it may be on the disk: it counts"
    desk.reserve(again, 2)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_after_a_full_disk_the_same_handle_goes_on_when_there_is_space(
    desk: Any, code: int
) -> None:
    disk = FailingOnce("write_at", code)
    ledger = desk.open(storage=disk)
    before = desk.file.read_bytes()
    disk.is_armed = True
    assert desk.refused(lambda: desk.reserve(ledger, 1)) == "FH-LEDGER-007"
    assert desk.file.read_bytes() == before
    manifest = desk.reserve(ledger, 1)
    disk.is_armed = True
    assert desk.refused(lambda: ledger.seal(manifest, desk.answer())) == "FH-LEDGER-007"
    assert ledger.sealed(manifest) is None
    ledger.seal(manifest, desk.answer())
    assert ledger.sealed(manifest) == desk.answer()


def test_a_ledger_is_never_opened_through_a_symbolic_link(desk: Any, tmp_path: Path) -> None:
    desk.open().close()
    desk.file.rename(tmp_path / "elsewhere")
    desk.file.symlink_to(tmp_path / "elsewhere")
    assert desk.refused(desk.open) == "FH-LEDGER-008"


def test_a_folder_that_cannot_be_made_is_an_error_with_a_code(desk: Any, tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    assert desk.refused(desk.open) == "FH-LEDGER-008"


def test_no_message_names_a_path_or_what_lies_in_the_ledger(desk: Any) -> None:
    filled(desk)
    whole = desk.file.read_text()
    desk.file.write_text(whole.replace('"attempt":1', '"attempt":2', 1))
    with pytest.raises(Exception, match="FH-LEDGER-001") as error:
        desk.open()
    text = str(error.value)
    assert str(desk.folder) not in text
    assert "study-a" not in text
