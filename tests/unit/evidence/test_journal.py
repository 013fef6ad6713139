"""The site's journal: one line for every message that left, and no way to change one unseen."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedhealth.errors import EvidenceError
from fedhealth.evidence.journal import GENESIS, Journal, verify_journal


def filled(path: Path, lines: int = 4) -> Journal:
    journal = Journal(path)
    for number in range(lines):
        journal.append("update", {"payload_sha256": f"{number:064x}", "num_bytes": number})
    return journal


def test_an_empty_journal_begins_at_the_genesis(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal.jsonl").head == GENESIS


def test_each_line_holds_the_digest_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    head = filled(path).head
    assert verify_journal(path) == (head, 4)
    again = Journal(path)
    assert again.head == head
    again.append("code", {"payload_sha256": "0" * 64, "num_bytes": 0})
    assert verify_journal(path) == (again.head, 5)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", range(3))
def test_a_removed_line_is_found(tmp_path: Path, number: int) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
    refuse(path)


def test_reordered_and_repeated_lines_are_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    for changed in ([second, first, *rest], [first, first, second, *rest]):
        path.write_bytes(b"".join(changed))
        refuse(path)


def test_an_altered_line_is_found_at_every_byte_but_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path, 3)
    whole = path.read_bytes()
    covered = whole.rstrip(b"\n").rfind(b"\n")
    for position in range(covered):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(EvidenceError, match="FH-EVIDENCE-010"):
            verify_journal(path)


@pytest.mark.parametrize("line", [b"", b"null", b"[]", b"{}", b"\xff", b'{"previous": 1}'])
def test_a_line_that_is_no_entry_is_found(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    refuse(path)


def refuse(path: Path) -> None:
    before = path.read_bytes()
    for check in (verify_journal, Journal):
        with pytest.raises(EvidenceError, match="FH-EVIDENCE-010"):
            check(path)
    assert path.read_bytes() == before, "the evidence stays as it was found"


def test_a_torn_last_line_is_set_aside_by_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    head = filled(path).head
    for torn in (b'{"seq": 5, "prev', b"second"):
        with path.open("ab") as file:
            file.write(torn)
        assert Journal(path).head == head
    assert path.with_suffix(".broken").read_bytes() == b'{"seq": 5, "prev\nsecond\n'
    Journal(path).append("code", {"num_bytes": 0})
    assert verify_journal(path)[1] == 5


def test_a_reader_changes_nothing_even_when_a_line_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    head = filled(path).head
    with path.open("ab") as file:
        file.write(b'{"seq": 5, "prev')
    before = path.read_bytes()
    assert verify_journal(path) == (head, 4)
    assert path.read_bytes() == before
    assert not path.with_suffix(".broken").exists()


def test_a_second_writer_is_refused_before_it_breaks_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first, second = filled(path), Journal(path)
    first.append("code", {"num_bytes": 0})
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-011"):
        second.append("code", {"num_bytes": 0})
    assert verify_journal(path) == (first.head, 5)


def test_a_line_that_the_disk_does_not_take_whole_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own with a limit on file sizes: the kernel then writes a part of the line."""
    path = tmp_path / "journal.jsonl"
    head = filled(path).head
    script = f"""
import resource, signal, sys
from pathlib import Path
from fedhealth.evidence.journal import Journal
journal = Journal(Path({str(path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = {path.stat().st_size} + 40
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    journal.append("code", {{"num_bytes": 0}})
except OSError as error:
    sys.exit(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode in {errno.ENOSPC, errno.EFBIG}
    assert verify_journal(path) == (head, 4)
    assert not path.read_bytes().rpartition(b"\n")[2]


def test_lines_hold_digests_sizes_and_codes_only(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    filled(path, 1)
    entry = json.loads(path.read_text())
    assert set(entry) == {"seq", "previous", "at", "kind", "body"}
