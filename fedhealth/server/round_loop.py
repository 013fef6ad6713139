"""The rounds of one run at the consortium. Read this first: it is the list of a round's steps.

It knows no Flower: `RoundTransport` carries messages, an `Aggregator` folds updates, `RunRecorder` writes what
happened. A round ends in one of two ways: complete (a new model) or void (the model unchanged, and said so).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import Aggregate, Aggregator, SiteReply
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import vector_bytes, vector_digest
from fedhealth.errors import AggregationError, FedHealthError, QuorumError
from fedhealth.evidence.signing import Envelope, SigningKey
from fedhealth.evidence.statements import (
    CohortMember,
    Contribution,
    Manifest,
    RoundPrivacy,
    manifest_tensors,
)
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.report.record import VoidReason
from fedhealth.server.checkpoint import Checkpoint, write_checkpoint
from fedhealth.server.contributions import verify_contribution
from fedhealth.server.enrolment import utc_now
from fedhealth.server.gathering import Gathering, Presence
from fedhealth.server.home import RunFolder
from fedhealth.server.ledger_places import LedgerPlaces
from fedhealth.server.roster import RosterLine
from fedhealth.server.spool import Spool

log = logging.getLogger("fedhealth.server")


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
        self, sites: Sequence[str], envelope: Envelope, payload: bytes, *, ttl_s: float, kind: str
    ) -> Iterator[RawReply]:
        """Send to every site and give replies as they come, until all are in or `ttl_s` passed."""
        ...


@dataclass(slots=True, kw_only=True)
class SiteOutcome:
    """What one site did in a round."""

    line: RosterLine
    drop_code: DropCode | None
    contribution: Contribution | None = None
    envelope: Envelope | None = None
    contribution_sha256: str | None = None
    update_bytes: int = 0
    answered_after_s: float | None = None


@dataclass(slots=True, kw_only=True)
class RoundOutcome:
    """All that a round record is made from."""

    manifest: Manifest
    manifest_sha256: str
    status: Literal["complete", "void"]
    void_reason: VoidReason | None
    model_out_sha256: str
    sites: list[SiteOutcome]
    aggregate: Aggregate | None
    closed_at: str
    seconds: dict[str, float]


class RunRecorder(Protocol):
    """Writes what happened the moment it happened."""

    def opened(self, manifest: Manifest) -> None:
        """A round begins."""
        ...

    def waiting(self, present: int, wanted: int) -> None:
        """The cohort is not there yet."""
        ...

    def answered(self, manifest: Manifest, outcome: SiteOutcome) -> None:
        """A site answered."""
        ...

    def draft(self, outcome: RoundOutcome) -> bytes:
        """The record of a round that is about to be checkpointed."""
        ...

    def closed(self, outcome: RoundOutcome) -> None:
        """A round ended: record and report are due now."""
        ...


@dataclass(slots=True, kw_only=True)
class RoundLoop:
    """One run, from its last checkpoint to its closing evaluation."""

    study: Study
    study_sha256: str
    run: RunPlan
    flower_run_id: str
    folder: RunFolder
    signing_key: SigningKey = field(repr=False)
    transport: RoundTransport
    aggregator: Aggregator
    recorder: RunRecorder
    ledger_places: LedgerPlaces
    first_attempt: int
    _gathering: Gathering = field(init=False)

    def __post_init__(self) -> None:
        self._gathering = Gathering(
            rules=self.study.federation, presence=self.transport, waiting=self.recorder.waiting
        )

    def run_all(self, start: Checkpoint) -> Checkpoint:
        """Train the remaining rounds, then evaluate the final model everywhere.

        Raises:
            QuorumError: the minimum cohort did not come, or too many rounds in a row were void.
            AggregationError: the strategy failed.
        """
        self.aggregator.load_state_dict(start.strategy_state)
        now = start
        attempt, voids = self.first_attempt, 0
        while now.round_number < self.run.num_rounds:
            outcome, after = self._train_round(now, attempt)
            self.recorder.closed(outcome)
            if outcome.status == "complete":
                now, attempt, voids = after, 1, 0
                continue
            attempt, voids = attempt + 1, voids + 1
            if voids >= self.study.federation.max_void_rounds:
                raise _too_many_voids(self.run.name, voids)
        self._close_run(now, attempt)
        return now

    def _close_run(self, now: Checkpoint, attempt: int) -> None:
        """Deliver the final model; a void trip is tried again, since sites keep what it brings."""
        for tries in range(self.study.federation.max_void_rounds):
            outcome = self._evaluate_round(now, attempt + tries)
            self.recorder.closed(outcome)
            if outcome.status == "complete":
                return
        raise _too_many_voids(self.run.name, self.study.federation.max_void_rounds)

    def _train_round(self, now: Checkpoint, attempt: int) -> tuple[RoundOutcome, Checkpoint]:
        """One round: cohort, manifest, exchange, fold, checkpoint."""
        clock = _Stopwatch()
        cohort = self._gathering.gather("train")
        clock.lap("gather")
        spool = Spool(self.folder.spool)
        manifest = self._manifest(now, cohort, attempt, "train")
        outcomes, digest = self._exchange(manifest, now, cohort, spool)
        clock.lap("exchange")
        contributed = [outcome for outcome in outcomes if outcome.drop_code is None]
        if len(contributed) < manifest.min_cohort:
            spool.clear()
            void = _outcome(manifest, digest, outcomes, manifest.model_sha256, clock)
            return _void(void, VoidReason.MINIMUM_COHORT), now
        try:
            replies = self._replies(contributed, spool)
            aggregate = self.aggregator.aggregate(manifest.round_number, replies)
        except FedHealthError:
            spool.clear()
            failed = _outcome(manifest, digest, outcomes, manifest.model_sha256, clock)
            self.recorder.closed(_void(failed, VoidReason.AGGREGATION_FAILED))
            raise
        clock.lap("aggregate")
        done = _outcome(manifest, digest, outcomes, vector_digest(aggregate.vector), clock)
        done.aggregate = aggregate
        after = Checkpoint(
            round_number=manifest.round_number,
            spec=now.spec,
            vector=aggregate.vector,
            strategy_state=self.aggregator.state_dict(),
            # A crash between checkpoint and report must not lose the round's record.
            record=self.recorder.draft(done),
        )
        write_checkpoint(self.folder, after)
        spool.clear()
        clock.lap("checkpoint")
        done.closed_at = utc_now()
        return done, after

    def _evaluate_round(self, now: Checkpoint, attempt: int) -> RoundOutcome:
        """The closing trip: everybody gets the final model and tells its metrics."""
        clock = _Stopwatch()
        cohort = self._gathering.gather("evaluate")
        clock.lap("gather")
        manifest = self._manifest(now, cohort, attempt, "evaluate")
        outcomes, digest = self._exchange(manifest, now, cohort, Spool(self.folder.spool))
        clock.lap("exchange")
        done = _outcome(manifest, digest, outcomes, manifest.model_sha256, clock)
        if sum(outcome.drop_code is None for outcome in outcomes) < manifest.min_cohort:
            return _void(done, VoidReason.MINIMUM_COHORT)
        return done

    def _manifest(
        self,
        now: Checkpoint,
        cohort: Sequence[RosterLine],
        attempt: int,
        kind: Literal["train", "evaluate"],
    ) -> Manifest:
        site_ids = [line.entry.site_id for line in cohort]
        number = now.round_number + 1
        wishes = self.aggregator.configure(number, now.vector, site_ids) if kind == "train" else {}
        return Manifest(
            study_id=self.study.id,
            study_sha256=self.study_sha256,
            run_name=self.run.name,
            flower_run_id=self.flower_run_id,
            round_number=number,
            attempt=attempt,
            kind=kind,
            model_sha256=vector_digest(now.vector),
            tensors=manifest_tensors(now.spec),
            cohort=tuple(
                CohortMember(
                    site_id=line.entry.site_id,
                    key_id=line.entry.key_id,
                    ledger=self.ledger_places.of(line.entry.site_id),
                )
                for line in cohort
            ),
            min_cohort=self.study.federation.min_cohort,
            strategy_config=wishes,
            privacy=RoundPrivacy.of(self.study),
            deadline_s=self.study.federation.round_deadline_s,
            opened_at=utc_now(),
        )

    def _exchange(
        self, manifest: Manifest, now: Checkpoint, cohort: Sequence[RosterLine], spool: Spool
    ) -> tuple[list[SiteOutcome], str]:
        """Send the manifest to the cohort; verify and spool each answer as it comes."""
        envelope = manifest.sign(self.signing_key)
        self.recorder.opened(manifest)
        outcomes = {
            line.entry.site_id: SiteOutcome(line=line, drop_code=DropCode.NO_REPLY)
            for line in cohort
        }
        replies = self.transport.exchange(
            list(outcomes),
            envelope,
            bytes(vector_bytes(now.vector)),
            ttl_s=manifest.deadline_s,
            kind=manifest.kind,
        )
        for reply in replies:
            outcome = outcomes.get(reply.site_id)
            if outcome is None or outcome.answered_after_s is not None:
                continue  # one answer a site: a second one changes nothing
            self._take(reply, outcome, manifest, envelope.payload_digest, spool)
            self._gathering.leave(reply.site_id, outcome.drop_code)
            self.recorder.answered(manifest, outcome)
        return list(outcomes.values()), envelope.payload_digest

    def _take(
        self,
        reply: RawReply,
        outcome: SiteOutcome,
        manifest: Manifest,
        manifest_sha256: str,
        spool: Spool,
    ) -> None:
        outcome.answered_after_s = reply.answered_after_s
        if reply.envelope is None:
            outcome.drop_code = reply.code or DropCode.PROTOCOL
            return
        verdict = verify_contribution(
            reply.envelope,
            reply.payload,
            manifest,
            manifest_sha256,
            outcome.line,
            plan=plan_site(self.study, outcome.line.entry.train_size),
        )
        outcome.drop_code = verdict.drop_code
        outcome.contribution = verdict.contribution
        spend = verdict.contribution.privacy if verdict.contribution else None
        if spend is not None:
            if self.ledger_places.has_fallen(reply.site_id, spend.ledger):
                outcome.drop_code = outcome.drop_code or DropCode.LEDGER_REFUSED
            self.ledger_places.saw(reply.site_id, spend.ledger)
        if verdict.contribution is not None:
            outcome.envelope = reply.envelope
            outcome.contribution_sha256 = reply.envelope.payload_digest
            outcome.update_bytes = len(reply.payload)
        if outcome.drop_code is None and manifest.kind == "train":
            spool.put(reply.site_id, reply.payload)

    def _replies(self, contributed: Sequence[SiteOutcome], spool: Spool) -> Iterator[SiteReply]:
        """Verified contributions in roster order; vectors are mapped when they are asked for."""
        for outcome in contributed:
            site_id = outcome.line.entry.site_id
            said = outcome.contribution
            if said is None:  # not reachable: a site without a contribution has a drop code
                raise AggregationError("FH-AGG-001", "a contribution is missing.")
            yield SiteReply(
                site_id=site_id,
                weight=float(outcome.line.entry.train_size),
                load_vector=lambda site_id=site_id: spool.load(site_id),  # type: ignore[misc]  # default binds
                train_metrics=said.train_metrics,
                evaluate_metrics=said.evaluate_metrics,
            )


class _Stopwatch:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def _outcome(
    manifest: Manifest,
    manifest_sha256: str,
    sites: list[SiteOutcome],
    model_out_sha256: str,
    clock: _Stopwatch,
) -> RoundOutcome:
    return RoundOutcome(
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        status="complete",
        void_reason=None,
        model_out_sha256=model_out_sha256,
        sites=sites,
        aggregate=None,
        closed_at=utc_now(),
        seconds=clock.seconds,
    )


def _void(outcome: RoundOutcome, reason: VoidReason) -> RoundOutcome:
    outcome.status, outcome.void_reason = "void", reason
    return outcome


def _too_many_voids(run_name: str, voids: int) -> QuorumError:
    return QuorumError(
        "FH-QUORUM-002",
        f"{voids} rounds of run {run_name} in a row were void.",
        why="Too few sites contributed; the model is the one of the last complete round.",
        fix="Read the last round's report for the reasons, then run `fedhealth server run` again.",
    )
