"""The worker behind its real socket, with a hostile relay in front of it."""

import contextlib
import json
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import TransportError
from fedhealth.evidence.journal import verify_journal
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Contribution, open_statement
from fedhealth.gate.gate import release_status
from fedhealth.site.door import send_answer, send_unsigned
from fedhealth.site.frames import Frame, FrameKind, receive_frame, send_frame
from fedhealth.site.home import SiteHome
from fedhealth.site.local_round import SignedAnswer
from fedhealth.site.worker import Worker, _check_peer, listen

from ..conftest import Consortium, study_content  # noqa: TID252 - tests are no installed package


class Running:
    """A worker in a thread, and what a relay can do to it."""

    def __init__(self, consortium: Consortium, site_id: str, socket_path: Path) -> None:
        self.consortium = consortium
        self.pinned = consortium.pinned(site_id)
        self.site_id = site_id
        self.worker = Worker(SiteHome(consortium.sites[site_id].root), self.pinned, "none")
        self.listener = listen(socket_path)
        self.path = socket_path
        self.thread = threading.Thread(target=self.worker.serve, args=(self.listener,))
        self.thread.start()

    def end(self) -> None:
        self.worker.stop()
        self.thread.join(20)
        self.listener.close()
        assert not self.thread.is_alive()

    def dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20)
        connection.connect(str(self.path))
        return connection

    def ask(
        self, kind: FrameKind, header: dict[str, Any], payload: bytes | bytearray = b""
    ) -> Frame:
        with self.dial() as connection:
            send_frame(connection, kind, header, payload)
            return receive_frame(connection, max_payload=1 << 20)

    def round(self, **changes: Any) -> Frame:
        return self.ask(
            FrameKind.ROUND, self.consortium.header(**changes), self.consortium.payload()
        )

    def said(self, frame: Frame) -> Contribution:
        key = self.consortium.site_key(self.site_id).public
        return open_statement(Contribution, Envelope.model_validate(frame.header), key)

    def is_alive(self) -> bool:
        return self.ask(FrameKind.PING, {}).kind is FrameKind.STATUS


@pytest.fixture
def running(new_consortium: Any, tmp_path: Path) -> Iterator[Running]:
    started = Running(new_consortium("site-1", "site-2"), "site-1", tmp_path / "w.sock")
    yield started
    started.end()


def test_a_round_is_answered_with_a_signed_contribution_and_a_journal_line(
    running: Running,
) -> None:
    frame = running.round()
    said = running.said(frame)
    assert frame.kind is FrameKind.CONTRIBUTION
    assert said.drop_code is None
    assert said.num_elements * 4 == len(frame.payload)
    line = json.loads(running.pinned.folder.journal.read_text().splitlines()[-1])
    assert line["body"]["payload_sha256"] == said.update_sha256


def test_the_socket_and_its_folder_are_private(running: Running) -> None:
    assert running.path.stat().st_mode & 0o777 == 0o600


def test_a_repeated_manifest_gets_the_same_bytes_and_no_training(running: Running) -> None:
    first = running.round()
    again = running.round()
    assert (again.header, again.payload) == (first.header, first.payload)
    assert running.said(again).drop_code is None
    (reserved,) = running.worker._answers._account._ledger.view().lines
    assert reserved.state == "committed"
    assert running.said(running.round(attempt=2)).drop_code is None


def test_another_manifest_for_an_answered_round_gets_a_signed_refusal(running: Running) -> None:
    running.round()
    again = running.round(deadline_s=6.0)
    assert running.said(again).drop_code is DropCode.MANIFEST_REPLAYED
    assert not again.payload


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"run_name": "another"}, None), ({"model_sha256": "0" * 64}, DropCode.MANIFEST_INVALID)],
)
def test_a_refusal_is_a_code(running: Running, changes: dict[str, Any], code: DropCode) -> None:
    """Signed when the manifest is the server's; bare when there is nothing to sign for."""
    frame = running.round(**changes)
    if code is None:
        assert (frame.kind, frame.header) == (FrameKind.CODE, {"code": "study_mismatch"})
    else:
        assert running.said(frame).drop_code is code
    assert not frame.payload


