"""The lines of a ledger: closed schemas, one hash for each, and the chain (docs/reference/privacy-ledger.md).

A line is canonical JSON (RFC 8785). Its last member, `sha256`, is the hash of the same line without it; the
next line's `previous` repeats it. So any changed byte is found, in the last line too.
"""

import hashlib
from typing import Annotated, Final, Literal, TypeVar

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedhealth.config.base import Slug
from fedhealth.privacy.accounting.events import Event
from fedhealth.privacy.ledger import problems
from fedhealth.privacy.ledger.mark import LedgerMark

GENESIS: Final = "0" * 64
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
UtcTime = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
Count = Annotated[int, Field(ge=1, lt=2**53)]
RoundKind = Literal["train", "evaluate"]
_TAIL_BYTES: Final = len(f',"sha256":"{GENESIS}"}}')


class Closed(BaseModel):
    """Base: no unknown field, nothing mutable, finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OpenBody(Closed):
    """The first line. `ledger` is random: two ledgers of one dataset differ."""

    version: Literal[1] = 1
    dataset: Slug
    ledger: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ReserveBody(Closed):
    """The cost of answering one manifest, written before anything is computed: it counts from here on."""

    study_id: Slug
    study_sha256: Hex64
    run_name: Slug
    round_number: Count
    attempt: Count
    kind: RoundKind
    manifest_sha256: Hex64
    events: tuple[Event, ...]

    @property
    def order(self) -> tuple[int, int, int]:
        """Grows within a study's run: round, attempt, and training before evaluation."""
        return (self.round_number, self.attempt, 1 if self.kind == "evaluate" else 0)


class SealBody(Closed):
    """The answer is on disk, encrypted: digests of its header, its payload and the encrypted file."""

    manifest_sha256: Hex64
    header_sha256: Hex64
    payload_sha256: Hex64
    file_sha256: Hex64


class CommitBody(Closed):
    """The answer was handed over for sending."""

    manifest_sha256: Hex64


class WitnessBody(Closed):
    """A line that a server has seen and that this copy lacks."""

    sequence: Annotated[int, Field(ge=1, lt=2**40)]  # leaves room for the lines that follow it
    head: Hex64


class RecoveredBody(Closed):
    """What a newer, lost copy had spent, from the server's records."""

    study_id: Slug
    events: tuple[Event, ...]
    witness: WitnessBody


Body = OpenBody | ReserveBody | SealBody | CommitBody | RecoveredBody


class Line(Closed):
    """What all lines have. `seq` grows by one; a `recovered` line may jump past its witness."""

    at: UtcTime
    previous: Hex64
    seq: Count


class OpenLine(Line):
    """`open`."""

    kind: Literal["open"] = "open"
    body: OpenBody


class ReserveLine(Line):
    """`reserve`."""

    kind: Literal["reserve"] = "reserve"
    body: ReserveBody


class SealLine(Line):
    """`seal`."""

    kind: Literal["seal"] = "seal"
    body: SealBody


class CommitLine(Line):
    """`commit`."""

    kind: Literal["commit"] = "commit"
    body: CommitBody


class RecoveredLine(Line):
    """`recovered`."""

    kind: Literal["recovered"] = "recovered"
    body: RecoveredBody


AnyLine = OpenLine | ReserveLine | SealLine | CommitLine | RecoveredLine
_LINE: Final[TypeAdapter[AnyLine]] = TypeAdapter(Annotated[AnyLine, Field(discriminator="kind")])
_KINDS: Final[dict[type[Closed], str]] = {
    OpenBody: "open",
    ReserveBody: "reserve",
    SealBody: "seal",
    CommitBody: "commit",
    RecoveredBody: "recovered",
}


def next_sequence(last: LedgerMark, body: Body) -> int:
    """The number of the line that follows `last`."""
    if isinstance(body, RecoveredBody):
        return max(last.sequence, body.witness.sequence) + 1
    return last.sequence + 1


def encode_line(body: Body, *, last: LedgerMark, at: str) -> bytes:
    """One line with its end."""
    content = rfc8785.dumps(
        {
            "at": at,
            "body": body.model_dump(mode="json"),
            "kind": _KINDS[type(body)],
            "previous": last.head,
            "seq": next_sequence(last, body),
        }
    )
    return content[:-1] + _tail(content) + b"\n"


def decode_line(raw: bytes, *, last: LedgerMark, number: int) -> tuple[AnyLine, LedgerMark]:
    """A line of a file (without its end), and its place.

    Args:
        raw: the line's bytes.
        last: place of the line before; sequence 0 and `GENESIS` before the first one.
        number: which line of the file it is, from 1, for the message.

    Raises:
        PrivacyError: FH-LEDGER-001 its hash, its number or the chain does not fit; FH-LEDGER-002 it is whole,
            but of a kind or with a field or event that this version does not know.
    """
    content = raw[:-_TAIL_BYTES] + b"}"
    tail = _tail(content)
    if raw != content[:-1] + tail:
        raise problems.broken(number, "its content does not have its hash")
    try:
        line = _LINE.validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])[:80]
        raise problems.unknown(number, where or "the top") from None
    if line.previous != last.head or line.seq != next_sequence(last, line.body):
        raise problems.broken(number, "it does not follow the line before")
    return line, LedgerMark(sequence=line.seq, head=hashlib.sha256(content).hexdigest())


_B = TypeVar("_B", bound=Closed)


def build(model: type[_B], **fields: object) -> _B:
    """A body from what a caller gave.

    Raises:
        PrivacyError: FH-LEDGER-015 a field is outside its range.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])[:80]
        raise problems.bad_request(f"{where} is outside of its range") from None


def _tail(content: bytes) -> bytes:
    return b',"sha256":"' + hashlib.sha256(content).hexdigest().encode() + b'"}'
