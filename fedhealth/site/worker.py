"""The resident worker: the only process that reads patients. It has one unix socket and no network.

Started by `fedhealth site start` as `python -m fedhealth.site.worker`. The relay at the other end of the
socket runs whatever the server ships, so for the worker it is hostile: frames are capped, peers are checked,
every failure leaves as a code.
"""

import argparse
import logging
import os
import select
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Final

from fedhealth.contracts.codes import DropCode
from fedhealth.durable import write_json
from fedhealth.errors import (
    ExitCode,
    FedHealthError,
    TransportError,
)
from fedhealth.gate.gate import release_code, release_status
from fedhealth.models.weight_files import weights_in
from fedhealth.site.answering import SiteAnswers
from fedhealth.site.door import send_answer, send_unsigned
from fedhealth.site.frames import Frame, FrameKind, receive_frame
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.site.isolation import leave_the_network
from fedhealth.site.local_round import RoundRequest
from fedhealth.site.worker_log import configure_worker_log, log_frames
from fedhealth.supervision.die_with_parent import die_with_parent

log = logging.getLogger("fedhealth.site.worker")
_PEER_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: socket(7), SO_PEERCRED
RECEIVE_TIMEOUT_S: Final = (
    120.0  # for a frame that has begun; a silent relay cannot hold the worker
)


class Worker:
    """Accepts one connection at a time and answers one round on it."""

    def __init__(self, home: SiteHome, pinned: Pinned, isolation: str) -> None:
        self._pinned = pinned
        self._answers = SiteAnswers(home, pinned)
        self._isolation = isolation
        self._stopping = threading.Event()

    def prepare(self) -> None:
        """Load the cohort before anything connects, so that wrong data is found at the start.

        Raises:
            SiteDataError, ConfigError, PrivacyError, GateRefusedError: see `SiteAnswers`.
        """
        self._answers.check_rules()
        self._answers.load_cohort()

    def stop(self) -> None:
        """Cancel the round at work and leave the accept loop."""
        self._stopping.set()

    def serve(self, listener: socket.socket) -> None:
        """Answer rounds until `stop`."""
        listener.settimeout(0.2)
        self._write_status("ready")
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                self._answer(connection)
        self._write_status("stopped")

    def _answer(self, connection: socket.socket) -> None:
        try:
            _check_peer(connection)
            connection.settimeout(RECEIVE_TIMEOUT_S)
            frame = receive_frame(
                connection,
                max_payload=self._answers.largest_request_bytes,
                within_s=RECEIVE_TIMEOUT_S,
            )
            connection.settimeout(RECEIVE_TIMEOUT_S)
            if frame.kind is FrameKind.PING:
                send_unsigned(connection, release_status(), self._answers.journal)
            elif frame.kind is FrameKind.ROUND:
                self._answer_round(connection, frame)
        except (TransportError, OSError) as error:
            log.warning("connection dropped code=%s", getattr(error, "code", type(error).__name__))

    def _answer_round(self, connection: socket.socket, frame: Frame) -> None:
        self._write_status("working")
        cancelled = _CancelWhenClosed(connection, self._stopping)
        request = RoundRequest(
            header=frame.header, payload=frame.payload, is_cancelled=cancelled.is_set
        )
        code, answer = self._answers.answer(request)
        if cancelled.is_set():
            log.info("round dropped: the relay left before the answer was ready")
        elif answer is not None:
            send_answer(connection, answer, self._answers.journal)
            self._answers.sent(answer)
        else:
            send_unsigned(
                connection, release_code(code or DropCode.SITE_ERROR), self._answers.journal
            )
        said = code.value if code else "contributed"
        log.info("round answered outcome=%s cancelled=%s", said, cancelled.is_set())
        self._write_status("ready", last_code=said)

    def _write_status(self, state: str, **more: str) -> None:
        write_json(
            self._pinned.folder.status,
            {"state": state, "pid": os.getpid(), "isolation": self._isolation, **more},
        )


class _CancelWhenClosed:
    """True once the relay hung up (its deadline passed) or the worker is stopping."""

    def __init__(self, connection: socket.socket, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._connection = connection

    def is_set(self) -> bool:
        """Looks at the socket without blocking: an end of file means that nobody waits any more."""
        if self._stopping.is_set():
            return True
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | select.POLLRDHUP)
        return bool(poll.poll(0))  # the relay has nothing more to say: anything is a hang-up


def _check_peer(connection: socket.socket) -> None:
    """The relay must run as this very user: the kernel says so, not the relay.

    Raises:
        TransportError: FH-SOCKET-001 another user.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    _, uid, _ = _PEER_CREDENTIALS.unpack(raw)
    if uid != os.getuid():
        raise TransportError("FH-SOCKET-001", "a process of another user dialled the worker.")


def listen(path: Path) -> socket.socket:
    """The worker's socket, readable by this user only."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(previous)
    listener.listen(4)
    return listener


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the worker process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="fedhealth-worker")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--study", required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--failure", type=Path, required=True)
    parser.add_argument("--log-level", default="info")
    args = parser.parse_args(arguments)
    die_with_parent()
    home = SiteHome(args.home)
    configure_worker_log(args.log_level)
    try:
        pinned = load_pinned(home, args.study)
        isolation = leave_the_network(pinned.config.isolation)
        with weights_in(home.root):
            worker = Worker(home, pinned, isolation)
            signal.signal(signal.SIGTERM, lambda *_: worker.stop())
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            worker.prepare()
            with listen(args.socket) as listener:
                worker.serve(listener)
    except FedHealthError as error:
        log.error("worker ends code=%s", error.code)  # noqa: TRY400 - the text goes to the supervisor
        write_json(
            args.failure,
            {
                "code": error.code,
                "what": error.what,
                "why": error.why,
                "fix": error.fix,
                "exit_code": int(error.exit_code),
            },
        )
        return int(error.exit_code)
    except Exception as error:  # noqa: BLE001 - plug-in code; a traceback's text may hold a patient
        log_frames(log, error)
        return int(ExitCode.BUG)
    return 0


if __name__ == "__main__":
    sys.exit(main())
