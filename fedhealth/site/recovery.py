"""`site recover`: an older copy of the privacy ledger learns what was spent since, from this site's own words.

The server keeps every answer that this site signed, with what it cost. Only what this site's own key signed is
believed, so nobody else can make an older copy pass for a whole one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedhealth.config.load import load_site
from fedhealth.errors import EvidenceError, IdentityError, UsageError
from fedhealth.evidence.signing import Envelope, SigningKey, VerifyKey
from fedhealth.evidence.statements import Contribution, PrivacySpend, open_statement
from fedhealth.privacy.accounting.events import Event, merge_events
from fedhealth.privacy.ledger.ledger import BudgetLedger
from fedhealth.privacy.ledger.mark import LedgerMark
from fedhealth.site.account import read_sealing_key
from fedhealth.site.home import SiteHome


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSpend:
    """One answer of this site: what its study had spent here by then, and the ledger's place."""

    study_id: str
    run_name: str
    order: tuple[int, int, bool]
    spend: PrivacySpend

    @property
    def mark(self) -> LedgerMark:
        """The place of the ledger that the answer shows."""
        place = self.spend.ledger
        return LedgerMark(sequence=place.sequence, head=place.head)


def recover_ledger(home: SiteHome, folder: Path) -> dict[str, Any]:
    """Append the spending that this site's signed answers show and its ledger does not hold.

    An answer shows all that its study had reserved at this site by then, so rounds that failed count too.

    Args:
        home: this site.
        folder: the server's ``runs`` folder, or the ``contributions`` folders of all its runs.

    Returns:
        For each study with a gap, how many steps of which mechanism were added.

    Raises:
        UsageError: FH-USAGE-040 no answer of this site in the folder; FH-USAGE-041 a line is no signed answer.
        PrivacyError: the ledger is damaged.
    """
    config = load_site(home.config_path)
    found = _read(folder, SigningKey.load(home.signing_key).public)
    if not found:
        raise UsageError(
            "FH-USAGE-040",
            f"the folder holds no answer that site {config.site_id} signed.",
            why="Only what this site signed itself tells what it spent.",
            fix="Ask the coordinator of every study on these data for runs/<run>/contributions, all of them.",
        )
    added: dict[str, Counter[str]] = {}
    with BudgetLedger.open(
        home.ledger(config),
        dataset=config.privacy.dataset,
        key=read_sealing_key(home.ledger_key),
    ) as ledger:
        for study_id in sorted({one.study_id for one in found}):
            own = [one for one in found if one.study_id == study_id]
            added[study_id] = _recover_study(ledger, own)
    return {
        "site_id": config.site_id,
        "added": {study_id: dict(kinds) for study_id, kinds in added.items() if kinds},
    }


def _recover_study(ledger: BudgetLedger, found: list[SignedSpend]) -> Counter[str]:
    """Every place that a server may have seen is recovered, not the newest alone: each must be found again."""
    ordered = sorted(found, key=lambda one: one.mark.sequence)
    lost = [one for one in ordered if not ledger.contains(one.mark)]
    added: Counter[str] = Counter()
    if not lost:
        return added
    base = _last_common(ordered, lost)
    before = base
    for one in lost:
        shown = one.spend.study_events
        if missing_events(before, shown):  # of another lost copy: count from where the copies part
            before = base
        events = missing_events(shown, before)
        ledger.recover(events, study_id=one.study_id, witness=one.mark)
        added.update({event.kind: event.steps for event in events})
        before = shown
    return added


def _last_common(ordered: list[SignedSpend], lost: list[SignedSpend]) -> tuple[Event, ...]:
    """What the last answer before the first lost one shows; nothing when no such answer is there.

    An answer that came after the restore is in this copy too, and must not be taken for one before it: it is of
    a later round. Without an answer in between, what this copy holds is counted twice, which is safe.
    """
    first = lost[0]
    common: tuple[Event, ...] = ()
    for one in ordered:
        is_before = one.mark.sequence < first.mark.sequence and one not in lost
        if is_before and (one.run_name != first.run_name or one.order < first.order):
            common = one.spend.study_events
    return common


def missing_events(shown: Iterable[Event], held: Iterable[Event]) -> tuple[Event, ...]:
    """What `shown` holds more than `held`, kind by kind and step by step; never less than nothing."""
    have = {event.model_copy(update={"steps": 1}): event.steps for event in merge_events(held)}
    lost = []
    for event in merge_events(shown):
        more = event.steps - have.get(event.model_copy(update={"steps": 1}), 0)
        if more > 0:
            lost.append(event.model_copy(update={"steps": more}))
    return tuple(lost)


def _read(folder: Path, key: VerifyKey) -> list[SignedSpend]:
    found = []
    for path in sorted(folder.rglob("round-*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            said = _open(line, path.name, key)
            if said is not None and said.privacy is not None:
                found.append(
                    SignedSpend(
                        study_id=said.study_id,
                        run_name=said.run_name,
                        order=(said.round_number, said.attempt, said.kind == "evaluate"),
                        spend=said.privacy,
                    )
                )
    return found


def _open(line: str, name: str, key: VerifyKey) -> Contribution | None:
    """The answer, if this site signed it; None for another site's.

    Raises:
        UsageError: FH-USAGE-041 it is no signed answer at all.
    """
    try:
        return open_statement(Contribution, Envelope.model_validate_json(line), key)
    except IdentityError:
        return None
    except (ValidationError, EvidenceError):
        raise UsageError(
            "FH-USAGE-041",
            f"{name} holds a line that is no signed answer of this version.",
            why="Leaving one out could leave spending out.",
            fix="Ask the coordinator for the file again, or update fedhealth.",
        ) from None