def test_a_manifest_that_is_not_the_servers_gets_a_bare_code(running: Running) -> None:
    for header in ({}, {"payload": "x"}, {"DOE^JOHN": [[[]]]}):
        frame = running.ask(FrameKind.ROUND, header, running.consortium.payload())
        assert (frame.kind, frame.header) == (FrameKind.CODE, {"code": "manifest_invalid"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04cos\nsystem\n(S'id'\ntR.",
        struct.pack(">4sBBIQ", b"FHW1", 1, 1, 0, 2**60),
        struct.pack(">4sBBIQ", b"FHW1", 1, 1, 2**31, 0),
        struct.pack(">4sBBIQ", b"FHW1", 1, 1, 100_000, 0) + b"[" * 100_000,
        struct.pack(">4sBBIQ", b"FHW1", 1, 99, 2, 0) + b"{}",
        struct.pack(">4sBBIQ", b"FHW1", 2, 1, 2, 0) + b"{}",
        struct.pack(">4sBBIQ", b"FHW1", 1, 3, 2, 0) + b"{}",
        struct.pack(">4sBBIQ", b"FHW1", 1, 4, 2, 0) + b"{}",
    ],
)
def test_a_hostile_frame_gets_no_answer_and_the_worker_lives(running: Running, data: bytes) -> None:
    with running.dial() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert running.is_alive()


def test_more_than_the_studys_largest_model_is_refused(running: Running) -> None:
    too_large = bytes(running.consortium.spec.num_bytes + 1)
    with running.dial() as connection:
        try:
            send_frame(connection, FrameKind.ROUND, running.consortium.header(), too_large)
            assert connection.recv(100) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert running.is_alive()


def test_a_relay_that_hangs_up_gets_nothing_and_nothing_is_journalled_as_sent(
    new_consortium: Any, tmp_path: Path
) -> None:
    content = study_content()
    content["training"]["options"] = {"wait_s": 30}
    consortium = new_consortium("site-1", "site-2", content=content)
    running = Running(consortium, "site-1", tmp_path / "w.sock")
    try:
        _, before = verify_journal(running.pinned.folder.journal)
        with running.dial() as connection:
            send_frame(connection, FrameKind.ROUND, consortium.header(), consortium.payload())
        assert running.is_alive(), "the training was cancelled, so the next one is answered at once"
        _, after = verify_journal(running.pinned.folder.journal)
        assert after == before + 1, "the sign of life only"
    finally:
        running.end()


def test_text_of_a_plugins_error_does_not_cross_the_socket(
    new_consortium: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = study_content()
    content["training"]["options"] = {"fault": "raise", "fault_site": "site-1"}
    running = Running(new_consortium("site-1", "site-2", content=content), "site-1", tmp_path / "s")
    try:
        frame = running.round()
        assert running.said(frame).drop_code is DropCode.SITE_ERROR
        assert "DOE" not in json.dumps(frame.header)
        assert not frame.payload
    finally:
        running.end()
    assert "DOE" not in caplog.text


def test_the_door_takes_what_the_gate_made_only(new_consortium: Any) -> None:
    class LookAlike:
        kind, payload, digest = "update", b"DOE^JOHN", "0" * 64

    consortium = new_consortium("site-1", "site-2")
    envelope = consortium.manifest().sign(consortium.site_key("site-1"))
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(PermissionError):
            send_answer(left, SignedAnswer(outbound=LookAlike(), contribution=envelope), None)  # type: ignore[arg-type]
        with pytest.raises(PermissionError):
            send_unsigned(left, LookAlike(), None)  # type: ignore[arg-type]
        left.close()
        assert right.recv(1) == b""


def test_nothing_is_sent_that_the_journal_did_not_take() -> None:
    class FullDisk:
        def append(self, kind: str, body: dict[str, Any]) -> str:  # noqa: ARG002 - Journal's
            raise OSError(28, "no space left")

    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(OSError, match="no space"):
            send_unsigned(left, release_status(), FullDisk())  # type: ignore[arg-type]
        left.close()
        assert right.recv(1) == b""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / "w.sock"
        with listen(path) as listener:
            Path(folder).chmod(0o755)
            path.chmod(0o777)
            child = os.fork()
            if child == 0:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dialled:
                    dialled.connect(str(path))
                    dialled.recv(1)
                os._exit(0)
            listener.settimeout(20)
            connection, _ = listener.accept()
            with connection, pytest.raises(TransportError, match="FH-SOCKET-001"):
                _check_peer(connection)
            os.waitpid(child, 0)
