"""`server status`: where the study stands, from files only."""

import fcntl
import os
from typing import Any

from fedhealth.durable import read_json
from fedhealth.server.home import ServerHome
from fedhealth.server.roster import read_roster


def read_status(home: ServerHome) -> dict[str, Any]:
    """Sites, runs and rounds.

    Raises:
        UsageError: not a server's home.
    """
    study, config = home.require()
    runs = []
    for run in study.runs:
        folder = home.run(run.name)
        said, outcome = read_json(folder.status), read_json(folder.outcome)
        index = folder.reports / "index.html"
        runs.append(
            {
                "run_name": run.name,
                "state": outcome.get("state", "not started"),
                "code": outcome.get("code"),
                "rounds_done": said.get("rounds_done", 0),
                "num_rounds": run.num_rounds,
                "doing": said.get("doing"),
                "model_sha256": said.get("model_sha256"),
                "report": str(index) if index.exists() else None,
            }
        )
    return {
        "study_id": study.id,
        "address": f"{config.public_host}:{config.port}",
        "is_running": _is_locked(home),
        "sites": [
            {
                "site_id": line.entry.site_id,
                "state": line.state,
                "train_size": line.entry.train_size,
                "variant": line.entry.variant,
                "key_id": line.entry.key_id,
            }
            for line in read_roster(home.roster).lines
        ],
        "runs": runs,
    }


def _is_locked(home: ServerHome) -> bool:
    """Whether a server holds the home's lock."""
    try:
        descriptor = os.open(home.root / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
