"""The file `ledger.jsonl`: a lock for each transaction, and lines that are durable before anybody counts on them.

Called by `ledger.py`. Whatever is not understood is refused; the only thing that is cut off is a last line
without its end, which nobody was told about, and it is kept in `ledger.broken`.
"""

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedhealth.privacy.ledger import problems
from fedhealth.privacy.ledger.entries import Body, encode_line
from fedhealth.privacy.ledger.mark import LedgerMark
from fedhealth.privacy.ledger.state import LedgerState
from fedhealth.privacy.ledger.storage import Storage, write_whole

FILE_NAME: Final = "ledger.jsonl"
BROKEN_NAME: Final = "ledger.broken"
_LOCK_POLL_S: Final = 0.005  # flock has no timeout of its own


class LedgerFile:
    """An open ledger file. The descriptor stays open: a write error of another process is then seen here too.

    Args:
        folder: exists and is durable.
        storage: how the disk is changed.
        lock_timeout_s: longest wait for another process's transaction.

    Raises:
        PrivacyError: FH-LEDGER-007 or 008 the file cannot be opened.
    """

    def __init__(self, folder: Path, *, storage: Storage, lock_timeout_s: float) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        self._storage = storage
        self._timeout_s = lock_timeout_s
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._is_usable = True
        self._state = LedgerState()
        self._end = 0
        self._last_line = b""
        try:
            self._descriptor = storage.open_file(self._path)
        except OSError as error:
            raise problems.disk(error) from None
        self.close = weakref.finalize(self, storage.close, self._descriptor)

    @contextmanager
    def transaction(self) -> Iterator[LedgerState]:
        """Hold the lock, with everything read that others appended before.

        Raises:
            PrivacyError: FH-LEDGER-001, 002 a line does not fit; 004 another file lies there; 005 the lock is
                held; 008 the disk failed; 009 it failed before; 014 closed, or in a forked process.
        """
        self._check_usable()
        deadline = time.monotonic() + self._timeout_s
        if not self._mutex.acquire(timeout=self._timeout_s):
            raise problems.busy(self._timeout_s)
        try:
            self._lock(deadline)
            try:
                with self._poison_on_failure():
                    self._check_same_file()
                    self._catch_up()
                yield self._state
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def append(self, body: Body) -> LedgerMark:
        """Inside a transaction: write one line, durably, and return its place.

        Raises:
            PrivacyError: FH-LEDGER-007 the disk is full: nothing of the line stays; 008 it failed: the line may
                stay, and this object is of no more use.
        """
        self._check_usable()
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = encode_line(body, last=self._state.mark, at=at)
        try:
            write_whole(self._storage, self._descriptor, line, self._end)
        except OSError as error:
            self._cut_after(error)
            raise problems.disk(error) from None
        with self._poison_on_failure():
            self._storage.fsync(self._descriptor)
        self._take_in(line)
        return self._state.mark

    def make_durable_again(self) -> None:
        """Inside the first transaction: write what was read once more in its place, and sync it.

        After a failed fsync Linux takes the pages for clean: the next fsync succeeds and writes nothing (Rebello
        et al. 2020, "Can Applications Recover from fsync Failures?"). Written again, they must reach the disk.

        Raises:
            PrivacyError: FH-LEDGER-007 or 008.
        """
        with self._poison_on_failure():
            content = os.pread(self._descriptor, self._end, 0)
            write_whole(self._storage, self._descriptor, content, 0)
            self._storage.fsync(self._descriptor)
            self._storage.sync_folder(self._folder)

    def poison(self) -> None:
        """No further use of this object: nobody knows what is on the disk."""
        self._is_usable = False

    def _check_usable(self) -> None:
        if not self.close.alive:
            raise problems.unusable_here("after it was closed")
        if os.getpid() != self._pid:  # a fork shares the lock with its parent
            raise problems.unusable_here("in another process than the one that opened it")
        if not self._is_usable:
            raise problems.poisoned()

    @contextmanager
    def _poison_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.poison()
            raise problems.disk(error) from None

    def _lock(self, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise problems.busy(self._timeout_s) from None
                time.sleep(_LOCK_POLL_S)
            except OSError as error:
                raise problems.disk(error) from None
            else:
                return

    def _check_same_file(self) -> None:
        own = os.fstat(self._descriptor)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            raise problems.replaced() from None
        if (own.st_dev, own.st_ino) != (there.st_dev, there.st_ino) or own.st_size < self._end:
            raise problems.replaced()
        start = self._end - len(self._last_line)
        if os.pread(self._descriptor, len(self._last_line), start) != self._last_line:
            raise problems.replaced()

    def _catch_up(self) -> None:
        size = os.fstat(self._descriptor).st_size
        new = _read(self._descriptor, self._end, size)
        *lines, torn = new.split(b"\n")
        for line in lines:
            self._take_in(line + b"\n")
        if torn:
            self._set_aside(torn)
        elif lines:  # who wrote them may have been killed before it could sync them
            self._storage.fsync(self._descriptor)

    def _take_in(self, line: bytes) -> None:
        self._state.fold(line.removesuffix(b"\n"))
        self._end += len(line)
        self._last_line = line

    def _set_aside(self, torn: bytes) -> None:
        """Keep a torn last line in a file of its own, durably, before it is cut off."""
        path = self._folder / BROKEN_NAME
        descriptor = self._storage.open_file(path)
        try:
            write_whole(self._storage, descriptor, torn + b"\n", os.fstat(descriptor).st_size)
            self._storage.fsync(descriptor)
        finally:
            self._storage.close(descriptor)
        self._storage.sync_folder(self._folder)
        self._storage.truncate(self._descriptor, self._end)
        self._storage.fsync(self._descriptor)

    def _cut_after(self, error: OSError) -> None:
        """A line was written in part: cut it off. When that is in doubt, the object is of no more use."""
        if not problems.is_full_disk(error):
            self.poison()
        with suppress(OSError):
            self._storage.truncate(self._descriptor, self._end)
            self._storage.fsync(self._descriptor)
            return
        self.poison()


def read_lines(data: bytes) -> LedgerState:
    """The state after all complete lines of a file's content; a torn last line does not count.

    Raises:
        PrivacyError: FH-LEDGER-001 broken; FH-LEDGER-002 unknown.
    """
    state = LedgerState()
    for line in data.split(b"\n")[:-1]:
        state.fold(line)
    return state


def _read(descriptor: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(descriptor, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)
