"""Frames between the two zones: round trips, and refusal of everything else before memory is taken."""

import json
import socket
import struct
import threading
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhealth.errors import TransportError
from fedhealth.site.frames import (
    MAGIC,
    MAX_HEADER_BYTES,
    VERSION,
    Frame,
    FrameKind,
    receive_frame,
    send_frame,
)

PREFIX = struct.Struct(">4sBBIQ")
MAX_PAYLOAD = 4096
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def receive(data: bytes, max_payload: int = MAX_PAYLOAD) -> Frame:
    """What a receiver makes of these bytes followed by the end of the connection."""
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(target=_send_and_close, args=(left, data))
        sender.start()
        try:
            right.settimeout(10)
            return receive_frame(right, max_payload=max_payload)
        finally:
            right.close()
            sender.join()


def _send_and_close(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the receiver refused and left


def frame_bytes(kind: int, header: bytes, payload: bytes = b"") -> bytes:
    return PREFIX.pack(MAGIC, VERSION, kind, len(header), len(payload)) + header + payload


def refuse(data: bytes, code: str) -> None:
    with pytest.raises(TransportError, match=code):
        receive(data)


@given(
    st.sampled_from(FrameKind),
    st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    st.binary(max_size=MAX_PAYLOAD),
)
@settings(max_examples=60)
def test_a_frame_arrives_as_it_was_sent(
    kind: FrameKind, header: dict[str, Any], payload: bytes
) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.settimeout(10)
        right.settimeout(10)
        sender = threading.Thread(target=send_frame, args=(left, kind, header, payload))
        sender.start()
        frame = receive_frame(right, max_payload=MAX_PAYLOAD)
        sender.join()
    assert (frame.kind, frame.header, bytes(frame.payload)) == (kind, header, payload)


@given(st.integers(0, 200))
@settings(max_examples=60)
def test_a_truncated_frame_is_refused(cut: int) -> None:
    whole = frame_bytes(FrameKind.ROUND, b'{"a":1}', bytes(100))
    refuse(whole[: min(cut, len(whole) - 1)], "FH-FRAME-003")


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(TransportError, match=r"FH-FRAME-00[123]"):
        receive(data)


@given(
    magic=st.binary(min_size=4, max_size=4),
    version=st.integers(0, 255),
    kind=st.integers(0, 255),
)
@settings(max_examples=100)
def test_another_protocol_version_or_kind_is_refused(magic: bytes, version: int, kind: int) -> None:
    data = PREFIX.pack(magic, version, kind, 2, 0) + b"{}"
    if (magic, version) == (MAGIC, VERSION) and kind in set(FrameKind):
        assert receive(data).header == {}
    else:
        refuse(data, "FH-FRAME-001")


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
@settings(max_examples=100)
def test_a_frame_that_announces_too_much_is_refused(header: int, payload: int) -> None:
    data = PREFIX.pack(MAGIC, VERSION, FrameKind.ROUND, header, payload)
    is_too_large = header > MAX_HEADER_BYTES or payload > MAX_PAYLOAD
    refuse(data, "FH-FRAME-002" if is_too_large else "FH-FRAME-00[34]")


def test_an_announced_length_is_refused_before_memory_is_taken() -> None:
    huge = PREFIX.pack(MAGIC, VERSION, FrameKind.ROUND, 0, 2**62)
    tracemalloc.start()
    try:
        refuse(huge, "FH-FRAME-002")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b'{"a":1}x',
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"1" * 5000,
        json.dumps("x" * 1000).encode(),
    ],
)
def test_a_header_that_is_no_json_object_is_refused(header: bytes) -> None:
    refuse(frame_bytes(FrameKind.ROUND, header), "FH-FRAME-004")


def test_a_silent_sender_is_left_at_the_timeout() -> None:
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(0.05)
        left.sendall(MAGIC)
        with pytest.raises(TimeoutError):
            receive_frame(right, max_payload=MAX_PAYLOAD)


def test_a_dripping_sender_is_left_at_the_deadline() -> None:
    """A byte now and then keeps a socket's own timeout from passing."""
    left, right = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        for byte in PREFIX.pack(MAGIC, VERSION, FrameKind.ROUND, 1000, 0) + bytes(1000):
            if stop.wait(0.02):
                return
            left.sendall(bytes([byte]))

    with left, right:
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            with pytest.raises(TimeoutError):
                receive_frame(right, max_payload=MAX_PAYLOAD, within_s=0.3)
        finally:
            stop.set()
            dripping.join()
