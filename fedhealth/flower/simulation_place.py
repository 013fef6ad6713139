"""What a simulation with Ray writes for its own processes: the hospitals, the plan for Ray, where Ray is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedhealth.durable import read_json, write_json
from fedhealth.errors import FedHealthError
from fedhealth.server.home import ServerHome


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPlan:
    """What Ray is asked for.

    Args:
        cpus_per_hospital: processor cores of one hospital at work.
        gpus_per_hospital: its share of a GPU; 0 for none.
        address: of a Ray cluster that runs already; None starts Ray on this machine, on loopback.
        temp_dir: where a Ray of our own puts sockets and logs; short, since the paths of sockets are.
        most_cpus: cores that a Ray of our own may use at most.
    """

    cpus_per_hospital: int
    gpus_per_hospital: float
    address: str | None
    temp_dir: str
    most_cpus: int


@dataclass(frozen=True, slots=True)
class SimulationPlace:
    """Files in the home of a simulation's server that live as long as its processes."""

    home: ServerHome

    @property
    def hospitals(self) -> Path:
        """Home of each hospital that takes part, by site id."""
        return self.home.live / "hospitals.json"

    @property
    def _plan(self) -> Path:
        return self.home.live / "ray-plan.json"

    @property
    def _ray(self) -> Path:
        return self.home.live / "ray-state.json"

    @property
    def _run(self) -> Path:
        return self.home.live / "simulation-state.json"

    def write_plan(self, plan: RayPlan) -> None:
        """For the process of Ray, before it is started."""
        self._ray.unlink(missing_ok=True)
        write_json(self._plan, asdict(plan))

    def read_plan(self) -> RayPlan:
        """What `write_plan` wrote."""
        return RayPlan(**read_json(self._plan))

    def tell_ray(self, *, address: str = "", failure: FedHealthError | None = None) -> None:
        """Where Ray is, or why it is not."""
        said: dict[str, Any] = {"state": "ready", "address": address}
        if failure is not None:
            said = {
                "state": "failed",
                "code": failure.code,
                "what": failure.what,
                "why": failure.why,
                "fix": failure.fix,
                "exit_code": int(failure.exit_code),
            }
        write_json(self._ray, said)

    def told_of_ray(self) -> dict[str, Any]:
        """What `tell_ray` said; empty before."""
        return read_json(self._ray)

    def forget_run(self) -> None:
        """Before a run is submitted."""
        self._run.unlink(missing_ok=True)

    def tell_run(self, pid: int) -> None:
        """Which process does the run."""
        write_json(self._run, {"pid": pid})

    def pid_of_run(self) -> int | None:
        """What `tell_run` said; None before."""
        pid = read_json(self._run).get("pid")
        return None if pid is None else int(pid)
