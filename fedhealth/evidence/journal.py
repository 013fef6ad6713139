"""The site's journal: one line for every message that left, written before it leaves.

Each line holds the SHA-256 of the line before, so that a removed or altered line is found. It stays at the
site; the lines hold digests, sizes and codes, never content.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedhealth.errors import EvidenceError
from fedhealth.evidence.signing import canonical_json

GENESIS: Final = "0" * 64


class Journal:
    """Append-only JSON lines with a hash chain and fsync. One writer: the worker."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._head, self._length = verify_journal(path) if path.exists() else (GENESIS, 0)

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._head

    def append(self, kind: str, body: dict[str, str | int]) -> str:
        """Write one line durably and return its hash."""
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
            os.write(descriptor, line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._head = hashlib.sha256(line).hexdigest()
        self._length += 1
        return self._head


def verify_journal(path: Path) -> tuple[str, int]:
    """Walk the chain; returns the head and the number of lines.

    A torn last line (a crash in the middle of a write) is cut off and set aside as `<name>.broken`, since the
    message that it announced did not leave. Anything else that does not fit is refused.

    Raises:
        EvidenceError: FH-EVIDENCE-010 a line was removed, altered or reordered.
    """
    data = path.read_bytes()
    complete, _, tail = data.rpartition(b"\n")
    if tail:
        path.with_suffix(".broken").write_bytes(tail)
        with path.open("rb+") as file:
            file.truncate(len(data) - len(tail))
            file.flush()
            os.fsync(file.fileno())
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
