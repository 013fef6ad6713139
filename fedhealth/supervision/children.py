"""Start child processes, watch them, and end every one of them (docs/adr/0008).

Each child gets its own session (Ctrl-C reaches the supervisor only, which then ends children in order), its
output in a rotated file, and a death signal, so that it ends even when the supervisor is killed with -9.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedhealth.supervision.die_with_parent import die_with_parent

GRACE_S: Final = 8.0  # a SuperNode needs some seconds to deactivate itself at the SuperLink
MAX_LOG_BYTES: Final = 5_000_000
KEPT_LOGS: Final = 3


@dataclass(slots=True, kw_only=True)
class Child:
    """One running child."""

    name: str
    process: subprocess.Popen[bytes] = field(repr=False)
    log_path: Path

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def log_tail(self, num_bytes: int = 8192) -> str:
        """The end of its output."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - num_bytes))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


class Children:
    """The children of one supervisor, ended in reverse order of their start."""

    def __init__(self, log_dir: Path) -> None:
        log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log_dir = log_dir
        self._running: list[Child] = []

    def start(
        self, name: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
    ) -> Child:
        """Start one child. Call it from the main thread: the death signal follows the calling thread."""
        log_path = self._log_dir / f"{name}.log"
        rotate(log_path)
        supervisor = os.getpid()
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=None if env is None else dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(supervisor),  # noqa: PLW1509 - one-threaded here
            )
        child = Child(name=name, process=process, log_path=log_path)
        self._running.append(child)
        return child

    def rotate_logs(self) -> None:
        """Move large logs aside while their writers go on: they append, so the file can be emptied."""
        for child in self._running:
            rotate(child.log_path, is_open=True)

    def running(self) -> list[Child]:
        """Children that were started and not ended by this supervisor."""
        return list(self._running)

    def end(self, child: Child, *, grace_s: float = GRACE_S) -> None:
        """End one child: SIGTERM, then SIGKILL to its whole session after `grace_s`."""
        self._end_all([child], grace_s)

    def end_all(self, *, grace_s: float = GRACE_S) -> None:
        """End every child, last started first; never raises because one is already gone."""
        self._end_all(list(reversed(self._running)), grace_s)

    def _end_all(self, children: Sequence[Child], grace_s: float) -> None:
        for child in children:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for child in children:
            try:
                child.process.wait(timeout=max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(child, signal.SIGKILL)
                child.process.wait()
            _kill_session(child.pid)  # what the child itself started
            if child in self._running:
                self._running.remove(child)


def _signal(child: Child, number: int) -> None:
    if child.process.poll() is None:
        child.process.send_signal(number)


def _kill_session(leader: int) -> None:
    """Kill what is left of a child's session; its id cannot be reused while a member lives."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _session_of(entry) == leader:
            try:
                os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:
                continue


def _session_of(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text()
    except OSError:
        return None
    # Fields after the command name, which is in parentheses and may hold anything: state ppid pgrp session.
    return int(stat.rpartition(")")[2].split()[3])


def rotate(
    path: Path, *, max_bytes: int = MAX_LOG_BYTES, kept: int = KEPT_LOGS, is_open: bool = False
) -> None:
    """Move a large log aside: `x.log` to `x.log.1`, and so on; the oldest is dropped.

    Args:
        path: the log.
        max_bytes: size from which it is moved.
        kept: how many old ones stay.
        is_open: a process still appends to it: it is copied and emptied instead of renamed (a line written
            in between is lost, as with logrotate's copytruncate).
    """
    if not path.exists() or path.stat().st_size < max_bytes:
        return
    for number in range(kept - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    newest = path.with_name(f"{path.name}.1")
    if is_open:
        shutil.copyfile(path, newest)
        os.truncate(path, 0)
    else:
        path.replace(newest)
