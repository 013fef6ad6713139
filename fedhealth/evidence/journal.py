"""The site's journal: one line for every message that left, written before it leaves.

Each line holds the SHA-256 of the line before, so that a removed or altered line is found. It stays at the
site; the lines hold digests, sizes and codes, never content.
"""

import errno
import fcntl
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedhealth.durable import sync
from fedhealth.errors import EvidenceError
from fedhealth.evidence.signing import canonical_json

GENESIS: Final = "0" * 64


class Journal:
    """Append-only JSON lines with a hash chain and fsync. One writer: a second one is refused."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        _set_torn_tail_aside(path)
        self._head, self._length = verify_journal(path) if path.exists() else (GENESIS, 0)
        self._size = path.stat().st_size if path.exists() else 0

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._head

    def append(self, kind: str, body: dict[str, str | int]) -> str:
        """Write one line durably and return its hash.

        Raises:
            EvidenceError: FH-EVIDENCE-011 somebody else wrote into the file.
            OSError: the line could not be written; nothing of it stays.
        """
        entry = {
            "seq": self._length + 1,
            "previous": self._head,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "kind": kind,
            "body": body,
        }
        line = canonical_json(entry)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_size != self._size:
                raise _second_writer()
            self._write_whole(descriptor, line + b"\n")
        finally:
            os.close(descriptor)
        self._head = hashlib.sha256(line).hexdigest()
        self._length += 1
        return self._head

    def _write_whole(self, descriptor: int, line: bytes) -> None:
        written = os.write(descriptor, line)
        if written != len(line):  # a full disk takes a part
            os.ftruncate(descriptor, self._size)
            raise OSError(errno.ENOSPC, "the journal line was not written whole")
        sync(descriptor)
        self._size += written


def verify_journal(path: Path) -> tuple[str, int]:
    """Walk the chain, changing nothing; returns the head and the number of lines.

    A last line without its end is one that is being written now, or that a crash tore: the message that it
    announces did not leave, so it does not count. Anything else that does not fit is refused.

    Raises:
        EvidenceError: FH-EVIDENCE-010 a line was removed, altered or reordered.
    """
    complete, _, _ = path.read_bytes().rpartition(b"\n")
    head, lines = GENESIS, complete.split(b"\n") if complete else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            fits = entry["previous"] == head and entry["seq"] == number
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise EvidenceError(
                "FH-EVIDENCE-010",
                f"the site journal is broken at line {number}.",
                why="A line was removed, altered or reordered: it no longer shows all that left.",
                fix="Keep the file for your data protection officer and restore the last good copy.",
            )
        head = hashlib.sha256(line).hexdigest()
    return head, len(lines)


def _set_torn_tail_aside(path: Path) -> None:
    """Cut a torn last line off and keep it in `<name>.broken`: the writer does this, and nobody who only reads."""
    if not path.exists():
        return
    data = path.read_bytes()
    tail = data.rpartition(b"\n")[2]
    if not tail:
        return
    with path.with_suffix(".broken").open("ab") as broken:
        broken.write(tail + b"\n")
    with path.open("rb+") as file:
        file.truncate(len(data) - len(tail))
        sync(file.fileno())


def _second_writer() -> EvidenceError:
    return EvidenceError(
        "FH-EVIDENCE-011",
        "somebody else wrote into the site journal.",
        why="Two writers break its chain: it would no longer show all that left.",
        fix="Stop every other process on this home, then start again.",
    )
