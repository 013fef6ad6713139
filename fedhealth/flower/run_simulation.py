"""A study's rounds on Flower's simulation with Ray: a SuperLink of our own, and `flwr run` for each run of the study.

Called by `fedhealth.simulation` only. Everything listens on loopback, and every process ends with the block.
"""

import importlib.util
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fedhealth.config.study import RunPlan
from fedhealth.durable import read_json, write_json
from fedhealth.errors import TransportError, UsageError
from fedhealth.evidence.signing import write_private
from fedhealth.flower import launch
from fedhealth.flower.control import flwr, wait_healthy
from fedhealth.flower.run_server import raise_failure
from fedhealth.flower.server_app import HOME_VARIABLE
from fedhealth.flower.simulation_place import RayPlan, SimulationPlace
from fedhealth.server.home import ServerHome
from fedhealth.supervision.children import Children
from fedhealth.supervision.ports import free_port

START_S: Final = 120.0
CONNECT_S: Final = 5.0
LAST_WORDS_S: Final = 0.5
GONE_S: Final = 30.0  # Flower's threads look once a second whether they are to end
POLL_S: Final = 0.1
SERVER_APP: Final = "fedhealth.flower.simulated_server_app:app"
ENDED: Final = frozenset({"completed", "failed", "no_quorum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """What a user says of Ray.

    Args:
        cpus_per_hospital: processor cores of one hospital at work; how many work at once follows from it.
        gpus_per_hospital: its share of a GPU; 0 for none.
        address: of a Ray cluster that runs already; None starts Ray on this machine.
    """

    cpus_per_hospital: int = 1
    gpus_per_hospital: float = 0.0
    address: str | None = None


def require_ray() -> None:
    """Raises UsageError FH-RAY-001 where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "FH-RAY-001",
            "Ray is not installed here.",
            why="--backend ray runs hospitals in processes of Ray, through Flower's simulation.",
            fix='Run `pip install "fedhealth[ray]" -c constraints.txt`, or simulate without --backend ray.',
        )


def require_reachable(address: str) -> None:
    """Ask whether anybody listens there: Ray itself would ask for minutes.

    Raises:
        UsageError: FH-RAY-008 it is not HOST:PORT.
        TransportError: FH-RAY-002 nobody listens.
    """
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit()) or "/" in host:
        raise UsageError(
            "FH-RAY-008",
            f"--ray-address {address!r} is not HOST:PORT.",
            fix="Give what `ray start --head` has shown, for example 10.0.0.5:6379.",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise TransportError(
            "FH-RAY-002",
            f"no Ray cluster can be reached at {address} ({type(error).__name__}).",
            why="Hospitals are processes of Ray in this simulation.",
            fix="Start it (`ray start --head`), look at firewalls, or leave --ray-address out.",
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySimulation:
    """A SuperLink that is up, with what it was started for."""

    place: SimulationPlace
    children: Children
    environment: Mapping[str, str]
    options: RayOptions
    num_hospitals: int
    client_app: str

    def run(self, run: RunPlan, watch: Callable[[], None]) -> None:
        """One run of the study, from its last checkpoint; `watch` is called again and again meanwhile.

        Raises:
            FedHealthError: what ended the run, as a real server would say it.
            TransportError: FH-RAY-006 a process ended that should not have.
        """
        home = self.place.home
        outcome = home.run(run.name).outcome
        write_json(outcome, {"state": "submitted"})
        self.place.forget_run()
        app = launch.write_thin_app(
            home.flower / "app",
            version("flwr"),
            server_app=SERVER_APP,
            client_app=self.client_app,
        )
        resources = (
            f"num-supernodes={self.num_hospitals} "
            f"client-resources-num-cpus={self.options.cpus_per_hospital} "
            f"client-resources-num-gpus={float(self.options.gpus_per_hospital)}"
        )
        command = ("run", str(app), launch.CONNECTION, "--run-config", f'run-name="{run.name}"')
        flwr(
            (*command, "--federation-config", resources),
            environment=self.environment,
            logs=home.logs,
        )
        submitted = time.monotonic()
        while True:
            said = read_json(outcome)
            watch()
            if said["state"] in ENDED:
                self._wait_gone()
                raise_failure(said)
                return
            self._require_alive(outcome, submitted)
            time.sleep(POLL_S)

    def _require_alive(self, outcome: Path, submitted: float) -> None:
        """Raise when nothing will come any more."""
        for child in self.children.running():
            if child.exit_code() is not None:
                raise self._lost(f"{child.name} ended with code {child.exit_code()}.")
        pid = self.place.pid_of_run()
        if pid is not None and not _lives(pid):
            time.sleep(LAST_WORDS_S)
            if read_json(outcome)["state"] not in ENDED:
                raise self._lost("Flower's simulation ended before the run did.")
        elif pid is None and time.monotonic() - submitted > START_S:
            raise self._lost(f"Flower's simulation did not begin within {START_S:.0f} s.")

    def _wait_gone(self) -> None:
        """Let Flower take its leave of Ray; what hangs is ended with the block."""
        pid, begin = self.place.pid_of_run(), time.monotonic()
        while pid is not None and _lives(pid) and time.monotonic() - begin < GONE_S:
            time.sleep(POLL_S)

    def _lost(self, what: str) -> TransportError:
        return TransportError(
            "FH-RAY-006",
            what,
            why="The round at work is lost; completed rounds are checkpointed.",
            fix=f"Look at {self.place.home.logs}; the same command with --out goes on from the last round.",
        )


@contextmanager
def ray_simulation(
    home: ServerHome, hospitals: Mapping[str, Path], options: RayOptions, *, client_app: str
) -> Iterator[RaySimulation]:
    """Start what `flwr run` needs, and end all of it with the block, however the block ends.

    Args:
        home: of the simulated study's server; its keys are the SuperLink's.
        hospitals: home of each hospital that takes part, by site id.
        options: what a user said of Ray.
        client_app: MODULE:NAME of the ClientApp that answers for hospitals.

    Raises:
        UsageError: FH-RAY-001 Ray is not installed, FH-RAY-003 it has no room for a hospital, FH-RAY-008 the address
            is none.
        TransportError: FH-SERVER-001 the SuperLink did not start, FH-RAY-002 Ray did not, FH-RAY-005 a machine of the
            cluster is not set up like this one.
    """
    require_ray()
    if options.address is not None:
        require_reachable(options.address)
    home.live.mkdir(parents=True, exist_ok=True, mode=0o700)
    children = Children(home.logs)
    # Sockets of Ray lie in here, and a socket's path has at most 107 bytes: a folder of the study may be too deep.
    temp_dir = Path(tempfile.mkdtemp(prefix="fedhealth-ray-"))
    place = SimulationPlace(home)
    write_json(place.hospitals, {site_id: str(root) for site_id, root in hospitals.items()})
    place.write_plan(_plan(options, len(hospitals), temp_dir))
    environment = _environment(home, options, temp_dir)
    try:
        link = _start_superlink(home, children, environment)
        environment |= {"RAY_ADDRESS": _start_ray(place, children, environment)}
        commands = launch.write_simulation_commands(home.live / "bin", home.logs, temp_dir)
        children.start(
            "superexec",
            launch.server_superexec(link),
            env={**environment, "PATH": f"{commands}{os.pathsep}{environment['PATH']}"},
        )
        yield RaySimulation(
            place=place,
            children=children,
            environment=environment,
            options=options,
            num_hospitals=len(hospitals),
            client_app=client_app,
        )
    finally:
        children.end_all()
        shutil.rmtree(temp_dir, ignore_errors=True)


def _start_superlink(
    home: ServerHome, children: Children, environment: Mapping[str, str]
) -> launch.SuperLinkPlace:
    keys = home.keys
    link = launch.SuperLinkPlace(
        port=free_port(),
        ca_certificate=keys / "ca.crt",
        certificate=keys / "server.crt",
        key=keys / "server.key",
        secret=launch.new_secret(home.live / "superexec.secret"),
    )
    launch.write_connection(home.flower / "home", link.address, link.ca_certificate)
    superlink = children.start("superlink", launch.simulation_superlink(link), env=environment)
    wait_healthy(
        f"https://{link.address}/health",
        superlink,
        ca_certificate=link.ca_certificate,
        stopping=threading.Event(),
    )
    return link


def _start_ray(place: SimulationPlace, children: Children, environment: Mapping[str, str]) -> str:
    """Start the process of Ray, once for all runs, and wait until it says where Ray is."""
    child = children.start("ray", launch.module("fedhealth.flower.ray_process"), env=environment)
    begin = time.monotonic()
    while True:
        has_ended = child.exit_code() is not None  # before its last words are read
        told = place.told_of_ray()
        if told.get("state") == "ready":
            return str(told["address"])
        if told:
            raise_failure(told)
        if has_ended or time.monotonic() - begin > START_S:
            raise TransportError(
                "FH-RAY-002",
                "Ray did not start.",
                why="Hospitals are processes of Ray in this simulation.",
                fix=f"Look at {child.log_path}, or simulate without --backend ray.",
            )
        time.sleep(POLL_S)


def _plan(options: RayOptions, num_hospitals: int, temp_dir: Path) -> RayPlan:
    return RayPlan(
        cpus_per_hospital=options.cpus_per_hospital,
        gpus_per_hospital=options.gpus_per_hospital,
        address=options.address,
        temp_dir=str(
            temp_dir / "r"
        ),  # Ray opens its folder to everybody: not the one with the token
        most_cpus=options.cpus_per_hospital * num_hospitals,
    )


def _environment(home: ServerHome, options: RayOptions, temp_dir: Path) -> dict[str, str]:
    """Flower's environment, with Ray kept quiet; a Ray of our own hears nothing that was meant for another."""
    environment = launch.flower_environment(
        home.flower / "home", **{HOME_VARIABLE: str(home.root), "RAY_USAGE_STATS_ENABLED": "0"}
    )
    if options.address is None:
        environment = {n: v for n, v in environment.items() if not n.startswith("RAY_")}
        token = temp_dir / "token"
        write_private(token, os.urandom(32).hex().encode())
        environment |= {
            "RAY_USAGE_STATS_ENABLED": "0",
            # Whatever its name says: 0 makes Ray listen on loopback, and the address in `ray.init` cannot.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        }
    return environment


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
