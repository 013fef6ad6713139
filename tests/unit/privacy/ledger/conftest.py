"""A ledger in a fresh folder, and reservations for it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedhealth.errors import PrivacyError
from fedhealth.privacy.accounting.events import Event, PoissonSubsampledGaussian
from fedhealth.privacy.ledger.ledger import (
    BudgetLedger,
    LedgerMark,
    LedgerView,
    Reservation,
    SealedAnswer,
)

KEY = bytes(range(32))


@dataclass(frozen=True)
class Desk:
    """What a site does with a ledger, in few words."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "ledger.jsonl"

    def open(self, **changes: Any) -> BudgetLedger:
        return BudgetLedger.open(self.folder, **({"dataset": "cohort", "key": KEY} | changes))

    @staticmethod
    def event(steps: int = 1) -> Event:
        return PoissonSubsampledGaussian(
            sampling_rate=0.1, noise_multiplier=1.5, steps=steps, split_id="a1"
        )

    @staticmethod
    def reservation(number: int = 1, **changes: Any) -> Reservation:
        plain = Reservation(
            study_id="study-a",
            study_sha256="0" * 64,
            run_name="main",
            round_number=number,
            attempt=1,
            kind="train",
            manifest_sha256="",
            events=(Desk.event(number),),
        )
        changed = replace(plain, **changes)
        digest = hashlib.sha256(repr(replace(changed, events=())).encode()).hexdigest()
        return changed if changed.manifest_sha256 else replace(changed, manifest_sha256=digest)

    @staticmethod
    def answer(number: int = 1) -> SealedAnswer:
        return SealedAnswer(header=b'{"n": %d}' % number, payload=bytes([number % 256]) * 1000)

    def reserve(self, ledger: BudgetLedger, number: int = 1, **changes: Any) -> str:
        asked = self.reservation(number, **changes)
        ledger.reserve(asked, allow=allow)
        return asked.manifest_sha256

    def answered(self, ledger: BudgetLedger, number: int = 1, **changes: Any) -> str:
        manifest = self.reserve(ledger, number, **changes)
        ledger.seal(manifest, self.answer(number))
        ledger.commit(manifest)
        return manifest

    @staticmethod
    def refused(call: Callable[[], object]) -> str:
        with pytest.raises(PrivacyError) as error:
            call()
        assert error.value.exit_code == 5
        assert error.value.why
        assert error.value.fix
        return error.value.code


def allow(view: LedgerView) -> None:
    assert isinstance(view.mark, LedgerMark)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(folder=tmp_path / "home" / "ledger" / "cohort")
