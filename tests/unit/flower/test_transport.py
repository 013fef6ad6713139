"""The server's side of Flower's grid, with a grid in memory whose replies a test writes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from fedhealth.contracts.codes import DropCode
from fedhealth.evidence.signing import SigningKey
from fedhealth.flower.transport import LATE_S, POLL_S, FlowerTransport, pause_s
from fedhealth.flower.wire import STATEMENT, pack, pack_code, unpack
from fedhealth.server.enrolment import revoke
from fedhealth.server.messages import RawReply
from fedhealth.server.roster import read_roster
from fedhealth.testing.flower_task import flower_task

from ..conftest import Consortium  # noqa: TID252 - tests are no installed package

ENVELOPE = SigningKey.generate().sign("application/x", {"a": 1})
Replier = Callable[[Message], list[Message]]


@dataclass
class Node:
    """What the transport uses of a node."""

    node_id: int
    public_key: bytes


@dataclass
class MemoryGrid:
    """A grid whose sites answer at once, or as a test says."""

    nodes: list[Node]
    repliers: dict[int, Replier] = field(default_factory=dict)
    pushed: dict[str, Message] = field(default_factory=dict)
    refuses: frozenset[int] = frozenset()

    def get_nodes(self) -> list[Node]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = f"message-{len(self.pushed)}"
            is_refused = message.metadata.dst_node_id in self.refuses
            self.pushed[name] = message
            ids.append("" if is_refused else name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        (name,) = message_ids
        message = self.pushed[name]
        return self.repliers.get(message.metadata.dst_node_id, echo)(message)


def echo(message: Message) -> list[Message]:
    return [Message(pack(*_read(message)), reply_to=message)]


def _read(message: Message) -> tuple[Any, bytes]:
    _, payload = unpack(message.content)
    return ENVELOPE, payload


@pytest.fixture
def consortium(new_consortium: Any) -> Iterator[Consortium]:
    with flower_task():
        yield new_consortium("site-1", "site-2")


@pytest.fixture
def grid(consortium: Consortium) -> MemoryGrid:
    nodes = [Node(99, b"a key that nobody admitted")]
    for number, line in enumerate(read_roster(consortium.server.roster).admitted, start=1):
        public = load_ssh_public_key(line.node_key.encode())
        nodes.append(
            Node(number, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        )
    return MemoryGrid(nodes)


@pytest.fixture
def transport(grid: Any, consortium: Consortium) -> FlowerTransport:
    return FlowerTransport(grid, lambda: read_roster(consortium.server.roster))


def exchange(transport: FlowerTransport, ttl_s: float = 2.0, **more: Any) -> dict[str, RawReply]:
    sites = more.get("sites", ["site-1", "site-2"])
    kind = more.get("kind", "train")
    found = transport.exchange(sites, ENVELOPE, b"12345678", ttl_s=ttl_s, kind=kind)
    return {reply.site_id: reply for reply in found}


def test_sites_are_told_by_the_key_that_the_superlink_authenticated(
    transport: FlowerTransport, consortium: Consortium
) -> None:
    assert transport.connected() == {"site-1", "site-2"}
    revoke(consortium.server, "site-2")
    assert transport.connected() == {"site-1"}
    assert [line.entry.site_id for line in transport.roster()] == ["site-1"]


def test_the_same_bytes_go_to_every_site_with_the_deadline_as_time_to_live(
    transport: FlowerTransport, grid: MemoryGrid
) -> None:
    replies = exchange(transport, ttl_s=7.0)
    assert {r.payload for r in replies.values()} == {b"12345678"}
    assert all(r.envelope == ENVELOPE and r.code is None for r in replies.values())
    sent = list(grid.pushed.values())
    assert [m.metadata.dst_node_id for m in sent] == [1, 2]
    assert {m.metadata.ttl for m in sent} == {7.0}
    assert {m.metadata.message_type for m in sent} == {MessageType.TRAIN}
    exchange(transport, kind="evaluate")
    assert list(grid.pushed.values())[-1].metadata.message_type == MessageType.EVALUATE


def test_a_site_that_is_away_or_refused_is_unavailable(
    transport: FlowerTransport, grid: MemoryGrid
) -> None:
    grid.refuses = frozenset({2})
    replies = exchange(transport, sites=["site-1", "site-2", "site-3"])
    assert replies["site-1"].code is None
    assert replies["site-2"].code is DropCode.NODE_UNAVAILABLE
    assert replies["site-3"].code is DropCode.NODE_UNAVAILABLE


def test_a_site_that_never_answers_is_dropped_at_the_deadline(
    transport: FlowerTransport, grid: MemoryGrid
) -> None:
    grid.repliers[2] = lambda _: []
    replies = exchange(transport, ttl_s=0.1)
    assert replies["site-1"].code is None
    assert replies["site-2"].code is DropCode.DEADLINE


def test_an_error_reply_is_a_code_and_its_text_is_dropped(
    transport: FlowerTransport, grid: MemoryGrid
) -> None:
    grid.repliers[1] = lambda m: [Message(Error(code=2, reason="DOE^JOHN"), reply_to=m)]
    reply = exchange(transport)["site-1"]
    assert reply.code is DropCode.NODE_UNAVAILABLE
    assert "DOE" not in repr(reply)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({STATEMENT: ConfigRecord({"envelope": b"\x80\x04."})}),
        RecordDict({STATEMENT: ConfigRecord({"code": "DOE^JOHN"})}),
        pack_code(DropCode.BAD_SIGNATURE),
    ],
)
def test_a_reply_that_makes_no_sense_is_a_protocol_error_of_its_site(
    transport: FlowerTransport, grid: MemoryGrid, content: RecordDict
) -> None:
    grid.repliers[1] = lambda m: [Message(content, reply_to=m)]
    replies = exchange(transport)
    assert replies["site-1"].code is DropCode.PROTOCOL
    assert replies["site-2"].code is None


def test_a_reply_that_flower_cannot_read_does_not_end_the_run(
    transport: FlowerTransport, grid: MemoryGrid
) -> None:
    def hostile(_: Message) -> list[Message]:
        raise ValueError("Object type DOE^JOHN is not registered")

    grid.repliers[1] = hostile
    replies = exchange(transport)
    assert replies["site-1"].code is DropCode.PROTOCOL
    assert replies["site-2"].code is None


def test_a_superlink_that_is_gone_is_nobodys_fault(
    transport: FlowerTransport, grid: MemoryGrid
) -> None:
    def gone(_: Message) -> list[Message]:
        raise httpx.ConnectError("refused")

    grid.repliers[1] = gone
    with pytest.raises(httpx.ConnectError):
        exchange(transport)


def test_two_replies_to_one_message_count_once(
    transport: FlowerTransport, grid: MemoryGrid
) -> None:
    grid.repliers[1] = lambda m: [*echo(m), Message(pack_code(DropCode.SITE_ERROR), reply_to=m)]
    assert exchange(transport)["site-1"].code is None


def test_each_site_gets_its_own_payload(transport: FlowerTransport) -> None:
    payloads = {"site-1": b"one", "site-2": b"two"}
    replies = transport.exchange(list(payloads), ENVELOPE, payloads, ttl_s=5, kind="masking")
    assert {reply.site_id: reply.payload for reply in replies} == payloads


def test_the_wait_ends_when_there_is_enough(transport: FlowerTransport, grid: MemoryGrid) -> None:
    grid.repliers[2] = lambda _: []
    seen: list[str] = []
    for reply in transport.exchange(
        ["site-1", "site-2"], ENVELOPE, b"", ttl_s=60, kind="masking", is_enough=lambda: bool(seen)
    ):
        seen.append(reply.site_id)  # noqa: PERF401 - the wait looks at it between replies
    assert seen == ["site-1"]


def test_a_reply_is_seen_at_most_a_twentieth_later_than_it_came_and_long_before_the_deadline() -> (
    None
):
    for quiet_s in (0.0, 0.3, 1.0, 3.0, 10.0, 3600.0):
        assert POLL_S <= pause_s(quiet_s) <= max(POLL_S, quiet_s / 20)
        assert pause_s(quiet_s) <= LATE_S / 4
    assert pause_s(3600.0) > POLL_S
