"""What a Flower message carries: a signed statement, a drop code, and one flat vector as raw bytes.

Flower makes one HTTP request per array and chunk, so the vector is one `Array` (docs/adr/0003). Its bytes are
little-endian float32 without a NumPy header, or a masked vector with sealed shares: the relay copies bytes and needs
to understand none of them.
"""

from dataclasses import dataclass, field
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedhealth.contracts.codes import SERVER_CODES, DropCode
from fedhealth.evidence.signing import Envelope

STATEMENT: Final = "fedhealth.statement"
VECTOR: Final = "fedhealth.vector"
SERIALISATION: Final = "fedhealth.bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireReply:
    """A site's reply as it came: not yet verified."""

    envelope: Envelope | None
    code: DropCode | None
    payload: bytes = field(repr=False)


def pack(envelope: Envelope, payload: bytes) -> RecordDict:
    """A manifest with the global vector, or a contribution with an update."""
    content = RecordDict({STATEMENT: ConfigRecord({"envelope": envelope.to_bytes()})})
    if payload:
        array = Array(dtype="uint8", shape=(len(payload),), stype=SERIALISATION, data=payload)
        content[VECTOR] = ArrayRecord({"vector": array})
    return content


def pack_code(code: DropCode) -> RecordDict:
    """A bare code, for when nobody could sign."""
    return RecordDict({STATEMENT: ConfigRecord({"code": code.value})})


def unpack(content: RecordDict) -> tuple[bytes, bytes]:
    """Envelope bytes and payload of a round message; both may be empty."""
    statement = content.config_records.get(STATEMENT)
    envelope = statement.get("envelope", b"") if statement is not None else b""
    vector = content.array_records.get(VECTOR)
    payload = vector["vector"].data if vector is not None and "vector" in vector else b""
    return (envelope if isinstance(envelope, bytes) else b""), payload


def unpack_reply(content: RecordDict) -> WireReply:
    """A reply; anything that does not parse is a protocol error of that site."""
    statement = content.config_records.get(STATEMENT)
    code_text = statement.get("code") if statement is not None else None
    if isinstance(code_text, str):
        known = code_text in set(DropCode) - SERVER_CODES
        return WireReply(
            envelope=None, code=DropCode(code_text) if known else DropCode.PROTOCOL, payload=b""
        )
    envelope_bytes, payload = unpack(content)
    return WireReply(envelope=Envelope.from_bytes(envelope_bytes), code=None, payload=payload)
