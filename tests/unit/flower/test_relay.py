"""The relay between a Flower message and the worker's socket: every failure is a code, never a text."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import SigningKey
from fedhealth.flower.client_app import SOCKET_VARIABLE, _relay, seconds_left
from fedhealth.flower.wire import STATEMENT, WireReply, pack, unpack_reply
from fedhealth.site.frames import FrameKind, receive_frame, send_frame

ENVELOPE = SigningKey.generate().sign("application/x", {"a": 1})
Behaviour = Callable[[socket.socket], None]


@dataclass
class Metadata:
    """The two facts of Flower's metadata that the relay uses."""

    ttl: float
    created_at: float


@dataclass
class Message:
    """What the relay uses of a Flower message."""

    content: RecordDict
    metadata: Metadata


@pytest.fixture
def worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Behaviour], None]]:
    """A listening socket that does what a test says on the first connection."""
    path = tmp_path / "w.sock"
    monkeypatch.setenv(SOCKET_VARIABLE, str(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    threads: list[threading.Thread] = []

    def start(behaviour: Behaviour) -> None:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                behaviour(connection)

        threads.append(threading.Thread(target=serve))
        threads[0].start()

    yield start
    for thread in threads:
        thread.join(20)
    listener.close()


def ask(content: RecordDict | None = None, ttl: float = 30.0, age: float = 0.0) -> WireReply:
    message: Any = Message(content or pack(ENVELOPE, b"1234"), Metadata(ttl, time.time() - age))
    return unpack_reply(_relay(message))


def receive(connection: socket.socket) -> None:
    receive_frame(connection, max_payload=1000)


def test_an_answer_is_passed_on_byte_for_byte(worker: Any) -> None:
    def answer(connection: socket.socket) -> None:
        frame = receive_frame(connection, max_payload=1000)
        assert (frame.kind, frame.header) == (FrameKind.ROUND, ENVELOPE.model_dump())
        send_frame(
            connection, FrameKind.CONTRIBUTION, ENVELOPE.model_dump(), frame.payload + b"5678"
        )

    worker(answer)
    reply = ask()
    assert (reply.envelope, reply.payload) == (ENVELOPE, b"12345678")


def test_a_code_is_passed_on(worker: Any) -> None:
    def answer(connection: socket.socket) -> None:
        receive(connection)
        send_frame(connection, FrameKind.CODE, {"code": "site_data"})

    worker(answer)
    assert ask().code is DropCode.SITE_DATA


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"code": "DOE^JOHN"}, FrameKind.CODE),
        ({}, FrameKind.CODE),
        ({"DOE^JOHN": 1}, FrameKind.CONTRIBUTION),
        ({}, FrameKind.STATUS),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_code_without_its_text(
    worker: Any, header: dict[str, Any], kind: FrameKind
) -> None:
    def answer(connection: socket.socket) -> None:
        receive(connection)
        send_frame(connection, kind, header)

    worker(answer)
    assert ask().code is DropCode.PROTOCOL


def test_a_worker_that_hangs_up_is_a_protocol_code(worker: Any) -> None:
    worker(receive)
    assert ask().code is DropCode.PROTOCOL


def test_the_relay_answers_before_the_time_to_live_and_hangs_up(worker: Any) -> None:
    left = threading.Event()

    def wait(connection: socket.socket) -> None:
        receive(connection)
        connection.settimeout(20)
        assert connection.recv(1) == b""
        left.set()

    worker(wait)
    begin = time.monotonic()
    assert ask(ttl=1.0).code is DropCode.DEADLINE
    assert time.monotonic() - begin < 1.0
    assert left.wait(20), "the worker sees that nobody waits any more"


def test_a_worker_that_is_not_there_is_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "absent.sock"))
    assert ask(ttl=0.5).code in {DropCode.WORKER_UNREACHABLE, DropCode.DEADLINE}
    monkeypatch.delenv(SOCKET_VARIABLE)
    assert ask(ttl=0.5).code is DropCode.PROTOCOL


@pytest.mark.parametrize("envelope", [b"", b"not json", b"[]", b"1"])
def test_a_manifest_that_is_no_json_object_does_not_reach_the_worker(envelope: bytes) -> None:
    content = RecordDict({STATEMENT: ConfigRecord({"envelope": envelope})})
    assert ask(content).code is DropCode.MANIFEST_INVALID
    assert ask(RecordDict({"x": ConfigRecord({})})).code is DropCode.MANIFEST_INVALID


def test_a_deeply_nested_manifest_is_a_code() -> None:
    content = RecordDict({STATEMENT: ConfigRecord({"envelope": b'{"a":' * 200_000})})
    assert ask(content).code is DropCode.PROTOCOL


@pytest.mark.parametrize(
    ("ttl", "age", "least", "most"),
    [
        (60, 0, 58.9, 59.0),
        (60, 30, 28.9, 29.0),
        (60, -100, 58.9, 59.0),
        (60, 1000, 0.1, 0.1),
        (2, 0, 1.7, 1.8),
    ],
)
def test_time_left_is_the_time_to_live_less_age_and_way_back(
    ttl: float, age: float, least: float, most: float
) -> None:
    message: Any = Message(RecordDict(), Metadata(ttl, time.time() - age))
    assert least <= seconds_left(message) <= most
