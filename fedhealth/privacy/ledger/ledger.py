"""The budget ledger of one dataset: RESERVE, train, SEAL, send, COMMIT (docs/adr/0012).

`site/account.py` calls it. Every method that returns has made its line durable; what was reserved is spent
for ever, whatever happens next.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from fedhealth.privacy.accounting.events import Event
from fedhealth.privacy.ledger import problems
from fedhealth.privacy.ledger.entries import (
    CommitBody,
    OpenBody,
    RecoveredBody,
    ReserveBody,
    RoundKind,
    build,
)
from fedhealth.privacy.ledger.file import FILE_NAME, LedgerFile, read_lines
from fedhealth.privacy.ledger.mark import LedgerMark
from fedhealth.privacy.ledger.outbox import FOLDER_NAME, KEY_BYTES, Outbox, SealedAnswer
from fedhealth.privacy.ledger.storage import OsStorage, Storage, make_durable_folder
from fedhealth.privacy.ledger.view import LedgerView, RecoveryFacts, ReservationFacts

__all__ = [
    "BudgetLedger",
    "LedgerMark",
    "LedgerView",
    "RecoveryFacts",
    "Reservation",
    "ReservationFacts",
    "SealedAnswer",
    "read_ledger",
]

LOCK_TIMEOUT_S: Final = 60.0
"""A transaction takes milliseconds, and seconds when a large answer is sealed on a slow disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one manifest will cost, before anything is computed. Digests are SHA-256 in hex."""

    study_id: str
    study_sha256: str
    run_name: str
    round_number: int
    attempt: int
    kind: RoundKind
    manifest_sha256: str
    events: tuple[Event, ...]


class BudgetLedger:
    """One process's handle on a dataset's ledger; any number of processes may have one.

    Made by `open`. After a disk error (FH-LEDGER-008, or 007 when the rest could not be cut off) it must be
    opened anew.
    """

    def __init__(self, file: LedgerFile, outbox: Outbox) -> None:
        self._file = file
        self._outbox = outbox

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        dataset: str,
        key: bytes,
        storage: Storage | None = None,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> Self:
        """Open a dataset's ledger, and make one when there is none. What is read is made durable first.

        Args:
            folder: of this dataset alone, on a local disk.
            dataset: its name; a ledger of another one is refused.
            key: 32 bytes that sealed answers are encrypted with.
            storage: how the disk is changed; left out: the real one.
            lock_timeout_s: longest wait for another process's transaction.

        Raises:
            PrivacyError: FH-LEDGER-001 or 002 a line is broken or unknown; 003 another dataset; 005 the lock is
                held; 007 or 008 the disk; 015 a bad key or name; 016 the ledger was emptied.
        """
        disk = OsStorage() if storage is None else storage
        if len(key) != KEY_BYTES:
            raise problems.bad_request(f"a key of {len(key)} bytes instead of {KEY_BYTES}")
        opening = build(OpenBody, dataset=dataset, ledger=secrets.token_hex(16))
        folder = folder.absolute()
        try:
            make_durable_folder(disk, folder / FOLDER_NAME)
        except OSError as error:
            raise problems.disk(error) from None
        ledger = cls(
            LedgerFile(folder, storage=disk, lock_timeout_s=lock_timeout_s),
            Outbox(folder / FOLDER_NAME, key=key, storage=disk),
        )
        ledger._begin(opening)
        return ledger

    def close(self) -> None:
        """Give the file back; using the ledger afterwards is refused."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(
        self, reservation: Reservation, *, allow: Callable[[LedgerView], None]
    ) -> LedgerMark:
        """Spend, durably. Nothing may be computed from patients before this returns.

        Args:
            reservation: what is asked for.
            allow: called under the lock with all that was spent before; raises to refuse. It may not call this
                ledger again.

        Raises:
            PrivacyError: FH-LEDGER-006 a replay; what `allow` raises; 007 or 008 the disk; see `open`.
        """
        body = build(ReserveBody, **asdict(reservation) | {"events": reservation.events})
        with self._file.transaction() as state:
            state.check_reserve(body)
            allow(state.view())
            return self._file.append(body)

    def seal(self, manifest_sha256: str, answer: SealedAnswer) -> None:
        """Keep the answer, encrypted and durable. It may not be sent before this returns.

        Raises:
            PrivacyError: FH-LEDGER-010 not reserved, or sealed before; 007 or 008 the disk; 017 too large.
        """
        with self._file.transaction() as state:
            state.check_seal(manifest_sha256)
            try:
                body = self._outbox.write(manifest_sha256, answer, ledger_id=state.ledger_id)
            except OSError as error:
                if not problems.is_full_disk(error):
                    self._file.poison()
                raise problems.disk(error) from None
            self._file.append(body)
            self._outbox.prune(state.kept)

    def commit(self, manifest_sha256: str) -> None:
        """Write down that the answer went out. Nothing happens the second time.

        Raises:
            PrivacyError: FH-LEDGER-010 it was never sealed; 007 or 008 the disk.
        """
        with self._file.transaction() as state:
            if state.needs_commit(manifest_sha256):
                self._file.append(CommitBody(manifest_sha256=manifest_sha256))

    def sealed(self, manifest_sha256: str) -> SealedAnswer | None:
        """The answer of a manifest, to be sent again byte by byte; None when none was sealed or it is pruned.

        Raises:
            PrivacyError: FH-LEDGER-011 it is damaged; 012 the key is another one. What it cost stays spent.
        """
        with self._file.transaction() as state:
            seal = state.kept_seal(manifest_sha256)
            return None if seal is None else self._outbox.read(seal, ledger_id=state.ledger_id)

    def recover(self, lost: Sequence[Event], *, study_id: str, witness: LedgerMark) -> LedgerMark:
        """Add what a newer, lost copy had spent, after a restore from a backup. The same twice counts once.

        Args:
            lost: events that the server's records show and this copy lacks; may be empty when only lines that
                cost nothing are missing.
            study_id: whose they are.
            witness: the last place that the server has seen; `contains` is true for it from then on.

        Raises:
            PrivacyError: FH-LEDGER-015 a value outside its range; 007 or 008 the disk.
        """
        body = build(RecoveredBody, study_id=study_id, events=tuple(lost), witness=asdict(witness))
        with self._file.transaction() as state:
            if state.holds_recovery(body):
                return state.mark
            return self._file.append(body)

    @property
    def mark(self) -> LedgerMark:
        """Place of the last line, whoever wrote it."""
        with self._file.transaction() as state:
            return state.mark

    def contains(self, mark: LedgerMark) -> bool:
        """Does this copy hold that line, or a recovery of it? False: this is an older copy, or another ledger."""
        with self._file.transaction() as state:
            return state.contains(mark)

    def view(self) -> LedgerView:
        """All that was spent up to now, by all processes."""
        with self._file.transaction() as state:
            return state.view()

    def _begin(self, opening: OpenBody) -> None:
        with self._file.transaction() as state:
            if state.opening is None:
                if not self._outbox.is_empty:
                    raise problems.lost()
                self._file.append(opening)
            elif state.opening.body.dataset != opening.dataset:
                raise problems.other_dataset(state.opening.body.dataset, opening.dataset)
            self._file.make_durable_again()


def read_ledger(folder: Path) -> LedgerView:
    """What a ledger says, for reports: changes nothing, needs no key, waits for no lock.

    Raises:
        PrivacyError: FH-LEDGER-001 or 002 a line is broken or unknown; 008 it cannot be read; 013 there is none.
    """
    try:
        data = (folder / FILE_NAME).read_bytes()
    except FileNotFoundError:
        raise problems.absent() from None
    except OSError as error:
        raise problems.disk(error) from None
    return read_lines(data).view()
