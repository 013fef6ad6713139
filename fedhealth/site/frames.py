"""Frames on the one socket between the two zones: versioned, length-capped, JSON and raw bytes, no pickle.

Used by both ends: the worker (data zone), for which the relay is hostile, and the relay (network zone). Layout:
magic, version, kind, header length, payload length (big-endian), JSON header, payload.
"""

import json
import socket
import struct
import time
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from fedhealth.errors import TransportError

MAGIC: Final = b"FHW1"
VERSION: Final = 1
MAX_HEADER_BYTES: Final = 4 * 1024 * 1024  # the same cap as a signed envelope
_PREFIX: Final = struct.Struct(">4sBBIQ")


class FrameKind(IntEnum):
    """What a frame is."""

    ROUND = 1  # relay -> worker: signed manifest, and the global vector
    PING = 2  # relay -> worker: are you there?
    CONTRIBUTION = 3  # worker -> relay: signed contribution, and the update
    CODE = 4  # worker -> relay: a drop code that could not be signed for a manifest
    STATUS = 5  # worker -> relay: alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One frame as received."""

    kind: FrameKind
    header: dict[str, Any]
    payload: bytearray = field(repr=False)


def send_frame(
    connection: socket.socket,
    kind: FrameKind,
    header: dict[str, object],
    payload: bytes | bytearray | memoryview = b"",
) -> None:
    """Send one frame. Raises OSError when the other end is gone."""
    encoded = json.dumps(header, separators=(",", ":")).encode()
    size = memoryview(payload).nbytes
    connection.sendall(_PREFIX.pack(MAGIC, VERSION, kind, len(encoded), size) + encoded)
    if size:
        connection.sendall(payload)


def receive_frame(
    connection: socket.socket, *, max_payload: int, within_s: float | None = None
) -> Frame:
    """Receive one frame; lengths are checked before a byte is allocated.

    Args:
        connection: a socket with a timeout.
        max_payload: the most bytes that a payload may have.
        within_s: time for the whole frame; None for the connection's timeout alone, which each byte renews.

    Raises:
        TransportError: FH-FRAME-001 not this protocol or version, FH-FRAME-002 too large,
            FH-FRAME-003 cut off, FH-FRAME-004 the header is not a JSON object.
        TimeoutError: the connection's timeout passed, or `within_s`.
    """
    deadline = None if within_s is None else time.monotonic() + within_s
    prefix = _receive_exactly(connection, _PREFIX.size, deadline)
    magic, version, kind, header_size, payload_size = _PREFIX.unpack(prefix)
    if magic != MAGIC or version != VERSION or kind not in set(FrameKind):
        raise _frame_error("FH-FRAME-001", "a frame is not of this protocol and version")
    if header_size > MAX_HEADER_BYTES or payload_size > max_payload:
        raise _frame_error("FH-FRAME-002", "a frame announces more than is allowed")
    encoded = _receive_exactly(connection, header_size, deadline)
    payload = _receive_exactly(connection, payload_size, deadline)
    try:
        header = json.loads(encoded)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise _frame_error("FH-FRAME-004", "a frame's header is not a JSON object")
    return Frame(kind=FrameKind(kind), header=header, payload=payload)


def _receive_exactly(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    buffer = bytearray(size)
    view, received = memoryview(buffer), 0
    while received < size:
        if deadline is not None:
            connection.settimeout(_left(deadline))
        count = connection.recv_into(view[received:], min(size - received, 1 << 20))
        if count == 0:
            raise _frame_error("FH-FRAME-003", "the other end closed in the middle of a frame")
        received += count
    return buffer


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _frame_error(code: str, what: str) -> TransportError:
    return TransportError(
        code,
        f"{what}.",
        why="The worker and the relay must be the same installation.",
        fix="Restart `fedhealth site start`; if it stays, reinstall fedhealth at this site.",
    )
