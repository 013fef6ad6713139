"""What happened in a round, from its opening to its record. Filled by `round_loop`, read by `records`."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from fedhealth.contracts.aggregation import Aggregate, SiteReply
from fedhealth.contracts.codes import DropCode
from fedhealth.errors import AggregationError
from fedhealth.evidence.signing import Envelope
from fedhealth.evidence.statements import Contribution, Manifest
from fedhealth.report.record import VoidReason
from fedhealth.server.enrolment import utc_now
from fedhealth.server.masked_round import MaskedRound, MaskedTotal
from fedhealth.server.roster import RosterLine


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
    masked: MaskedRound | None = None
    total: MaskedTotal | None = None


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


class Stopwatch:
    """Seconds since the last lap, by name."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Note the seconds since the last lap under a name."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now


def sum_of(done: RoundOutcome) -> Iterator[SiteReply]:
    """The one reply that stands for all survivors of a masked round."""
    total, masked = done.total, done.masked
    if (
        total is None or total.vector is None or masked is None
    ):  # not reachable: such a round is void
        raise AggregationError("FH-AGG-001", "a masked round has no sum.")
    vector = total.vector
    yield SiteReply(
        site_id="sum-of-survivors",
        weight=total.weight,
        load_vector=lambda: vector,
        train_metrics=total.train_metrics,
        evaluate_metrics=total.evaluate_metrics,
        num_sites=len(masked.total.survivors),
    )


def open_outcome(
    manifest: Manifest, manifest_sha256: str, sites: list[SiteOutcome], clock: Stopwatch
) -> RoundOutcome:
    """A round that is at work: complete unless something is found."""
    return RoundOutcome(
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        status="complete",
        void_reason=None,
        model_out_sha256=manifest.model_sha256,
        sites=sites,
        aggregate=None,
        closed_at=utc_now(),
        seconds=clock.seconds,
    )


def void(outcome: RoundOutcome, reason: VoidReason) -> RoundOutcome:
    """The same round, void: the model stays as it is."""
    outcome.status, outcome.void_reason, outcome.closed_at = "void", reason, utc_now()
    return outcome
