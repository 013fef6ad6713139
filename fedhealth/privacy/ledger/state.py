"""A ledger in memory: lines are folded in one by one, and the rules between them are held here."""

from dataclasses import dataclass, replace
from typing import Final

from fedhealth.errors import PrivacyError
from fedhealth.privacy.ledger import problems
from fedhealth.privacy.ledger.entries import (
    GENESIS,
    AnyLine,
    CommitBody,
    OpenBody,
    OpenLine,
    RecoveredBody,
    ReserveBody,
    SealBody,
    WitnessBody,
    decode_line,
)
from fedhealth.privacy.ledger.mark import LedgerMark
from fedhealth.privacy.ledger.view import LedgerView, RecoveryFacts, ReservationFacts

KEPT_ANSWERS: Final = 2
"""Sealed answers kept for each run of a study. A server asks again for its last round only; one to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The first line."""

    body: OpenBody
    at: str


class LedgerState:
    """Everything that the lines up to `mark` say. A line that breaks a rule changes nothing."""

    def __init__(self) -> None:
        self.mark = LedgerMark(sequence=0, head=GENESIS)
        self.opening: Opening | None = None
        self._num_lines = 0
        self._reservations: dict[str, ReservationFacts] = {}
        self._seals: dict[str, SealBody] = {}
        self._recoveries: list[RecoveryFacts] = []
        self._orders: dict[tuple[str, str, str], tuple[int, int, int]] = {}
        self._kept: dict[tuple[str, str], tuple[str, ...]] = {}
        self._marks: set[tuple[int, str]] = set()

    @property
    def ledger_id(self) -> str:
        """Random, from the first line.

        Raises:
            PrivacyError: FH-LEDGER-013 there is no line yet.
        """
        if self.opening is None:
            raise problems.absent()
        return self.opening.body.ledger

    def fold(self, raw: bytes) -> None:
        """Take one line of the file in.

        Raises:
            PrivacyError: FH-LEDGER-001 it is broken or breaks a rule; FH-LEDGER-002 it is unknown.
        """
        number = self._num_lines + 1
        line, mark = decode_line(raw, last=self.mark, number=number)
        try:
            self._apply(line)
        except PrivacyError as error:
            raise problems.broken(number, error.what.removesuffix(".")) from None
        self._num_lines, self.mark = number, mark
        self._marks.add((mark.sequence, mark.head))

    def check_reserve(self, body: ReserveBody) -> None:
        """Refuse a manifest that was reserved, and a round that is not after the last one of its run.

        Raises:
            PrivacyError: FH-LEDGER-006 a replay.
        """
        if body.manifest_sha256 in self._reservations:
            raise problems.replay(
                f"this manifest of round {body.round_number} attempt {body.attempt} was reserved before"
            )
        last = self._orders.get((body.study_id, body.study_sha256, body.run_name))
        if last is not None and body.order <= last:
            raise problems.replay(
                f"round {body.round_number} attempt {body.attempt} ({body.kind}) is not after round "
                f"{last[0]} attempt {last[1]}, which was reserved"
            )

    def check_seal(self, manifest_sha256: str) -> None:
        """Refuse to seal what was not reserved, or twice.

        Raises:
            PrivacyError: FH-LEDGER-010.
        """
        state = self._state_of(manifest_sha256)
        if state != "reserved":
            raise problems.wrong_state(
                f"an answer cannot be sealed: it is {state or 'not reserved'}"
            )

    def needs_commit(self, manifest_sha256: str) -> bool:
        """Is it sealed and not yet committed?

        Raises:
            PrivacyError: FH-LEDGER-010 it was never sealed.
        """
        state = self._state_of(manifest_sha256)
        if state not in {"sealed", "committed"}:
            raise problems.wrong_state(
                f"an answer cannot be committed: it is {state or 'not reserved'}"
            )
        return state == "sealed"

    def kept_seal(self, manifest_sha256: str) -> SealBody | None:
        """The seal of an answer that is still kept."""
        return self._seals[manifest_sha256] if manifest_sha256 in self.kept else None

    @property
    def kept(self) -> frozenset[str]:
        """Manifests whose sealed answers are kept."""
        return frozenset(manifest for kept in self._kept.values() for manifest in kept)

    def contains(self, mark: LedgerMark) -> bool:
        """Is there a line of that number and hash, or was one recovered?"""
        return (mark.sequence, mark.head) in self._marks

    def holds_recovery(self, body: RecoveredBody) -> bool:
        """Was the very same recovery written before?"""
        return (body.study_id, body.events, _mark(body.witness)) in [
            (facts.study_id, facts.events, facts.witness) for facts in self._recoveries
        ]

    def view(self) -> LedgerView:
        """A copy that does not change.

        Raises:
            PrivacyError: FH-LEDGER-013 there is no line yet.
        """
        if self.opening is None:
            raise problems.absent()
        return LedgerView(
            dataset=self.opening.body.dataset,
            ledger_id=self.opening.body.ledger,
            opened_at=self.opening.at,
            mark=self.mark,
            lines=tuple(self._reservations.values()),
            recoveries=tuple(self._recoveries),
            marks=frozenset(self._marks),
        )

    def _state_of(self, manifest_sha256: str) -> str | None:
        facts = self._reservations.get(manifest_sha256)
        return facts.state if facts else None

    def _apply(self, line: AnyLine) -> None:
        if isinstance(line, OpenLine) != (self.opening is None):
            raise problems.wrong_state("only the first line opens a ledger")
        body = line.body
        if isinstance(body, OpenBody):
            self.opening = Opening(body=body, at=line.at)
        elif isinstance(body, ReserveBody):
            self._reserve(body, line)
        elif isinstance(body, SealBody):
            self._seal(body)
        elif isinstance(body, CommitBody):
            self._commit(body)
        else:
            self._recover(body, line)

    def _reserve(self, body: ReserveBody, line: AnyLine) -> None:
        self.check_reserve(body)
        self._orders[body.study_id, body.study_sha256, body.run_name] = body.order
        self._reservations[body.manifest_sha256] = ReservationFacts(
            sequence=line.seq,
            at=line.at,
            study_id=body.study_id,
            study_sha256=body.study_sha256,
            run_name=body.run_name,
            round_number=body.round_number,
            attempt=body.attempt,
            kind=body.kind,
            manifest_sha256=body.manifest_sha256,
            events=body.events,
            state="reserved",
        )

    def _seal(self, body: SealBody) -> None:
        self.check_seal(body.manifest_sha256)
        facts = self._reservations[body.manifest_sha256]
        self._reservations[body.manifest_sha256] = replace(facts, state="sealed")
        self._seals[body.manifest_sha256] = body
        run = (facts.study_id, facts.run_name)
        self._kept[run] = (*self._kept.get(run, ()), body.manifest_sha256)[-KEPT_ANSWERS:]

    def _commit(self, body: CommitBody) -> None:
        if not self.needs_commit(body.manifest_sha256):
            raise problems.wrong_state("an answer was committed twice")
        facts = self._reservations[body.manifest_sha256]
        self._reservations[body.manifest_sha256] = replace(facts, state="committed")

    def _recover(self, body: RecoveredBody, line: AnyLine) -> None:
        mark = _mark(body.witness)
        self._recoveries.append(
            RecoveryFacts(
                sequence=line.seq,
                at=line.at,
                study_id=body.study_id,
                events=body.events,
                witness=mark,
            )
        )
        self._marks.add((mark.sequence, mark.head))


def _mark(witness: WitnessBody) -> LedgerMark:
    return LedgerMark(sequence=witness.sequence, head=witness.head)
