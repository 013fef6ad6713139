"""Flower's ServerApp at the consortium: puts a run's pieces together and hands over to the round loop."""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedhealth.errors import FedHealthError
from fedhealth.flower.one_run import run_to_outcome
from fedhealth.flower.transport import FlowerTransport
from fedhealth.server.home import ServerHome
from fedhealth.server.roster import read_roster

HOME_VARIABLE: Final = "FEDHEALTH_SERVER_HOME"
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run, from its last checkpoint. How it ended goes to `outcome.json`, not through Flower."""
    home = ServerHome(Path(os.environ[HOME_VARIABLE]))
    configure_log(home)
    with contextlib.suppress(FedHealthError):  # outcome.json says it
        run_to_outcome(
            home,
            str(context.run_config["run-name"]),
            FlowerTransport(grid, lambda: read_roster(home.roster)),
            flower_run_id=str(context.run_id),
        )


def configure_log(home: ServerHome) -> None:
    """Our own log only: Flower's and httpx's would fill the file with one line per request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("fedhealth")
    logger.handlers[:] = [handler]
    logger.setLevel(home.require()[1].log_level.upper())
    logger.propagate = False
