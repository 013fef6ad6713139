"""A study with all its hospitals in one process: the production rounds, without network and without processes."""

from fedhealth.simulation.hospitals import generated_sites
from fedhealth.simulation.simulate import Progress, SimulatedRun, Simulation, simulate

__all__ = ["Progress", "SimulatedRun", "Simulation", "generated_sites", "simulate"]
