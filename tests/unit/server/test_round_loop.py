"""The round loop on a transport in memory, with sites that sign real contributions."""
# ruff: noqa: ARG002 - the shapes of RoundTransport, Aggregator and RunRecorder are given

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.config.load import study_digest
from fedhealth.contracts.aggregation import Aggregate, SiteReply, StrategyConfig, Vector
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import vector_bytes, vector_from_bytes
from fedhealth.errors import AggregationError, QuorumError
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Contribution, Manifest, open_statement
from fedhealth.report.record import VoidReason
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.home import RunFolder
from fedhealth.server.ledger_places import LedgerPlaces
from fedhealth.server.messages import RawReply
from fedhealth.server.outcomes import RoundOutcome, SiteOutcome
from fedhealth.server.roster import RosterLine, read_roster
from fedhealth.server.round_loop import RoundLoop

from ..conftest import Consortium, study_content  # noqa: TID252 - tests are no installed package

Answer = Callable[["Sites", str, Manifest, Envelope, bytes], list[RawReply]]


@dataclass
class Sites:
    """`RoundTransport` without a network: every site adds its own step and signs."""

    consortium: Consortium
    online: set[str]
    answers: dict[tuple[str, int, int], Answer] = field(default_factory=dict)
    order: Callable[[Sequence[str]], Sequence[str]] = list
    seen: list[Manifest] = field(default_factory=list)

    def connected(self) -> set[str]:
        return self.online

    def roster(self) -> Sequence[RosterLine]:
        return read_roster(self.consortium.server.roster).admitted

    def exchange(
        self,
        sites: Sequence[str],
        envelope: Envelope,
        payload: Any,
        *,
        ttl_s: float,
        kind: str,
        is_enough: Any = None,
    ) -> Iterator[RawReply]:
        key = self.consortium.server_key.public
        manifest = open_statement(Manifest, envelope, key)
        self.seen.append(manifest)
        for site_id in self.order(sites):
            place = (site_id, manifest.round_number, manifest.attempt)
            answer = self.answers.get(place, contribute)
            yield from answer(self, site_id, manifest, envelope, payload)


def reply(
    site_id: str, envelope: Envelope | None, payload: bytes = b"", code: Any = None
) -> RawReply:
    return RawReply(
        site_id=site_id, envelope=envelope, code=code, payload=payload, answered_after_s=0.1
    )


def contribute(
    sites: Sites, site_id: str, manifest: Manifest, envelope: Envelope, payload: bytes
) -> list[RawReply]:
    step = 0.1 * int(site_id[-1])
    update = bytes(vector_bytes(vector_from_bytes(payload) + np.float32(step)))
    is_training = manifest.kind == "train"
    said = Contribution(
        study_id=manifest.study_id,
        site_id=site_id,
        manifest_sha256=envelope.payload_digest,
        run_name=manifest.run_name,
        round_number=manifest.round_number,
        attempt=manifest.attempt,
        kind=manifest.kind,
        update_sha256=hashlib.sha256(update).hexdigest() if is_training else None,
        num_elements=len(update) // 4 if is_training else 0,
        evaluate_metrics={"auc": 0.7},
    )
    signed = said.sign(sites.consortium.site_key(site_id))
    return [reply(site_id, signed, update if is_training else b"")]


def silent(*_: Any) -> list[RawReply]:
    return []


def late(_sites: Sites, site_id: str, *_: Any) -> list[RawReply]:
    return [reply(site_id, None, code=DropCode.DEADLINE)]


def twice(sites: Sites, site_id: str, *rest: Any) -> list[RawReply]:
    """A second answer, and one in the name of a site that was not asked."""
    (first,) = contribute(sites, site_id, *rest)
    worse = bytes(vector_bytes(vector_from_bytes(first.payload) + np.float32(1000)))
    stranger = reply("stranger-1", first.envelope, first.payload)
    return [stranger, first, reply(site_id, first.envelope, worse), reply(site_id, None, code=None)]


def impersonate(sites: Sites, _site_id: str, *rest: Any) -> list[RawReply]:
    """site-1's node answers with what site-2 signed."""
    (stolen,) = contribute(sites, "site-2", *rest)
    return [reply("site-1", stolen.envelope, stolen.payload)]


