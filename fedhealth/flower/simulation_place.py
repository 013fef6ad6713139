"""What a simulation with Ray writes for its own processes: the hospitals, the plan for Ray, and how far Ray is."""

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
    def _state(self) -> Path:
        return self.home.live / "ray-state.json"

    def write_plan(self, plan: RayPlan) -> None:
        """For `flwr-simulation`, before it is started."""
        self._state.unlink(missing_ok=True)
        write_json(self._plan, asdict(plan))

    def read_plan(self) -> RayPlan:
        """What `write_plan` wrote."""
        return RayPlan(**read_json(self._plan))

    def tell(self, state: str, *, pid: int, failure: FedHealthError | None = None) -> None:
        """How far Ray is: `starting`, `ready`, or `failed` with the failure."""
        said: dict[str, Any] = {"state": state, "pid": pid}
        if failure is not None:
            said |= {
                "code": failure.code,
                "what": failure.what,
                "why": failure.why,
                "fix": failure.fix,
                "exit_code": int(failure.exit_code),
            }
        write_json(self._state, said)

    def told(self) -> dict[str, Any]:
        """What `tell` said last; empty before."""
        return read_json(self._state)
