"""Messages to sites and back over Flower's grid, one reply in memory at a time.

`grid.send_and_receive` keeps all replies and sleeps three seconds between questions; here every outstanding
message is asked for by itself, often, and given on at once (research of Flower 1.41: `docs/adr/0006`).
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import httpx
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import EvidenceError
from fedhealth.evidence.signing import Envelope
from fedhealth.flower.wire import WireReply, pack, unpack_reply
from fedhealth.server.messages import RawReply
from fedhealth.server.roster import Roster, RosterLine

log = logging.getLogger("fedhealth.server")
POLL_S: Final = 0.05
LONGEST_POLL_S: Final = 0.25  # a quarter of LATE_S
LATE_S: Final = (
    1.0  # a relay answers up to a second before the time to live; then comes the way back
)


class FlowerTransport:
    """`RoundTransport` over a Flower grid."""

    def __init__(self, grid: Grid, read_roster: Callable[[], Roster]) -> None:
        self._grid = grid
        self._read_roster = read_roster

    def roster(self) -> Sequence[RosterLine]:
        """Admitted sites; read anew each time, since a site may be admitted or revoked meanwhile."""
        return self._read_roster().admitted

    def connected(self) -> set[str]:
        """Admitted sites whose node is online."""
        return set(self._nodes())

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
        """Push one message per site, then give replies as they come, until `is_enough`."""
        nodes = self._nodes()
        content = pack(envelope, payload) if isinstance(payload, bytes) else None
        message_type = MessageType.TRAIN if kind == "train" else MessageType.EVALUATE
        begin = time.monotonic()
        outstanding: dict[str, str] = {}
        message: Message | None = None
        own: RecordDict | None = None
        for site_id in sites:
            if site_id not in nodes:
                yield dropped(site_id, DropCode.NODE_UNAVAILABLE, begin)
                continue
            own = content
            if own is None:
                own = pack(envelope, b"" if isinstance(payload, bytes) else payload[site_id])
            message = Message(own, nodes[site_id], message_type, ttl=ttl_s)
            (message_id,) = self._grid.push_messages([message])
            if message_id:
                outstanding[message_id] = site_id
            else:
                yield dropped(site_id, DropCode.NODE_UNAVAILABLE, begin)
        message = own = None
        del content, payload
        yield from replies(
            self._grid, outstanding, begin, patience_s=ttl_s + LATE_S, is_enough=is_enough
        )

    def _nodes(self) -> dict[str, int]:
        """Site id to node id, by the key that the SuperLink authenticated."""
        by_key = {line.entry.node_key_id: line.entry.site_id for line in self.roster()}
        nodes = {}
        for node in self._grid.get_nodes():
            site_id = by_key.get(hashlib.sha256(node.public_key).hexdigest())
            if site_id is not None:
                nodes[site_id] = node.node_id
        return nodes


def replies(
    grid: Grid,
    outstanding: dict[str, str],
    begin: float,
    *,
    patience_s: float,
    is_enough: Callable[[], bool] | None = None,
) -> Iterator[RawReply]:
    """Replies as they come, until `is_enough`; who has not answered `patience_s` after `begin` missed the deadline.

    Args:
        grid: Flower's.
        outstanding: site id by message id; emptied as replies come.
        begin: when the messages were pushed, by the monotonic clock.
        patience_s: how long to wait.
        is_enough: asked between replies.
    """
    last_reply = begin
    while outstanding and time.monotonic() - begin < patience_s:
        for message_id in list(outstanding):
            reply = _pull(grid, message_id, outstanding[message_id], begin)
            if reply is not None:
                del outstanding[message_id]
                last_reply = time.monotonic()
                yield reply
                del reply  # a whole update: not while the next one is awaited
        if is_enough is not None and is_enough():
            return
        time.sleep(pause_s(time.monotonic() - last_reply))
    for site_id in outstanding.values():
        yield dropped(site_id, DropCode.DEADLINE, begin)


def pause_s(quiet_s: float) -> float:
    """Seconds until the next question, after `quiet_s` seconds without a reply: a twentieth of them, within bounds.

    Each question costs the SuperLink a request for every site that is still at work, and training may take hours.
    """
    return min(LONGEST_POLL_S, max(POLL_S, quiet_s / 20))


def _pull(grid: Grid, message_id: str, site_id: str, begin: float) -> RawReply | None:
    """The reply to one message, if it is there; what Flower cannot read is a fault of its site."""
    try:
        for message in grid.pull_messages([message_id]):
            return _raw_reply(message, site_id, begin)
    except (httpx.HTTPError, ConnectionError):
        raise  # the SuperLink, not the site
    except Exception as error:  # noqa: BLE001 - one hostile site must not end the run
        log.warning("unreadable reply site=%s error=%s", site_id, type(error).__name__)
        return dropped(site_id, DropCode.PROTOCOL, begin)
    return None


def _raw_reply(message: Message, site_id: str, begin: float) -> RawReply:
    if message.has_error():
        # Flower's error reasons are free text from a site's process: only the fact is kept.
        return dropped(site_id, DropCode.NODE_UNAVAILABLE, begin)
    try:
        reply = unpack_reply(message.content)
    except EvidenceError:
        reply = WireReply(envelope=None, code=DropCode.PROTOCOL, payload=b"")
    return RawReply(
        site_id=site_id,
        envelope=reply.envelope,
        code=reply.code,
        payload=reply.payload,
        answered_after_s=round(time.monotonic() - begin, 3),
    )


def dropped(site_id: str, code: DropCode, begin: float) -> RawReply:
    """What stands for a reply that did not come."""
    return RawReply(
        site_id=site_id,
        envelope=None,
        code=code,
        payload=b"",
        answered_after_s=round(time.monotonic() - begin, 3),
    )