class Mean:
    """An `Aggregator`: the weighted mean in the order of the replies, with a state that grows."""

    def __init__(self, fails_in: int | None = None) -> None:
        self._fails_in = fails_in
        self._rounds = np.zeros(1)
        self.orders: list[list[str]] = []

    def configure(self, round_number: int, vector: Vector, cohort: Sequence[str]) -> StrategyConfig:
        return {}

    def aggregate(self, round_number: int, replies: Iterator[SiteReply]) -> Aggregate:
        total, weights, order = None, 0.0, []
        for item in replies:
            part = item.load_vector().astype(np.float64) * item.weight
            total = part if total is None else total + part
            weights += item.weight
            order.append(item.site_id)
        self.orders.append(order)
        if round_number == self._fails_in:
            raise AggregationError("FH-TEST-002", "the strategy failed.")
        assert total is not None
        self._rounds += 1
        vector = (total / weights + 0.01 * self._rounds[0]).astype(np.float32)
        return Aggregate(vector=vector, train_metrics={}, evaluate_metrics={})

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        return {"rounds": self._rounds.copy()}

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        if state:
            self._rounds = np.array(state["rounds"], dtype=np.float64)


class Notes:
    """A `RunRecorder` that remembers."""

    def __init__(self) -> None:
        self.outcomes: list[RoundOutcome] = []

    def opened(self, manifest: Manifest) -> None:
        pass

    def waiting(self, present: int, wanted: int) -> None:
        pass

    def answered(self, manifest: Manifest, outcome: SiteOutcome) -> None:
        pass

    def draft(self, outcome: RoundOutcome) -> bytes:
        return f"draft of round {outcome.manifest.round_number}".encode()

    def closed(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)


@dataclass
class Bench:
    """A loop with its parts at hand."""

    sites: Sites
    folder: RunFolder
    notes: Notes = field(default_factory=Notes)
    mean: Mean = field(default_factory=Mean)

    def run(self, attempt: int = 1) -> NDArray[np.float32]:
        study, _ = self.sites.consortium.server.require()
        loop = RoundLoop(
            study=study,
            study_sha256=study_digest(study),
            run=study.runs[0],
            flower_run_id="1",
            folder=self.folder,
            signing_key=self.sites.consortium.server_key,
            transport=self.sites,
            aggregator=self.mean,
            recorder=self.notes,
            ledger_places=LedgerPlaces(self.sites.consortium.server.ledger_places),
            first_attempt=attempt,
        )
        return loop.run_all(read_last_checkpoint(self.folder)).vector

    def statuses(self) -> list[tuple[int, int, str, str]]:
        return [
            (o.manifest.round_number, o.manifest.attempt, o.manifest.kind, o.status)
            for o in self.notes.outcomes
        ]

    def codes(self, index: int = 0) -> dict[str, DropCode | None]:
        return {s.line.entry.site_id: s.drop_code for s in self.notes.outcomes[index].sites}


@pytest.fixture
def bench(new_consortium: Any) -> Bench:
    return make_bench(new_consortium)


def make_bench(new_consortium: Any, name: str = "c", **federation: Any) -> Bench:
    consortium = new_consortium(
        "site-1", "site-2", "site-3", name=name, content=study_content(**federation)
    )
    sites = Sites(consortium, {"site-1", "site-2", "site-3"})
    return Bench(sites, consortium.server.run("main"))


def test_all_rounds_and_a_closing_evaluation(bench: Bench) -> None:
    model = bench.run()
    kinds = [(1, 1, "train"), (2, 1, "train"), (3, 1, "train"), (4, 1, "evaluate")]
    assert bench.statuses() == [(*kind, "complete") for kind in kinds]
    step = (10 * 0.1 + 20 * 0.2 + 30 * 0.3) / 60
    np.testing.assert_allclose(model, 3 * step + 0.01 * (1 + 2 + 3), rtol=1e-5)
    assert list(bench.folder.spool.iterdir()) == []


def test_the_order_of_answers_changes_no_bit(new_consortium: Any) -> None:
    models = []
    for name, order in (("a", list), ("b", lambda s: list(reversed(s)))):
        made = make_bench(new_consortium, name)
        made.sites.order = order
        models.append(made.run().tobytes())
        assert made.mean.orders == [["site-1", "site-2", "site-3"]] * 3
    assert models[0] == models[1]


