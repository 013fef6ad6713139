"""A study with all its hospitals at one party: the production rounds, in one process or on Ray."""

from fedhealth.flower.run_simulation import RayOptions, require_ray
from fedhealth.simulation.backends import InProcess, OnRay
from fedhealth.simulation.hospitals import generated_sites
from fedhealth.simulation.simulate import Progress, SimulatedRun, Simulation, simulate

__all__ = [
    "InProcess",
    "OnRay",
    "Progress",
    "RayOptions",
    "SimulatedRun",
    "Simulation",
    "generated_sites",
    "require_ray",
    "simulate",
]
