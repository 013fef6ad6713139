"""Messages to hospitals that Flower simulates with Ray, and back. Beside `transport.py`, the real one.

A simulated SuperNode has no key and no name, and any process of Ray may play any of them. So each message says which
hospital's home answers it, and the reply is believed because of that hospital's signature, as ever.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from flwr.app import ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import Envelope
from fedhealth.flower.transport import LATE_S, dropped, replies
from fedhealth.flower.wire import pack
from fedhealth.server.messages import RawReply
from fedhealth.server.roster import Roster, RosterLine

HOSPITAL: Final = "fedhealth.hospital"
BEGIN_S: Final = 120.0
"""For processes of Ray to start and to import what they need, before the first hospital begins."""


class SimulatedTransport:
    """`RoundTransport` over the grid of Flower's simulation.

    Args:
        grid: Flower's.
        read_roster: the server's roster.
        hospitals: homes of the hospitals that take part, by site id.
        study_id: the study they have joined.
    """

    def __init__(
        self,
        grid: Grid,
        read_roster: Callable[[], Roster],
        *,
        hospitals: Mapping[str, Path],
        study_id: str,
    ) -> None:
        self._grid = grid
        self._read_roster = read_roster
        self._hospitals = hospitals
        self._study_id = study_id

    def roster(self) -> Sequence[RosterLine]:
        """Admitted hospitals that started: nobody waits for one that cannot come."""
        return [ln for ln in self._read_roster().admitted if ln.entry.site_id in self._hospitals]

    def connected(self) -> set[str]:
        """All of them once Flower has made a node for each; nobody before."""
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
        """Push one message per hospital, and give replies as they come.

        Each hospital has all of `ttl_s` from when it begins, since it may have to wait for a free process of Ray.
        After `is_enough` the others are still awaited, and not given on: nobody works on into the next round.
        """
        nodes = self._nodes()
        message_type = MessageType.TRAIN if kind == "train" else MessageType.EVALUATE
        longest_s = BEGIN_S + ttl_s * len(sites)
        begin = time.monotonic()
        outstanding: dict[str, str] = {}
        for site_id in sites:
            content = pack(envelope, payload if isinstance(payload, bytes) else payload[site_id])
            content[HOSPITAL] = ConfigRecord(
                {
                    "home": str(self._hospitals[site_id]),
                    "study-id": self._study_id,
                    "deadline-s": float(ttl_s),
                }
            )
            message = Message(content, nodes[site_id], message_type, ttl=longest_s)
            (message_id,) = self._grid.push_messages([message])
            if message_id:
                outstanding[message_id] = site_id
            else:
                yield dropped(site_id, DropCode.NODE_UNAVAILABLE, begin)
        is_over = False
        for reply in replies(self._grid, outstanding, begin, patience_s=longest_s + LATE_S):
            if not is_over:
                yield reply
                is_over = is_enough is not None and is_enough()

    def _nodes(self) -> dict[str, int]:
        """A node for each hospital: which one is all the same, and it stays the same for the run."""
        nodes = sorted(self._grid.get_node_ids())
        if len(nodes) < len(self._hospitals):
            return {}
        return dict(zip(sorted(self._hospitals), nodes, strict=False))
