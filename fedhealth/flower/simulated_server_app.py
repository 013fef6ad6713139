"""Flower's ServerApp of a simulation with Ray: the round loop of `server_app.py` over simulated hospitals."""

import contextlib
import os
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhealth.durable import read_json, without_sync
from fedhealth.errors import FedHealthError
from fedhealth.flower.one_run import run_to_outcome
from fedhealth.flower.server_app import HOME_VARIABLE, configure_log
from fedhealth.flower.simulated_transport import SimulatedTransport
from fedhealth.flower.simulation_place import SimulationPlace
from fedhealth.report.write import write_record
from fedhealth.server.home import ServerHome
from fedhealth.server.recorder import Recorder
from fedhealth.server.roster import read_roster

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run, from its last checkpoint. How it ended goes to `outcome.json`; pages are written by who waits for it."""
    home = ServerHome(Path(os.environ[HOME_VARIABLE]))
    configure_log(home)
    study, _ = home.require()
    run = study.run(str(context.run_config["run-name"]))
    hospitals = read_json(SimulationPlace(home).hospitals)
    transport = SimulatedTransport(
        grid,
        lambda: read_roster(home.roster),
        hospitals={site_id: Path(root) for site_id, root in hospitals.items()},
        study_id=study.id,
    )
    with contextlib.suppress(FedHealthError), without_sync():  # outcome.json says it
        run_to_outcome(
            home,
            run.name,
            transport,
            flower_run_id=str(context.run_id),
            recorder=Recorder(
                home, study, run, write=partial(write_record, home.run(run.name).reports)
            ),
        )
