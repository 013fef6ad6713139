"""How messages get to sites and back: the shapes that the round loop and secure aggregation share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import Envelope
from fedhealth.server.gathering import Presence


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReply:
    """What came back from one site, not yet believed."""

    site_id: str
    envelope: Envelope | None
    code: DropCode | None
    payload: bytes = field(repr=False)
    answered_after_s: float


class RoundTransport(Presence, Protocol):
    """How messages get to sites and back, and who is there."""

    def exchange(
        self,
        sites: Sequence[str],
        envelope: Envelope,
        payload: bytes | Mapping[str, bytes],
        *,
        ttl_s: float,
        kind: str,
        is_enough: Callable[[], bool] | None = None,
    ) -> Iterator[RawReply]:
        """Send to every site and give replies as they come, until all are in or `ttl_s` passed.

        Args:
            sites: to whom.
            envelope: the same signed statement for all.
            payload: the same bytes for all, or each site's own.
            ttl_s: how long sites have.
            kind: train, evaluate or masking.
            is_enough: asked between replies; true ends the wait for the rest.
        """
        ...
