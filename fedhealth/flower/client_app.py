"""The relay: Flower's ClientApp in the network zone. It moves bytes between a message and one unix socket.

It reads no data, imports no torch, and turns every failure into a code, since Flower sends the text of an
exception to the server. The message's time to live is the round's deadline: the relay always answers before
it, because an unanswered message would block this SuperNode for hours.
"""

import json
import os
import socket
import time
from typing import Final

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import Envelope
from fedhealth.flower.wire import pack, pack_code, unpack
from fedhealth.site.frames import FrameKind, receive_frame, send_frame

SOCKET_VARIABLE: Final = "FEDHEALTH_WORKER_SOCKET"
MAX_PAYLOAD_BYTES: Final = 8 * 1024**3
CONNECT_PATIENCE_S: Final = 10.0  # the worker may be restarting

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """A round: manifest and vector to the worker, contribution and update back."""
    del context
    return Message(_relay(message), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The closing trip: the same path, without an update."""
    del context
    return Message(_relay(message), reply_to=message)


def _relay(message: Message) -> RecordDict:
    try:
        return _ask_worker(message.content, seconds_left(message))
    except TimeoutError:
        return pack_code(DropCode.DEADLINE)
    except (FileNotFoundError, ConnectionError):
        return pack_code(DropCode.WORKER_UNREACHABLE)
    except Exception:  # noqa: BLE001 - whatever its text holds must not reach the server
        return pack_code(DropCode.PROTOCOL)


def seconds_left(message: Message) -> float:
    """Time until the relay must have answered: the message's time to live, less the way back."""
    metadata = message.metadata
    age = max(
        0.0, time.time() - metadata.created_at
    )  # clocks differ by at most 5 s (node authentication)
    way_back = min(1.0, 0.1 * metadata.ttl)
    return max(0.1, metadata.ttl - min(age, metadata.ttl) - way_back)


def _ask_worker(content: RecordDict, patience_s: float) -> RecordDict:
    deadline = time.monotonic() + patience_s
    envelope, payload = unpack(content)
    try:
        header = json.loads(envelope)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        return pack_code(DropCode.MANIFEST_INVALID)
    with _connect(deadline) as connection:
        connection.settimeout(_left(deadline))
        send_frame(connection, FrameKind.ROUND, header, payload)
        frame = receive_frame(connection, max_payload=MAX_PAYLOAD_BYTES, within_s=_left(deadline))
    if frame.kind is FrameKind.CODE:
        return pack_code(DropCode(frame.header["code"]))
    return pack(Envelope.model_validate(frame.header), bytes(frame.payload))


def _connect(deadline: float) -> socket.socket:
    path = os.environ[SOCKET_VARIABLE]
    patience = min(deadline, time.monotonic() + CONNECT_PATIENCE_S)
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(path)
        except (FileNotFoundError, ConnectionError):
            connection.close()
            if time.monotonic() > patience:
                raise
            time.sleep(0.1)
        else:
            return connection


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
