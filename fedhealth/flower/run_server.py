"""`fedhealth server run`: gateway, SuperLink, SuperExec and the runs of a study, one after the other."""

import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

from fedhealth.config.server import ServerConfig
from fedhealth.config.study import RunPlan, Study
from fedhealth.durable import exclusive, read_json, write_atomically, write_json
from fedhealth.errors import (
    ConfigError,
    EvidenceError,
    ExitCode,
    FedHealthError,
    GateRefusedError,
    PrivacyError,
    QuorumError,
    SiteDataError,
    TransportError,
    UsageError,
)
from fedhealth.flower import launch
from fedhealth.flower.control import flwr, wait_healthy
from fedhealth.flower.server_app import HOME_VARIABLE
from fedhealth.server.home import ServerHome
from fedhealth.server.roster import RosterLine, read_roster
from fedhealth.supervision.children import Child, Children
from fedhealth.supervision.ports import free_port, require_free_port

ROSTER_POLL_S: Final = 1.0


class Progress(Protocol):
    """Where `server run` tells what happens."""

    def note(self, text: str) -> None:
        """One line."""
        ...

    def run_status(self, run: RunPlan, status: dict[str, Any]) -> None:
        """Where a run stands; called often."""
        ...


@dataclass(slots=True, kw_only=True)
class ServerProcesses:
    """One running server."""

    home: ServerHome
    study: Study
    config: ServerConfig
    progress: Progress
    stopping: threading.Event = field(default_factory=threading.Event)
    children: Children = field(init=False)
    _environment: dict[str, str] = field(init=False)
    _registered: dict[str, int] = field(init=False, default_factory=dict)
    _events_seen: int = field(init=False, default=0)
    _roster_seen: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.children = Children(self.home.logs)
        self._environment = launch.flower_environment(
            self.home.flower / "home", **{HOME_VARIABLE: str(self.home.root)}
        )

    def run(self) -> None:
        """Every run that is not complete, in the study's order.

        Raises:
            QuorumError: the minimum cohort did not come (exit 9).
            FedHealthError: why a run cannot go on.
        """
        open_runs = [run for run in self.study.runs if not self._is_complete(run)]
        if not open_runs:
            self.progress.note("every run of this study is complete; reports are in runs/*/reports")
            return
        if not read_roster(self.home.roster).admitted:
            raise UsageError(
                "FH-USAGE-024",
                "no site is admitted yet.",
                fix="Send invitation.json to the hospitals and `fedhealth server admit` their requests.",
            )
        try:
            self._start()
            for run in open_runs:
                self._do(run)
                if self.stopping.is_set():
                    return
        finally:
            self.children.end_all(grace_s=self.config.stop_grace_s)

    def _is_complete(self, run: RunPlan) -> bool:
        return read_json(self.home.run(run.name).outcome).get("state") == "completed"

    def _start(self) -> None:
        require_free_port(self.config.listen_host, self.config.port)
        self.home.live.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.home.gateway_events, b"")
        keys = self.home.keys
        place = launch.SuperLinkPlace(
            port=free_port(),
            ca_certificate=keys / "ca.crt",
            certificate=keys / "server.crt",
            key=keys / "server.key",
            secret=launch.new_secret(self.home.live / "superexec.secret"),
        )
        launch.write_connection(self.home.flower / "home", place.address, place.ca_certificate)
        superlink = self.children.start("superlink", launch.superlink(place), env=self._environment)
        self._wait_healthy(f"https://{place.address}/health", superlink)
        bin_folder = launch.write_serverapp_wrapper(self.home.live / "bin", self.home.logs)
        self.children.start(
            "superexec",
            launch.server_superexec(place),
            env=self._environment
            | {
                "PATH": f"{bin_folder}:{self._environment['PATH']}",
                launch.POLL_VARIABLE: launch.SERVER_POLL_S,
            },
        )
        self._reconcile()
        gateway = self.children.start(
            "gateway",
            launch.module(
                "fedhealth.server.gateway", "--home", self.home.root, "--upstream", str(place.port)
            ),
            env=self._environment,
        )
        self._wait_healthy(f"https://{_local(self.config)}/health", gateway)
        self.progress.note(f"listening on {self.config.listen_host}:{self.config.port} (TLS)")

    def _wait_healthy(self, url: str, child: Child) -> None:
        ca_certificate = self.home.keys / "ca.crt"
        wait_healthy(url, child, ca_certificate=ca_certificate, stopping=self.stopping)

    def _reconcile(self) -> None:
        """Make the SuperLink's register of node keys equal to the roster."""
        roster = read_roster(self.home.roster)
        new = [
            line
            for line in roster.lines
            if line.state == "admitted" and line.entry.node_key_id not in self._registered
        ]
        for line, answer in zip(new, self._flwr(*map(self._registration, new)), strict=True):
            self._registered[line.entry.node_key_id] = int(answer["node-id"])
        for line in roster.lines:
            node_id = self._registered.get(line.entry.node_key_id)
            if line.state == "revoked" and node_id is not None:
                self._flwr(("supernode", "unregister", str(node_id), launch.CONNECTION))
                del self._registered[line.entry.node_key_id]
                self.progress.note(f"site {line.entry.site_id} is revoked and cut off")

    def _registration(self, line: RosterLine) -> tuple[str, ...]:
        key_file = self.home.live / f"{line.entry.site_id}.pub"
        write_atomically(key_file, line.node_key.encode() + b"\n")
        name = line.entry.site_id
        return ("supernode", "register", str(key_file), launch.CONNECTION, "--name", name)

    def _flwr(self, *commands: tuple[str, ...]) -> list[dict[str, Any]]:
        return flwr(*commands, environment=self._environment, logs=self.home.logs)

    def _do(self, run: RunPlan) -> None:
        folder = self.home.run(run.name)
        write_json(folder.outcome, {"state": "submitted"})
        app = launch.write_thin_app(self.home.flower / "app", version("flwr"))
        self._flwr(("run", str(app), launch.CONNECTION, "--run-config", f'run-name="{run.name}"'))
        self.progress.note(f"run {run.name} submitted: {run.num_rounds} rounds")
        while not self.stopping.wait(0.2):
            self._look_after()
            self.progress.run_status(run, read_json(folder.status))
            outcome = read_json(folder.outcome)
            if outcome["state"] in {"completed", "failed", "no_quorum"}:
                self.progress.run_status(run, read_json(folder.status))
                raise_failure(outcome)
                return
            if outcome["state"] == "running" and not Path(f"/proc/{outcome['pid']}").exists():
                self._lost(folder.outcome)

    def _lost(self, outcome_path: Path) -> None:
        time.sleep(0.5)  # its last words may just be on their way
        if read_json(outcome_path)["state"] == "running":
            raise TransportError(
                "FH-SERVER-003",
                "the server process that runs the rounds was killed.",
                why="The round at work is lost; completed rounds are checkpointed.",
                fix="Run `fedhealth server run` again: it goes on from the last checkpoint.",
            )

    def _look_after(self) -> None:
        for child in self.children.running():
            if child.exit_code() is not None:
                raise TransportError(
                    "FH-SERVER-004",
                    f"{child.name} ended with code {child.exit_code()}.",
                    why="The federation cannot go on without it; completed rounds are checkpointed.",
                    fix=f"Look at {child.log_path}, then run `fedhealth server run` again.",
                )
        changed = self.home.roster.stat().st_mtime
        if changed != self._roster_seen:
            self._roster_seen = changed
            self._reconcile()
        self._tell_refusals()
        self.children.rotate_logs()

    def _tell_refusals(self) -> None:
        lines = self.home.gateway_events.read_text().splitlines()
        told: set[str] = set()
        for line in lines[self._events_seen :]:
            event = json.loads(line)
            who = event["site_id"] or f"unknown key {event['node_key_id'][:16]}"
            text = _EVENT_TEXT.get(event["event"], event["event"]).format(who=who, **event)
            if text not in told:
                self.progress.note(text)
            told.add(text)
        self._events_seen = len(lines)


