"""Masked rounds without a network: the real round loop, and what each site's worker really does with a message."""
# ruff: noqa: ARG002 - the shapes of RoundTransport and RunRecorder are given

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedhealth.config.load import study_digest
from fedhealth.contracts.codes import DropCode
from fedhealth.errors import FedHealthError
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Manifest
from fedhealth.flower.strategy_adapter import build_aggregator
from fedhealth.secagg.guard import Guard
from fedhealth.server.checkpoint import Checkpoint, read_last_checkpoint
from fedhealth.server.enrolment import issued_sites
from fedhealth.server.ledger_places import LedgerPlaces
from fedhealth.server.messages import RawReply
from fedhealth.server.outcomes import RoundOutcome, SiteOutcome
from fedhealth.server.roster import RosterLine, read_roster
from fedhealth.server.round_loop import RoundLoop
from fedhealth.site.account import SiteAccount
from fedhealth.site.answers import SignedAnswer
from fedhealth.site.home import SiteHome
from fedhealth.site.local_round import RoundRequest, local_round
from fedhealth.site.manifest_checks import drop_code_of, envelope_of
from fedhealth.site.masking import KEY_REQUEST, SiteMasking, is_masking_request
from fedhealth.site.sessions import Sessions

from ..conftest import Consortium, study_content  # noqa: TID252 - tests are no installed package

MASKS: dict[str, Any] = {"min_survivors": 3, "value_range": 8.0, "colluding": 0}
"""With nobody colluding: five sites then survive two that drop out."""


def masked_content(masks: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
    content = study_content(**({"min_cohort": 3, "max_void_rounds": 1} | rules))
    return content | {"secure_aggregation": MASKS | (masks or {})}


class Site:
    """What a worker does with one message, without its socket."""

    def __init__(self, consortium: Consortium, site_id: str, guard: Guard | None = None) -> None:
        self.consortium, self.site_id = consortium, site_id
        self.home = SiteHome(consortium.sites[site_id].root)
        self.guard = guard
        self.restart()

    def restart(self) -> None:
        path = self.home.config_path
        if "secure_aggregation" not in path.read_text():
            path.write_text(path.read_text() + "secure_aggregation: {colluding: 0}\n")
        self.pinned = self.consortium.pinned(self.site_id)
        self.account = SiteAccount(self.home, self.pinned)
        self.sessions = Sessions(self.home, self.pinned)
        self.masking = SiteMasking(self.pinned, self.guard)

    def answer(self, envelope: Envelope, payload: bytes) -> SignedAnswer:
        header = envelope.model_dump()
        if is_masking_request(header):
            if envelope.payload_type == KEY_REQUEST:
                return self.masking.give_key(envelope_of(header))
            return self.masking.answer(envelope_of(header), payload)
        request = RoundRequest(
            header=header, payload=bytearray(payload), is_cancelled=lambda: False
        )
        return local_round(request, self.pinned, self.sessions, self.account, self.masking)


Fault = Callable[["Sites", str, Envelope, bytes], RawReply | None]


@dataclass
class Sites:
    """`RoundTransport` in memory. A fault takes the place of a site's answer to the n-th kind of message."""

    consortium: Consortium
    sites: dict[str, Site] = field(default_factory=dict)
    faults: dict[tuple[str, str], Fault] = field(default_factory=dict)
    received: list[bytes] = field(default_factory=list)
    sent: list[tuple[str, Envelope, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for site_id in self.consortium.sites:
            self.sites.setdefault(site_id, Site(self.consortium, site_id))

    def connected(self) -> set[str]:
        return set(self.sites)

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
        step = step_of(envelope)
        for site_id in sites:
            own = payload if isinstance(payload, bytes) else payload[site_id]
            self.sent.append((site_id, envelope, own))
            fault = self.faults.get((site_id, step))
            reply = (fault or ask)(self, site_id, envelope, own)
            if reply is not None:
                self.received += [b"" if reply.envelope is None else reply.envelope.to_bytes()]
                self.received.append(bytes(reply.payload))
                yield reply
            if is_enough is not None and is_enough():
                return


def step_of(envelope: Envelope) -> str:
    """manifest, keyrequest, agree or unmask."""
    kind = envelope.payload_type.split(".")[2]
    if kind == "unmaskrequest":
        return "agree" if '"step":"agree"' in envelope.payload else "unmask"
    return kind


def ask(sites: Sites, site_id: str, envelope: Envelope, payload: bytes) -> RawReply:
    try:
        answer = sites.sites[site_id].answer(envelope, payload)
    except FedHealthError as error:
        return reply(site_id, code=drop_code_of(error) or DropCode.SITE_ERROR)
    return reply(site_id, answer.contribution, bytes(answer.outbound.payload))


def silent(*_: Any) -> None:
    return None


def reply(
    site_id: str, envelope: Envelope | None = None, payload: bytes = b"", code: Any = None
) -> RawReply:
    return RawReply(
        site_id=site_id, envelope=envelope, code=code, payload=payload, answered_after_s=0.1
    )


class Notes:
    """`RunRecorder` that keeps what it is told."""

    def __init__(self) -> None:
        self.closed_rounds: list[RoundOutcome] = []

    def opened(self, manifest: Manifest) -> None:
        pass

    def waiting(self, present: int, wanted: int) -> None:
        pass

    def answered(self, manifest: Manifest, outcome: SiteOutcome) -> None:
        pass

    def draft(self, outcome: RoundOutcome) -> bytes:
        return b"{}"

    def closed(self, outcome: RoundOutcome) -> None:
        self.closed_rounds.append(outcome)


def loop_of(sites: Sites, name: str = "main") -> tuple[RoundLoop, Notes, Checkpoint]:
    consortium, notes = sites.consortium, Notes()
    study = consortium.server.require()[0]
    folder = consortium.server.run(name)
    run, start = study.run(name), read_last_checkpoint(folder)
    loop = RoundLoop(
        study=study,
        study_sha256=study_digest(study),
        run=run,
        flower_run_id="1",
        folder=folder,
        signing_key=consortium.server_key,
        transport=sites,
        aggregator=build_aggregator(
            run, start.spec, min_cohort=study.federation.min_cohort, study=study
        ),
        recorder=notes,
        ledger_places=LedgerPlaces(consortium.server.ledger_places),
        first_attempt=1,
        issued=issued_sites(consortium.server),
    )
    return loop, notes, start


def run(sites: Sites) -> tuple[np.ndarray[Any, Any], list[RoundOutcome]]:
    loop, notes, start = loop_of(sites)
    return loop.run_all(start).vector, notes.closed_rounds
