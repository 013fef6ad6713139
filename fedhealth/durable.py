"""Small durable files: atomic replacement, JSON, exclusive locks. Any room may use it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from fedhealth.errors import EvidenceError, TransportError

_SKIPS_SYNC: Final = ContextVar("fedhealth_skips_sync", default=False)


def sync(descriptor: int) -> None:
    """`os.fsync`, which every durable write of fedhealth goes through."""
    if not _SKIPS_SYNC.get():
        os.fsync(descriptor)


@contextmanager
def without_sync() -> Iterator[None]:
    """Let writes of the block survive the end of this process, and not the end of power. For simulations only.

    A simulation of twenty sites and fifty rounds waits 15 000 times for a disk otherwise, to protect keys and
    budgets that are made up.
    """
    token = _SKIPS_SYNC.set(True)
    try:
        yield
    finally:
        _SKIPS_SYNC.reset(token)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step: a reader sees the old content or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        sync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: object) -> None:
    """`write_atomically` for JSON."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read one of our own JSON files; an absent file is an empty object.

    Raises:
        EvidenceError: FH-EVIDENCE-031 the file holds no JSON object: a disk or a person damaged it.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise EvidenceError(
            "FH-EVIDENCE-031",
            f"{path.name} is damaged.",
            why="What was done before is not known without it, and nothing may be assumed of it.",
            fix="Restore it from the newest backup of this home.",
        )
    return value


@contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file for as long as the block runs.

    Raises:
        TransportError: FH-LOCK-001 another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransportError(
                "FH-LOCK-001",
                f"{what} is already running from this folder.",
                why="Two at once would overwrite each other's state.",
                fix="Stop the other one first, or name another folder (--home, or --out of a simulation).",
            ) from None
        yield
    finally:
        os.close(descriptor)
