"""One run of a study from its last checkpoint, over any transport. Called by the ServerApp and by simulations.

How it ended goes to `outcome.json` in every case: who waits for the run reads it there.
"""

import logging
import os

from fedhealth.config.load import study_digest
from fedhealth.durable import read_json, write_json
from fedhealth.errors import FedHealthError
from fedhealth.evidence.signing import SigningKey
from fedhealth.flower.strategy_adapter import build_aggregator
from fedhealth.server.checkpoint import Checkpoint, read_last_checkpoint
from fedhealth.server.enrolment import issued_sites
from fedhealth.server.home import RunFolder, ServerHome
from fedhealth.server.ledger_places import LedgerPlaces
from fedhealth.server.messages import RoundTransport
from fedhealth.server.recorder import Recorder
from fedhealth.server.round_loop import RoundLoop

log = logging.getLogger("fedhealth.server")


def run_to_outcome(
    home: ServerHome,
    run_name: str,
    transport: RoundTransport,
    *,
    flower_run_id: str,
    recorder: Recorder | None = None,
) -> Checkpoint:
    """Train the remaining rounds of a run and evaluate its model; returns where it stands then.

    Args:
        home: the server's home.
        run_name: which run of its study.
        transport: how messages get to sites.
        flower_run_id: decimal; goes into manifests and records.
        recorder: what writes records; None: the server's own, with pages after every round.

    Raises:
        FedHealthError: why the run cannot go on; `outcome.json` says it too.
    """
    folder = home.run(run_name)
    write_json(folder.outcome, {"state": "running", "pid": os.getpid()})
    try:
        done = _run(home, run_name, transport, flower_run_id, recorder)
    except FedHealthError as error:
        write_json(folder.outcome, _failure(error))
        log.error("run ends code=%s", error.code)  # noqa: TRY400 - the text is in outcome.json
        raise
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
    write_json(folder.outcome, {"state": "completed", "exit_code": 0})
    return done


def _run(
    home: ServerHome,
    run_name: str,
    transport: RoundTransport,
    flower_run_id: str,
    given: Recorder | None,
) -> Checkpoint:
    study, _ = home.require()
    run = study.run(run_name)
    folder = home.run(run_name)
    start = read_last_checkpoint(folder)
    recorder = Recorder(home, study, run) if given is None else given
    recorder.recover(start.record)
    recorder.check_no_release_is_lost(start.round_number)
    loop = RoundLoop(
        study=study,
        study_sha256=study_digest(study),
        run=run,
        flower_run_id=flower_run_id,
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
    return loop.run_all(start)


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
