"""What may leave a site: a few types, each made by `gate.gate` and by nothing else.

The constructors want the gate's own token, so that an outbound object made elsewhere fails at once; a test
also searches the source for other callers. The socket accepts nothing else (`site/door.py`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.benefit import MethodGain, MethodMetrics
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.update_encoding import UpdateEncoding

_GATE_TOKEN: Final = object()
Kind = Literal[
    "update", "metrics", "masked", "agreement", "shares", "keys", "status", "code", "benefit"
]


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
    """Shared tensors in one of the forms of `contracts.update_encoding`, with the metrics that the study lists."""

    num_elements: int
    encoding: UpdateEncoding
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
class OutboundBenefit(Outbound):
    """What runs are worth on this site's test patients: listed metrics, rounded. It leaves as a signed file."""

    results: tuple[MethodMetrics, ...] = field(repr=False)
    gains: tuple[MethodGain, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundKeys(Outbound):
    """Public keys and declared facts of a join request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundStatus(Outbound):
    """That the worker is alive, and the version of its protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundMasked(Outbound):
    """A masked vector of `num_words` words, and shares sealed for the other sites; nothing in the clear."""

    num_words: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundAgreement(Outbound):
    """That the site agrees to one list of survivors; the list is in the signed statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundShares(Outbound):
    """Shares of mask seeds, for the one list of survivors that the site accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What the gate let through to be masked. It is no `Outbound`: the door does not take it, only a mask does.

    Attributes:
        vector: the released vector on the spec, (n,) float32; None in an evaluation.
        in_8_bits: the bytes that leave where it was rounded, and `vector` is what is read out of them.
        train_metrics: rounded, listed and charged ones only.
        evaluate_metrics: likewise.
        is_masked: it may not leave without a mask.
    """

    vector: NDArray[np.float32] | None = field(repr=False)
    train_metrics: Mapping[str, float]
    evaluate_metrics: Mapping[str, float]
    is_masked: bool
    in_8_bits: bytes | None = field(repr=False, default=None)
    token: InitVar[object] = None

    def __post_init__(self, token: object) -> None:
        if token is not _GATE_TOKEN:
            raise PermissionError("only fedhealth.gate clears what is masked")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearedSum:
    """A clipped, rounded and noised part of a sum, made by the gate. It leaves under a mask only.

    Attributes:
        whole: (D,) int64, in grid steps.
    """

    whole: NDArray[np.int64] = field(repr=False)
    token: InitVar[object] = None

    def __post_init__(self, token: object) -> None:
        if token is not _GATE_TOKEN:
            raise PermissionError("only fedhealth.gate clears what is masked")
