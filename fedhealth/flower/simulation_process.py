"""Flower's `flwr-simulation`, ended by the kernel when SuperExec ends; Ray's address is in its environment."""

import os
from pathlib import Path

from fedhealth.flower.server_app import HOME_VARIABLE
from fedhealth.flower.simulation_place import SimulationPlace
from fedhealth.server.home import ServerHome
from fedhealth.supervision.die_with_parent import die_with_parent


def main() -> None:
    """One run of the study, as SuperExec asked for it."""
    die_with_parent()
    SimulationPlace(ServerHome(Path(os.environ[HOME_VARIABLE]))).tell_run(os.getpid())
    from flwr.simulation.app import flwr_simulation

    flwr_simulation()


if __name__ == "__main__":
    main()
