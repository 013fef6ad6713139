"""The rounds of one run at the consortium. Read this first: it is the list of a round's steps.

It knows no Flower: `RoundTransport` carries messages, an `Aggregator` folds updates, `RunRecorder` writes what
happened. A round ends in one of two ways: complete (a new model) or void (the model unchanged, and said so).
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.aggregation import Aggregator, SiteReply, Vector
from fedhealth.contracts.codes import DropCode
from fedhealth.contracts.tensors import vector_bytes, vector_digest
from fedhealth.contracts.update_encoding import encoding_of
from fedhealth.errors import AggregationError, FedHealthError, QuorumError
from fedhealth.evidence.signing import SigningKey
from fedhealth.evidence.statements import (
    CohortMember,
    Manifest,
    ManifestBlock,
    RoundPrivacy,
    manifest_tensors,
)
from fedhealth.privacy.accounting.plan import plan_site
from fedhealth.report.record import VoidReason
from fedhealth.secagg.patient_account import sum_terms
from fedhealth.secagg.round_settings import round_masking, weighs_by_size
from fedhealth.server.block_means import block_means, keep_unowned, over_owners
from fedhealth.server.checkpoint import Agreed, Checkpoint, read_agreed, write_checkpoint
from fedhealth.server.contributions import verify_contribution
from fedhealth.server.enrolment import utc_now
from fedhealth.server.gathering import (
    COHORT_POLL_S,
    Gathering,
    few_have_it,
    no_mask_keys,
    opened_before,
    too_few_owners,
)
from fedhealth.server.home import RunFolder
from fedhealth.server.ledger_places import LedgerPlaces
from fedhealth.server.masked_round import Masking
from fedhealth.server.messages import RawReply, RoundTransport
from fedhealth.server.outcomes import (
    RoundOutcome,
    RunRecorder,
    SiteOutcome,
    Stopwatch,
    open_outcome,
    sum_of,
    void,
)
from fedhealth.server.roster import RosterLine
from fedhealth.server.spool import Spool

log = logging.getLogger("fedhealth.server")


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
    issued: frozenset[str] = frozenset()
    """Sites of the roster that all sites were asked to pin; for studies with masks."""
    _gathering: Gathering = field(init=False)
    _masking: Masking | None = field(init=False, default=None)
    _agreed: Agreed = field(init=False)

    def __post_init__(self) -> None:
        self._agreed = read_agreed(self.folder)
        if self.study.secure_aggregation is not None:
            self._masking = Masking(
                study=self.study,
                run=self.run,
                folder=self.folder,
                signing_key=self.signing_key,
                transport=self.transport,
                issued=self.issued,
            )
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
        """One round: cohort, manifest, exchange, masks off, fold, checkpoint."""
        clock = Stopwatch()
        cohort = self._cohort("train", now)
        clock.lap("gather")
        spool = Spool(self.folder.spool)
        manifest = self._manifest(now, cohort, attempt, "train")
        done = self._exchange(manifest, now, cohort, spool, clock)
        contributed = [outcome for outcome in done.sites if outcome.drop_code is None]
        if done.void_reason is not None:
            spool.clear()
            return done, now
        try:
            blocks = block_means(manifest, [one.line.entry.site_id for one in contributed])
            replies = self._replies(contributed, spool) if done.total is None else sum_of(done)
            if blocks and done.total is None:
                by_size = weighs_by_size(self.study, self.run)
                replies = over_owners(list(replies), blocks, now.vector, by_size=by_size)
            aggregate = self.aggregator.aggregate(manifest.round_number, replies)
            keep_unowned(aggregate.vector, blocks, now.vector)
        except FedHealthError:
            spool.clear()
            self.recorder.closed(void(done, VoidReason.AGGREGATION_FAILED))
            raise
        clock.lap("aggregate")
        done.aggregate, done.model_out_sha256 = aggregate, vector_digest(aggregate.vector)
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
        clock = Stopwatch()
        cohort = self._cohort("evaluate", now)
        clock.lap("gather")
        manifest = self._manifest(now, cohort, attempt, "evaluate")
        return self._exchange(manifest, now, cohort, Spool(self.folder.spool), clock)

    def _cohort(self, kind: Literal["train", "evaluate"], now: Checkpoint) -> list[RosterLine]:
        """Who is asked: all that are online, and with masks those whose key of this run is known.

        Raises:
            QuorumError: see `Gathering.gather`; FH-QUORUM-004 too few sites gave a key, FH-QUORUM-005 a site is
                missing for which this round's sum was to be opened before, FH-QUORUM-007 fewer sites than a sum has
                to be about have a modality.
        """
        masking, rules = self._masking, self.study.federation
        if masking is None:
            return self._gathering.gather(kind)
        round_key: list[str | int] = [self.run.name, kind, now.round_number + 1]
        summed = self._agreed.summed_modalities if kind == "train" else ()
        model, begin, tries = vector_digest(now.vector), time.monotonic(), 0
        while True:
            known = masking.with_keys(self._gathering.gather(kind))
            if len(known) >= rules.min_cohort:
                chosen = masking.only_opened(known, round_key=round_key, model_sha256=model)
                is_over = time.monotonic() - begin >= rules.cohort_wait_s
                if chosen is not None and len(chosen) >= rules.min_cohort:
                    few = too_few_owners(chosen, summed, masking.floor)
                    if few is None:
                        return chosen
                    admitted = self.transport.roster()
                    if is_over or too_few_owners(admitted, few[:1], masking.floor):
                        raise few_have_it(*few, masking.floor)
                elif is_over:
                    raise opened_before()
            else:
                tries += 1
                if tries >= rules.max_void_rounds:
                    raise no_mask_keys(len(known), rules.min_cohort)
            time.sleep(COHORT_POLL_S)

    def _manifest(
        self,
        now: Checkpoint,
        cohort: Sequence[RosterLine],
        attempt: int,
        kind: Literal["train", "evaluate"],
    ) -> Manifest:
        site_ids = [line.entry.site_id for line in cohort]
        is_training = kind == "train"
        blocks = self._agreed.blocks if is_training else ()
        summed = self._agreed.summed_modalities if is_training else ()
        number = now.round_number + 1
        wishes = self.aggregator.configure(number, now.vector, site_ids) if is_training else {}
        masking = self._masking
        return Manifest(
            study_id=self.study.id,
            study_sha256=self.study_sha256,
            run_name=self.run.name,
            flower_run_id=self.flower_run_id,
            round_number=number,
            attempt=attempt,
            kind=kind,
            model_sha256=vector_digest(now.vector),
            frozen_sha256=self._agreed.frozen_sha256,
            tensors=manifest_tensors(now.spec),
            cohort=tuple(
                CohortMember(
                    site_id=line.entry.site_id,
                    key_id=line.entry.key_id,
                    ledger=self.ledger_places.of(line.entry.site_id),
                    mask_key=None if masking is None else masking.key_of(line.entry.site_id),
                    modalities=line.entry.modalities if blocks or summed else None,
                )
                for line in cohort
            ),
            blocks=tuple(
                ManifestBlock(modality=block.modality, tensors=block.tensors) for block in blocks
            ),
            summed_modalities=summed,
            min_cohort=self.study.federation.min_cohort,
            strategy_config=wishes,
            privacy=RoundPrivacy.of(self.study),
            update_encoding=encoding_of(self.study.federation.update_bits if is_training else 32),
            masking=round_masking(
                self.study,
                self.run,
                num_sites=len(cohort),
                num_elements=now.spec.num_elements,
            ),
            deadline_s=self.study.federation.round_deadline_s,
            opened_at=utc_now(),
        )

    def _exchange(
        self,
        manifest: Manifest,
        now: Checkpoint,
        cohort: Sequence[RosterLine],
        spool: Spool,
        clock: Stopwatch,
    ) -> RoundOutcome:
        """Send the manifest to the cohort; verify each answer as it comes; take the masks off; complete or void."""
        envelope = manifest.sign(self.signing_key)
        digest = envelope.payload_digest
        self.recorder.opened(manifest)
        sites = {
            line.entry.site_id: SiteOutcome(line=line, drop_code=DropCode.NO_REPLY)
            for line in cohort
        }
        done = open_outcome(manifest, digest, list(sites.values()), clock)
        if self._masking is not None:
            done.masked = self._masking.open(manifest, digest, cohort)
        replies = self.transport.exchange(
            list(sites),
            envelope,
            bytes(vector_bytes(now.vector)),
            ttl_s=manifest.deadline_s,
            kind=manifest.kind,
        )
        for reply in replies:
            outcome = sites.get(reply.site_id)
            if outcome is None or outcome.answered_after_s is not None:
                continue  # one answer a site: a second one changes nothing
            self._take(reply, outcome, done, spool, now.vector)
            self._gathering.leave(reply.site_id, outcome.drop_code)
            if self._masking is not None:
                self._masking.forget(reply.site_id, outcome.drop_code)
            self.recorder.answered(manifest, outcome)
        clock.lap("exchange")
        num_answered = sum(outcome.drop_code is None for outcome in done.sites)
        has_quorum = done.masked is None or done.masked.total.has_quorum
        if num_answered < manifest.min_cohort or not has_quorum:
            return void(done, VoidReason.MINIMUM_COHORT)
        if done.masked is not None and not done.masked.total.has_owners:
            return void(done, VoidReason.MINIMUM_OWNERS)
        if self._masking is not None and done.masked is not None:
            done.total = self._masking.unmask(done.masked, manifest, digest, now.vector)
            clock.lap("unmask")
            if done.total is None:
                is_opened = done.masked.total.has_shares
                return void(
                    done,
                    VoidReason.SUM_NOT_USABLE if is_opened else VoidReason.MASKS_NOT_REMOVED,
                )
        done.closed_at = utc_now()
        return done

    def _take(
        self,
        reply: RawReply,
        outcome: SiteOutcome,
        done: RoundOutcome,
        spool: Spool,
        origin: Vector,
    ) -> None:
        manifest, masked = done.manifest, done.masked
        outcome.answered_after_s = reply.answered_after_s
        if reply.envelope is None:
            outcome.drop_code = reply.code or DropCode.PROTOCOL
            return
        size = outcome.line.entry.train_size
        verdict = verify_contribution(
            reply.envelope,
            reply.payload,
            manifest,
            done.manifest_sha256,
            outcome.line,
            origin=origin,
            plan=None if size is None else plan_site(self.study, size),
            num_masked_words=None if masked is None else masked.layout.num_words,
            sums=sum_terms(self.study, manifest.spec.num_elements),
        )
        outcome.drop_code = verdict.drop_code
        outcome.contribution = verdict.contribution
        spend = verdict.contribution.privacy if verdict.contribution else None
        if spend is not None:
            if self.ledger_places.has_fallen(reply.site_id, spend.ledger):
                outcome.drop_code = outcome.drop_code or DropCode.LEDGER_REFUSED
            self.ledger_places.saw(reply.site_id, spend.ledger)
        said = verdict.contribution
        if said is not None:
            outcome.envelope = reply.envelope
            outcome.contribution_sha256 = reply.envelope.payload_digest
            outcome.update_bytes = len(reply.payload)
        if said is None or outcome.drop_code is not None:
            return
        if masked is not None:
            is_in = said.masked is not None and masked.total.add(
                reply.site_id, said.masked.envelope, reply.payload
            )
            outcome.drop_code = None if is_in else DropCode.CONTRIBUTION_INVALID
        elif verdict.vector is not None:
            spool.put(reply.site_id, verdict.vector)

    def _replies(self, contributed: Sequence[SiteOutcome], spool: Spool) -> Iterator[SiteReply]:
        """Verified contributions in roster order; vectors are mapped when they are asked for."""
        for outcome in contributed:
            site_id = outcome.line.entry.site_id
            said = outcome.contribution
            if said is None:  # not reachable: a site without a contribution has a drop code
                raise AggregationError("FH-AGG-001", "a contribution is missing.")
            yield SiteReply(
                site_id=site_id,
                weight=float(
                    outcome.line.entry.train_size or 1
                ),  # it is told where nothing is masked
                load_vector=lambda site_id=site_id: spool.load(site_id),  # type: ignore[misc]  # default binds
                train_metrics=said.train_metrics,
                evaluate_metrics=said.evaluate_metrics,
            )


def _too_many_voids(run_name: str, voids: int) -> QuorumError:
    return QuorumError(
        "FH-QUORUM-002",
        f"{voids} rounds of run {run_name} in a row were void.",
        why="Too few sites contributed; the model is the one of the last complete round.",
        fix="Read the last round's report for the reasons, then run `fedhealth server run` again.",
    )
