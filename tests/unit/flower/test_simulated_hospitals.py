"""Flower's half of a simulation with Ray, with a grid in memory: messages name the hospital, and nobody works on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict, UserConfig

from fedhealth.contracts.codes import DropCode
from fedhealth.errors import TransportError, UsageError
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.flower.ray_process import looked, require_alike, require_room
from fedhealth.flower.simulated_hospital import hospital_app
from fedhealth.flower.simulated_transport import SimulatedTransport
from fedhealth.flower.simulation_place import RayPlan
from fedhealth.server.messages import RawReply
from fedhealth.server.roster import read_roster
from fedhealth.testing.flower_task import flower_task

from ..conftest import Consortium  # noqa: TID252 - tests are no installed package

ENVELOPE = SigningKey.generate().sign("application/x", {"a": 1})
SIGNED = SigningKey.generate().sign("application/x", {"a": 2})
HOMES = {"site-1": Path("/homes/1"), "site-2": Path("/homes/2")}
EMPTY = Context(run_id=1, node_id=1, node_config=UserConfig(), state=RecordDict(), run_config=UserConfig())  # fmt: skip


@dataclass
class Asked:
    """What hospitals were asked, and what they answer."""

    calls: list[tuple[Path, str, bytes, float]] = field(default_factory=list)
    code: DropCode | None = None

    def answer(
        self, root: Path, study_id: str, envelope: Envelope, payload: bytes, deadline_s: float
    ) -> RawReply:
        assert envelope == ENVELOPE
        self.calls.append((root, study_id, payload, deadline_s))
        return RawReply(
            site_id=root.name,
            envelope=SIGNED if self.code is None else None,
            code=self.code,
            payload=payload[::-1],
            answered_after_s=0.1,
        )


@dataclass
class MemoryGrid:
    """A grid that runs the ClientApp when a reply is asked for."""

    app: Any
    node_ids: list[int]
    pushed: dict[str, Message] = field(default_factory=dict)

    def get_node_ids(self) -> list[int]:
        return self.node_ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        name = f"message-{len(self.pushed)}"
        message.metadata.__dict__["_message_id"] = name
        self.pushed[name] = message
        return [name]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        (name,) = message_ids
        return [self.app(self.pushed[name], EMPTY)]


@pytest.fixture
def consortium(new_consortium: Any) -> Iterator[Consortium]:
    with flower_task():
        yield new_consortium("site-1", "site-2")


def transport_to(asked: Asked, consortium: Consortium, node_ids: list[int]) -> SimulatedTransport:
    grid: Any = MemoryGrid(hospital_app(asked.answer), node_ids)
    return SimulatedTransport(
        grid, lambda: read_roster(consortium.server.roster), hospitals=HOMES, study_id="study"
    )


@pytest.mark.parametrize("kind", ["train", "evaluate", "masking"])
def test_each_message_names_its_hospital_and_brings_its_answer_back(
    consortium: Consortium, kind: str
) -> None:
    asked = Asked()
    transport = transport_to(asked, consortium, [7, 5])
    payload = {"site-1": b"one", "site-2": b"two"}
    back = list(transport.exchange(["site-1", "site-2"], ENVELOPE, payload, ttl_s=3.0, kind=kind))
    assert asked.calls == [
        (HOMES["site-1"], "study", b"one", 3.0),
        (HOMES["site-2"], "study", b"two", 3.0),
    ]
    assert [(r.site_id, r.envelope, r.payload) for r in back] == [
        ("site-1", SIGNED, b"eno"),
        ("site-2", SIGNED, b"owt"),
    ]


def test_a_code_comes_back_as_a_code(consortium: Consortium) -> None:
    transport = transport_to(Asked(code=DropCode.DEADLINE), consortium, [7, 5])
    (reply,) = transport.exchange(["site-2"], ENVELOPE, b"x", ttl_s=3.0, kind="train")
    assert (reply.envelope, reply.code) == (None, DropCode.DEADLINE)


def test_after_enough_the_others_are_awaited_and_not_given_on(consortium: Consortium) -> None:
    asked = Asked()
    transport = transport_to(asked, consortium, [7, 5])
    back = transport.exchange(
        ["site-1", "site-2"], ENVELOPE, b"x", ttl_s=3.0, kind="masking", is_enough=lambda: True
    )
    assert [reply.site_id for reply in back] == ["site-1"]
    assert [root for root, *_ in asked.calls] == list(HOMES.values()), "nobody works on in silence"


def test_nobody_is_there_before_flower_has_made_a_node_for_each(consortium: Consortium) -> None:
    assert transport_to(Asked(), consortium, [7]).connected() == set()
    both = transport_to(Asked(), consortium, [7, 5])
    assert both.connected() == set(HOMES)
    assert [line.entry.site_id for line in both.roster()] == list(HOMES)


def plan(cpus: int, gpus: float) -> RayPlan:
    return RayPlan(
        cpus_per_hospital=cpus, gpus_per_hospital=gpus, address=None, temp_dir="", most_cpus=9
    )


@pytest.mark.parametrize(("cpus", "gpus"), [(5, 0.0), (1, 0.5), (3, 1.0)])
def test_a_hospital_that_fits_on_no_machine_is_refused(cpus: int, gpus: float) -> None:
    machines = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}] if cpus != 1 else [{"CPU": 4.0}]
    with pytest.raises(UsageError, match="FH-RAY-003"):
        require_room(plan(cpus, gpus), machines)


def test_a_hospital_that_fits_on_one_of_the_machines_is_taken() -> None:
    require_room(plan(2, 1.0), [{"CPU": 4.0}, {}, {"CPU": 2.0, "GPU": 1.0}])


def test_a_machine_of_a_cluster_with_another_version_or_without_the_folder_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "study.yaml").write_text("")
    own = looked(str(tmp_path))
    require_alike([own, dict(own)], own)
    with pytest.raises(TransportError, match=r"FH-RAY-005.*torch: 1\.0 on one machine"):
        require_alike([own, own | {"torch": "1.0"}], own)
    elsewhere = looked(str(tmp_path / "absent"))
    with pytest.raises(TransportError, match=r"FH-RAY-005.*sees the folder: False"):
        require_alike([elsewhere], own)
