"""`site recover`: an older copy of the privacy ledger learns from the server's records what was spent since.

Records can only add spending, so they need not be believed: a false one costs budget, it never gives any.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedhealth.config.load import load_site
from fedhealth.errors import UsageError
from fedhealth.privacy.accounting.events import Event, merge_events
from fedhealth.privacy.ledger.ledger import BudgetLedger
from fedhealth.privacy.ledger.mark import LedgerMark
from fedhealth.report.privacy_facts import SitePrivacyFact
from fedhealth.report.record import RoundRecord
from fedhealth.site.account import read_sealing_key
from fedhealth.site.home import SiteHome


def recover_ledger(home: SiteHome, records: Path) -> dict[str, Any]:
    """Append the spending that records show and the ledger does not.

    A record shows all that its study had spent at this site by then, so rounds that failed count too.

    Returns:
        For each study, how many steps of which mechanism were added; a study without a gap is left out.

    Raises:
        UsageError: FH-USAGE-040 no record of this site in the folder; FH-USAGE-041 a file is no round record.
        PrivacyError: the ledger is damaged.
    """
    config = load_site(home.config_path)
    shown = _shown(_read_records(records), config.site_id)
    if not shown:
        raise UsageError(
            "FH-USAGE-040",
            f"the folder holds no record of site {config.site_id} with what it spent.",
            fix="Ask the coordinator for runs/<run>/reports of the study, all of them.",
        )
    added: dict[str, Counter[str]] = {}
    with BudgetLedger.open(
        home.ledger(config),
        dataset=config.privacy.dataset,
        key=read_sealing_key(home.ledger_key),
    ) as ledger:
        # Every place that a server may have seen, not the newest alone: each must be found again.
        for study_id, fact in shown:
            mark = LedgerMark(sequence=fact.ledger_sequence, head=fact.ledger_head)
            if not ledger.contains(mark):
                lost = missing_events(fact.study_events, ledger.view().events(study_id))
                ledger.recover(lost, study_id=study_id, witness=mark)
                added.setdefault(study_id, Counter()).update({e.kind: e.steps for e in lost})
    return {
        "site_id": config.site_id,
        "added": {study_id: dict(kinds) for study_id, kinds in added.items()},
    }


def missing_events(shown: Iterable[Event], held: Iterable[Event]) -> tuple[Event, ...]:
    """What `shown` holds more than `held`, kind by kind and step by step; never less than nothing."""
    have = {event.model_copy(update={"steps": 1}): event.steps for event in merge_events(held)}
    lost = []
    for event in merge_events(shown):
        more = event.steps - have.get(event.model_copy(update={"steps": 1}), 0)
        if more > 0:
            lost.append(event.model_copy(update={"steps": more}))
    return tuple(lost)


def _shown(records: list[RoundRecord], site_id: str) -> list[tuple[str, SitePrivacyFact]]:
    """This site's accounts with their studies, oldest place first."""
    shown = [
        (record.study_id, fact.privacy)
        for record in records
        for fact in record.sites
        if fact.site_id == site_id and fact.privacy is not None
    ]
    return sorted(shown, key=lambda pair: pair[1].ledger_sequence)


def _read_records(folder: Path) -> list[RoundRecord]:
    records = []
    for path in sorted(folder.rglob("round-*.json")):
        try:
            records.append(RoundRecord.model_validate_json(path.read_bytes()))
        except ValidationError:
            raise UsageError(
                "FH-USAGE-041",
                f"{path.name} is not a round record that this version reads.",
                why="Leaving one out could leave spending out.",
                fix="Ask the coordinator for the file again, or update fedhealth.",
            ) from None
    return records
