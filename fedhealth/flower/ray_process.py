"""Ray for a simulation, in a process of its own: starts Ray or joins a cluster, says where it is, and stays.

Flower would start Ray within `flwr-simulation`, with defaults that listen on every interface. Here Ray is up before
Flower is asked for a run, and Flower joins it: on loopback, with a token of its own, without dashboard and usage
statistics. What is wrong with Ray is found before a round is opened, and Ray ends when this process does.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from fedhealth.errors import FedHealthError, TransportError, UsageError
from fedhealth.flower.server_app import HOME_VARIABLE
from fedhealth.flower.simulation_place import RayPlan, SimulationPlace
from fedhealth.server.home import ServerHome
from fedhealth.supervision.die_with_parent import die_with_parent

NODE_CHECK_S: Final = 60.0


def main() -> None:
    """Until SIGTERM, or until the supervisor is gone."""
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    place = SimulationPlace(ServerHome(Path(os.environ[HOME_VARIABLE])))
    try:
        address = start_ray(place.read_plan(), place.home.root)
    except FedHealthError as error:
        place.tell_ray(failure=error)
        raise
    place.tell_ray(address=address)
    while True:
        signal.pause()


def start_ray(plan: RayPlan, folder: Path) -> str:
    """Start Ray on this machine, or join the cluster of the plan; it ends, or is left, with this process.

    Args:
        plan: what is asked of it.
        folder: what every machine of a cluster must see.

    Returns:
        Its address, host:port.

    Raises:
        TransportError: FH-RAY-002 it does not start, FH-RAY-005 a machine of the cluster is not set up alike.
        UsageError: FH-RAY-003 it has no room for one hospital.
    """
    import ray

    try:
        if plan.address is None:
            ray.init(
                num_cpus=min(plan.most_cpus, len(os.sched_getaffinity(0))),
                include_dashboard=False,
                log_to_driver=True,
                logging_level="warning",
                _temp_dir=plan.temp_dir,
            )
        else:
            ray.init(address=plan.address, log_to_driver=True, logging_level="warning")
    except Exception as error:
        raise TransportError(
            "FH-RAY-002",
            f"Ray did not start ({type(error).__name__})."
            if plan.address is None
            else f"the Ray cluster at {plan.address} cannot be joined ({type(error).__name__}).",
            why="Hospitals are processes of Ray in this simulation.",
            fix=f"Look at {folder / 'logs/ray.log'}, or simulate without --backend ray.",
        ) from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    require_room(plan, [node["Resources"] for node in nodes])
    if plan.address is not None:
        _require_alike([node["NodeID"] for node in nodes], folder)
    return str(ray.get_runtime_context().gcs_address)


def require_room(plan: RayPlan, machines: list[dict[str, float]]) -> None:
    """Raises UsageError FH-RAY-003 when no machine has what one hospital is to get."""
    for resources in machines:
        has_cpus = resources.get("CPU", 0.0) >= plan.cpus_per_hospital
        if has_cpus and resources.get("GPU", 0.0) >= plan.gpus_per_hospital:
            return
    most_cpus = max((machine.get("CPU", 0.0) for machine in machines), default=0.0)
    most_gpus = max((machine.get("GPU", 0.0) for machine in machines), default=0.0)
    raise UsageError(
        "FH-RAY-003",
        f"a hospital is to have {plan.cpus_per_hospital} cores and {plan.gpus_per_hospital:g} GPUs; "
        f"the largest machine has {most_cpus:g} and {most_gpus:g}.",
        why="No hospital could ever begin.",
        fix="Lower --cpus-per-hospital or --gpus-per-hospital.",
    )


def _require_alike(node_ids: list[str], folder: Path) -> None:
    """Ask every machine for its version of fedhealth and whether it sees the folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0)(looked)
    asked = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        .remote(str(folder))
        for node_id in node_ids
    ]  # fmt: skip
    try:
        answers = ray.get(asked, timeout=NODE_CHECK_S)
    except Exception as error:
        raise _unlike(f"a machine does not answer ({type(error).__name__}).") from error
    require_alike(answers, looked(str(folder)))


def looked(folder: str) -> dict[str, Any]:
    """What one machine has. Runs on every machine of a cluster."""
    from importlib.metadata import version

    return {
        "fedhealth": version("fedhealth"),
        "flwr": version("flwr"),
        "torch": version("torch"),
        "sees the folder": Path(folder, "study.yaml").exists(),
    }


def require_alike(answers: list[dict[str, Any]], own: dict[str, Any]) -> None:
    """Raises TransportError FH-RAY-005 when a machine has other versions, or does not see the folder."""
    for answer in answers:
        for name, value in answer.items():
            if value != own[name]:
                raise _unlike(f"{name}: {value} on one machine, {own[name]} on this one.")


def _unlike(what: str) -> TransportError:
    return TransportError(
        "FH-RAY-005",
        f"a machine of the Ray cluster is not like this one: {what}",
        why="Hospitals keep keys and state in the simulation's folder, and train with what is installed there.",
        fix="Install the same versions everywhere, and give --out a folder that every machine has under this path.",
    )


if __name__ == "__main__":
    main()
