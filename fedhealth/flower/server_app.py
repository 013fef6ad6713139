"""Flower's ServerApp at the consortium: puts a run's pieces together and hands over to the round loop."""

import logging
import os
import sys
from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhealth.config.load import study_digest
from fedhealth.durable import read_json, write_json
from fedhealth.errors import FedHealthError
from fedhealth.evidence.signing import SigningKey
from fedhealth.flower.strategy_adapter import build_aggregator
from fedhealth.flower.transport import FlowerTransport
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.enrolment import issued_sites
from fedhealth.server.home import RunFolder, ServerHome
from fedhealth.server.ledger_places import LedgerPlaces
from fedhealth.server.recorder import Recorder
from fedhealth.server.roster import read_roster
from fedhealth.server.round_loop import RoundLoop

HOME_VARIABLE: Final = "FEDHEALTH_SERVER_HOME"
app = ServerApp()
log = logging.getLogger("fedhealth.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run, from its last checkpoint. How it ended goes to `outcome.json`, not through Flower."""
    home = ServerHome(Path(os.environ[HOME_VARIABLE]))
    run_name = str(context.run_config["run-name"])
    folder = home.run(run_name)
    _configure_log(home)
    write_json(folder.outcome, {"state": "running", "pid": os.getpid()})
    try:
        _run(grid, context, home, run_name)
    except FedHealthError as error:
        write_json(folder.outcome, _failure(error))
        log.error("run ends code=%s", error.code)  # noqa: TRY400 - the text is in outcome.json
    except Exception as error:
        write_json(
            folder.outcome,
            {
                "state": "failed",
                "code": "FH-BUG-001",
                "what": f"the round loop ended with {type(error).__name__}.",
                "why": "This is a bug in fedhealth, in the strategy or in Flower.",
                "fix": "The traceback is in logs/serverapp.log; the last checkpoint is intact.",
                "exit_code": 1,
            },
        )
        raise
    else:
        write_json(folder.outcome, {"state": "completed", "exit_code": 0})


def _run(grid: Grid, context: Context, home: ServerHome, run_name: str) -> None:
    study, _ = home.require()
    run = study.run(run_name)
    folder = home.run(run_name)
    start = read_last_checkpoint(folder)
    recorder = Recorder(home, study, run)
    recorder.recover(start.record)
    recorder.check_no_release_is_lost(start.round_number)
    transport = FlowerTransport(grid, lambda: read_roster(home.roster))
    loop = RoundLoop(
        study=study,
        study_sha256=study_digest(study),
        run=run,
        flower_run_id=str(context.run_id),
        folder=folder,
        signing_key=SigningKey.load(home.signing_key),
        transport=transport,
        aggregator=build_aggregator(
            run, start.spec, min_cohort=study.federation.min_cohort, study=study
        ),
        recorder=recorder,
        ledger_places=LedgerPlaces(home.ledger_places),
        first_attempt=next_attempt(folder, start.round_number + 1),
        issued=issued_sites(home),
    )
    loop.run_all(start)


def _configure_log(home: ServerHome) -> None:
    """Our own log only: Flower's and httpx's would fill the file with one line per request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("fedhealth")
    logger.handlers[:] = [handler]
    logger.setLevel(home.require()[1].log_level.upper())
    logger.propagate = False


def next_attempt(folder: RunFolder, round_number: int) -> int:
    """The attempt after the last one that was opened of this round: sites answer each only once."""
    status = read_json(folder.status)
    is_again = status.get("round_number") == round_number
    return int(status["attempt"]) + 1 if is_again else 1


def _failure(error: FedHealthError) -> dict[str, object]:
    return {
        "state": "no_quorum" if error.code.startswith("FH-QUORUM") else "failed",
        "code": error.code,
        "what": error.what,
        "why": error.why,
        "fix": error.fix,
        "exit_code": int(error.exit_code),
    }
