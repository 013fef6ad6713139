"""The last step out of the data zone: journal first, then the socket. It takes what the gate made, only."""

import socket

from fedhealth.evidence.journal import Journal
from fedhealth.gate.outbound import Outbound, OutboundCode
from fedhealth.site.answers import SignedAnswer
from fedhealth.site.frames import FrameKind, send_frame


def send_answer(connection: socket.socket, answer: SignedAnswer, journal: Journal) -> None:
    """Write the journal line durably, then send the signed contribution with its payload."""
    announce(answer, journal)
    header: dict[str, object] = dict(answer.contribution.model_dump())
    send_frame(connection, FrameKind.CONTRIBUTION, header, answer.outbound.payload)


def announce(answer: SignedAnswer, journal: Journal) -> None:
    """Write the journal line of an answer that is about to leave, durably.

    Raises:
        PermissionError: the gate did not make it.
    """
    _require_from_gate(answer.outbound)
    journal.append(
        answer.outbound.kind,
        {
            "contribution_sha256": answer.contribution.payload_digest,
            "payload_sha256": answer.outbound.digest,
            "num_bytes": memoryview(answer.outbound.payload).nbytes,
        },
    )


def send_unsigned(connection: socket.socket, outbound: Outbound, journal: Journal) -> None:
    """Send a bare code or a sign of life, when there is no manifest to sign for."""
    _require_from_gate(outbound)
    journal.append(outbound.kind, {"payload_sha256": outbound.digest, "num_bytes": 0})
    if isinstance(outbound, OutboundCode):
        send_frame(connection, FrameKind.CODE, {"code": outbound.code.value})
    else:
        send_frame(connection, FrameKind.STATUS, {"protocol": 1})


def _require_from_gate(outbound: object) -> None:
    """Types are not checked at run time, and a look-alike must not pass."""
    if not isinstance(outbound, Outbound):
        raise PermissionError("only what fedhealth.gate made may leave")
