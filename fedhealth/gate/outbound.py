"""What may leave a site: five types, each made by `gate.gate` and by nothing else.

The constructors want the gate's own token, so that an outbound object made elsewhere fails at once; a test
also searches the source for other callers. The socket accepts nothing else (`site/door.py`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Final, Literal

from fedhealth.contracts.codes import DropCode

_GATE_TOKEN: Final = object()
Kind = Literal["update", "metrics", "keys", "status", "code"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """Base of all that leaves. `payload` are the exact bytes, hashed into the journal."""

    kind: Kind
    payload: bytes | memoryview = field(repr=False, default=b"")
    token: InitVar[object] = None  # not kept: `dataclasses.replace` of a released message fails too

    def __post_init__(self, token: object) -> None:
        if token is not _GATE_TOKEN:
            raise PermissionError("only fedhealth.gate makes outbound messages")

    @property
    def digest(self) -> str:
        """SHA-256 of the payload, in hex."""
        return hashlib.sha256(self.payload).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundUpdate(Outbound):
    """Shared tensors as one little-endian float32 vector, with the metrics that the study lists."""

    num_elements: int
    train_metrics: Mapping[str, float]
    evaluate_metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundMetrics(Outbound):
    """Metrics of an evaluate-only trip."""

    evaluate_metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundCode(Outbound):
    """Why the site does not contribute: a code, never a text."""

    code: DropCode


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundKeys(Outbound):
    """Public keys and declared facts of a join request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundStatus(Outbound):
    """That the worker is alive, and the version of its protocol."""
