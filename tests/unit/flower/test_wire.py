"""Messages as a hostile party may fill them."""

from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedhealth.contracts.codes import SERVER_CODES, DropCode
from fedhealth.errors import EvidenceError
from fedhealth.evidence.signing import SigningKey
from fedhealth.flower.wire import STATEMENT, VECTOR, pack, pack_code, unpack, unpack_reply

ENVELOPE = SigningKey.generate().sign("application/x", {"a": 1})


def test_a_message_comes_back_as_it_was_packed() -> None:
    for payload in (b"", b"12345678"):
        content = pack(ENVELOPE, payload)
        assert unpack(content) == (ENVELOPE.to_bytes(), payload)
        reply = unpack_reply(content)
        assert (reply.envelope, reply.code, reply.payload) == (ENVELOPE, None, payload)


def test_the_vector_is_one_array() -> None:
    content = pack(ENVELOPE, b"12345678")
    assert len(content.array_records) == 1
    assert len(content.array_records[VECTOR]) == 1


@pytest.mark.parametrize("code", sorted(set(DropCode) - SERVER_CODES))
def test_a_bare_code_comes_back(code: DropCode) -> None:
    reply = unpack_reply(pack_code(code))
    assert (reply.envelope, reply.code, reply.payload) == (None, code, b"")


@pytest.mark.parametrize("text", ["DOE^JOHN", "", *sorted(SERVER_CODES)])
def test_a_code_that_a_site_cannot_have_is_a_protocol_error(text: str) -> None:
    content = RecordDict({STATEMENT: ConfigRecord({"code": text})})
    assert unpack_reply(content).code is DropCode.PROTOCOL


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"a": 1})}),
        RecordDict({STATEMENT: ConfigRecord({})}),
        RecordDict({STATEMENT: ConfigRecord({"envelope": "text"})}),
        RecordDict({STATEMENT: ConfigRecord({"envelope": [1, 2]})}),
        RecordDict({STATEMENT: ConfigRecord({"envelope": b"\x80\x04."})}),
        RecordDict({STATEMENT: ConfigRecord({"code": 1})}),
        RecordDict({STATEMENT: ConfigRecord({"code": b"deadline"})}),
        RecordDict({STATEMENT: MetricRecord({"envelope": 1})}),
        RecordDict({VECTOR: ArrayRecord({"other": Array("float32", (1,), "x", b"1234")})}),
        RecordDict({VECTOR: ConfigRecord({"vector": b"1234"})}),
    ],
)
def test_what_is_no_statement_is_refused(content: Any) -> None:
    with pytest.raises(EvidenceError, match="FH-EVIDENCE-001"):
        unpack_reply(content)


def test_what_an_array_says_about_itself_is_not_believed() -> None:
    """No shape, type or serialisation is used: the bytes are counted and hashed by the receiver."""
    content = pack(ENVELOPE, b"12345678")
    lying = Array("object", (10**9,), "numpy.ndarray", b"\x93NUMPY not a vector")
    content[VECTOR] = ArrayRecord({"vector": lying})
    assert unpack_reply(content).payload == b"\x93NUMPY not a vector"