def test_sites_that_do_not_answer_are_dropped_with_the_reason(bench: Bench) -> None:
    bench.sites.answers = {("site-3", 1, 1): silent, ("site-2", 2, 1): late}
    bench.run()
    assert bench.codes(0)["site-3"] is DropCode.NO_REPLY
    assert bench.codes(1) == {"site-1": None, "site-2": DropCode.DEADLINE, "site-3": None}
    assert set(bench.codes(2).values()) == {None}


def test_a_second_answer_and_a_stranger_change_nothing(new_consortium: Any) -> None:
    plain, hostile = (make_bench(new_consortium, name) for name in ("a", "b"))
    hostile.sites.answers = {("site-1", number, 1): twice for number in (1, 2, 3)}
    assert plain.run().tobytes() == hostile.run().tobytes()
    assert set(hostile.codes(0)) == {"site-1", "site-2", "site-3"}


def test_an_answer_that_another_site_signed_is_dropped(bench: Bench) -> None:
    bench.sites.answers = {("site-1", 1, 1): impersonate}
    bench.run()
    assert bench.codes(0) == {"site-1": DropCode.BAD_SIGNATURE, "site-2": None, "site-3": None}
    assert bench.mean.orders[0] == ["site-2", "site-3"]


def test_a_void_round_leaves_the_model_and_is_tried_again(bench: Bench) -> None:
    bench.sites.answers = {("site-2", 2, 1): late, ("site-3", 2, 1): silent}
    bench.run()
    assert bench.statuses()[1:3] == [(2, 1, "train", "void"), (2, 2, "train", "complete")]
    void = bench.notes.outcomes[1]
    assert void.void_reason is VoidReason.MINIMUM_COHORT
    assert void.model_out_sha256 == void.manifest.model_sha256
    assert bench.notes.outcomes[2].manifest.model_sha256 == void.manifest.model_sha256
    assert void.aggregate is None
    assert len(bench.mean.orders) == 3, "one surviving site is never aggregated"


def test_too_many_void_rounds_end_the_run(new_consortium: Any) -> None:
    bench = make_bench(new_consortium, max_void_rounds=2)
    bench.sites.answers = {
        (site, 2, attempt): late for site in ("site-2", "site-3") for attempt in (1, 2)
    }
    with pytest.raises(QuorumError, match="FH-QUORUM-002"):
        bench.run()
    assert read_last_checkpoint(bench.folder).round_number == 1


def test_the_run_does_not_begin_below_the_minimum_cohort(bench: Bench) -> None:
    bench.sites.online = {"site-1"}
    with pytest.raises(QuorumError, match="FH-QUORUM-001"):
        bench.run()
    assert bench.sites.seen == []


def test_a_site_that_is_offline_is_not_invited(bench: Bench) -> None:
    bench.sites.online = {"site-1", "site-3", "stranger-1"}
    bench.run()
    assert [m.site_id for m in bench.sites.seen[0].cohort] == ["site-1", "site-3"]


def test_a_run_that_was_interrupted_ends_with_the_same_model(new_consortium: Any) -> None:
    whole = make_bench(new_consortium, "whole")
    expected = whole.run()

    class Killed(BaseException):
        pass

    def dies(*_: Any) -> list[RawReply]:
        raise Killed

    broken = make_bench(new_consortium, "broken")
    broken.sites.answers = {("site-2", 3, 1): dies}
    with pytest.raises(Killed):
        broken.run()
    assert read_last_checkpoint(broken.folder).round_number == 2
    again = Bench(Sites(broken.sites.consortium, {"site-1", "site-2", "site-3"}), broken.folder)
    assert again.run(attempt=2).tobytes() == expected.tobytes()
    assert again.statuses()[0] == (3, 2, "train", "complete")


def test_a_strategy_that_fails_leaves_a_void_record_and_no_update(bench: Bench) -> None:
    bench.mean = Mean(fails_in=2)
    with pytest.raises(AggregationError, match="FH-TEST-002"):
        bench.run()
    last = bench.notes.outcomes[-1]
    assert (last.status, last.void_reason) == ("void", VoidReason.AGGREGATION_FAILED)
    assert last.model_out_sha256 == last.manifest.model_sha256
    assert read_last_checkpoint(bench.folder).round_number == 1
    assert list(bench.folder.spool.iterdir()) == []