_EVENT_TEXT: Final = {
    "site_not_admitted": "refused: {who} is not admitted ({state}); admit its request or ignore it",
    "body_too_large": "refused: {who} sent more than max_body_mb allows",
    "timeout": "cut off: a request of {who} took longer than request_timeout_s",
}


def _local(config: ServerConfig) -> str:
    host = "127.0.0.1" if config.listen_host in {"0.0.0.0", "::"} else config.listen_host  # noqa: S104 - a comparison
    return f"{host}:{config.port}"


_FAILURES: Final[dict[ExitCode, type[FedHealthError]]] = {
    kind.exit_code: kind
    for kind in (
        UsageError,
        ConfigError,
        SiteDataError,
        PrivacyError,
        GateRefusedError,
        TransportError,
        EvidenceError,
        QuorumError,
    )
}


def raise_failure(outcome: dict[str, Any]) -> None:
    """Raise what the ServerApp wrote; nothing when the run completed."""
    if outcome["state"] == "completed":
        return
    kind = _FAILURES.get(ExitCode(outcome["exit_code"]), FedHealthError)
    raise kind(outcome["code"], outcome["what"], why=outcome["why"], fix=outcome["fix"])


def run_server(home: ServerHome, progress: Progress) -> int:
    """Run the study until it is complete, SIGTERM or SIGINT; leaves no process behind.

    Returns:
        Exit code: 0 complete or after SIGTERM, 130 after SIGINT.

    Raises:
        FedHealthError: why the study cannot go on; completed rounds are checkpointed.
    """
    study, config = home.require()
    if home.is_simulation:
        raise UsageError(
            "FH-USAGE-054",
            f"{home.root} is the home of a simulation.",
            why="Its keys and hospitals are made up: simulated rounds must not stand beside real ones.",
            fix="Begin a real study with `fedhealth server init`, or go on with `fedhealth simulate`.",
        )
    with exclusive(home.root / "lock", what=f"the server of study {study.id}"):
        server = ServerProcesses(home=home, study=study, config=config, progress=progress)
        received: list[int] = []

        def stop(number: int, _frame: object) -> None:
            received.append(number)
            server.stopping.set()

        previous: dict[int, Callable[..., Any] | int | None] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, stop)
        try:
            server.run()
        finally:
            for stopped, handler in previous.items():
                signal.signal(stopped, handler)
        return ExitCode.INTERRUPTED if signal.SIGINT in received else ExitCode.OK
