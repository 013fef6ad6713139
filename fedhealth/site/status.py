"""`site status`: what the worker does and what left so far, from files only."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from fedhealth.config.load import load_site
from fedhealth.durable import read_json
from fedhealth.evidence.journal import verify_journal
from fedhealth.site.home import SiteHome


def read_status(home: SiteHome, study_id: str | None) -> dict[str, Any]:
    """State of one study at this site.

    Raises:
        UsageError: which study is not clear.
        EvidenceError: the journal is broken.
    """
    chosen = home.choose_study(study_id)
    folder = home.study(chosen)
    said = read_json(folder.status)
    is_alive = bool(said.get("pid")) and Path(f"/proc/{said['pid']}").exists()
    head, lines = verify_journal(folder.journal) if folder.journal.exists() else ("", 0)
    return {
        "site_id": load_site(home.config_path).site_id,
        "study_id": chosen,
        "is_joined": folder.admission.exists(),
        "is_running": is_alive,
        "state": said.get("state", "not started") if is_alive else _at_rest(said),
        "last_code": said.get("last_code"),
        "isolation": said.get("isolation") if is_alive else None,
        "journal_lines": lines,
        "journal_head": head,
        "left": _count_kinds(folder.journal),
    }


def _at_rest(said: dict[str, Any]) -> str:
    return f"failed ({said['code']})" if said.get("state") == "failed" else "not running"


def _count_kinds(journal: Path) -> dict[str, int]:
    if not journal.exists():
        return {}
    kinds = Counter(json.loads(line)["kind"] for line in journal.read_text().splitlines())
    return dict(sorted(kinds.items()))
