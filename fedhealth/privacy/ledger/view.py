"""What a ledger says: every reservation, and what was recovered. For the policy, `site budget` and reports."""

from dataclasses import dataclass, field
from typing import Literal

from fedhealth.privacy.accounting.events import Event
from fedhealth.privacy.ledger.entries import RoundKind
from fedhealth.privacy.ledger.mark import LedgerMark

ReservationState = Literal["reserved", "sealed", "committed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationFacts:
    """One reservation. `at` is the site's clock (UTC) at its reserve line; `state` how far it came."""

    sequence: int
    at: str
    study_id: str
    study_sha256: str
    run_name: str
    round_number: int
    attempt: int
    kind: RoundKind
    manifest_sha256: str
    events: tuple[Event, ...]
    state: ReservationState


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryFacts:
    """Spend that this copy lacked and that was added from a server's records."""

    sequence: int
    at: str
    study_id: str
    events: tuple[Event, ...]
    witness: LedgerMark


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """A ledger at one moment.

    Attributes:
        dataset: name of the data that it counts for.
        ledger_id: random, born with the ledger.
        opened_at: UTC.
        mark: place of the last line.
        lines: reservations, oldest first; all of them are spent.
        recoveries: oldest first; spent as well.
        marks: sequence and hash of every line, and of recovered places.
    """

    dataset: str
    ledger_id: str
    opened_at: str
    mark: LedgerMark
    lines: tuple[ReservationFacts, ...]
    recoveries: tuple[RecoveryFacts, ...]
    marks: frozenset[tuple[int, str]] = field(repr=False, default=frozenset())

    def contains(self, mark: LedgerMark) -> bool:
        """Does this copy hold that line, or a recovery of it?"""
        return (mark.sequence, mark.head) in self.marks

    def events(self, study_id: str | None = None) -> tuple[Event, ...]:
        """All that was spent, by one study or by all: reserved, sealed or not, and recovered."""
        spent = [(facts.study_id, facts.events) for facts in self.lines]
        spent += [(facts.study_id, facts.events) for facts in self.recoveries]
        return tuple(
            event for study, events in spent if study_id in (None, study) for event in events
        )
