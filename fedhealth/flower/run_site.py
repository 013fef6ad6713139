"""`fedhealth site start`: the process trees of one hospital, and what happens when one of them ends."""

import logging
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedhealth.durable import exclusive, read_json, write_json
from fedhealth.errors import ExitCode, FedHealthError, IdentityError, TransportError
from fedhealth.flower import launch
from fedhealth.flower.client_app import SOCKET_VARIABLE
from fedhealth.site.dialling import server_answers
from fedhealth.site.handover import read_failure
from fedhealth.site.home import Pinned, SiteHome, load_pinned
from fedhealth.supervision.children import Child, Children
from fedhealth.supervision.ports import free_port

log = logging.getLogger("fedhealth.site")
WORKER_START_S: Final = 300.0  # importing torch and MONAI on a cold disk, and reading the cohort
MAX_UNIX_PATH: Final = 100  # sun_path holds 108 bytes
WATCH_S: Final = 0.2
STABLE_AFTER_S: Final = 30.0  # a process that lived this long was healthy: the wait starts anew
_REFUSED: Final = re.compile(r"'410 Gone'")  # the gateway: this key is not on the roster
_STILL_COUNTED: Final = re.compile(
    r"\[code: 2004\]"
)  # SuperLink: an earlier connection is not over


@dataclass(slots=True, kw_only=True)
class SiteProcesses:
    """One running site: worker, SuperNode, SuperExec and the warm relay."""

    home: SiteHome
    pinned: Pinned
    notify: Callable[[str], None]
    stopping: threading.Event = field(default_factory=threading.Event)
    children: Children = field(init=False)
    _sockets: Path = field(init=False)
    _wait_s: float = field(init=False, default=0.0)
    _dialled_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.children = Children(self.home.logs)
        run = self.pinned.folder.run
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sockets = run
        if len(str(run / "worker.sock")) > MAX_UNIX_PATH:
            self._sockets = Path(tempfile.mkdtemp(prefix="fedhealth-"))

    def run(self) -> None:
        """Work until `stopping` is set.

        Raises:
            FedHealthError: what ended the worker, or IdentityError when the server does not know this site.
        """
        try:
            worker = self._start_worker()
            self.notify(_ready_text(read_json(self.pinned.folder.status).get("isolation")))
            self.notify(f"dialling {self.pinned.address}")
            node: list[Child] = []
            while not self.stopping.is_set():
                self.children.rotate_logs()
                if worker.exit_code() is not None:
                    worker = self._restart_worker(worker)
                if not node:
                    node = self._dial()
                elif any(child.exit_code() is not None for child in node):
                    node = self._hang_up(node)
                self.stopping.wait(WATCH_S)
        finally:
            self.children.end_all(grace_s=self.pinned.config.stop_grace_s)
            if self._sockets != self.pinned.folder.run:
                for path in self._sockets.iterdir():
                    path.unlink()
                self._sockets.rmdir()

    def _start_worker(self) -> Child:
        """A worker that is ready. One that is killed while it starts (out of memory, say) is started again."""
        while True:
            child = self._try_worker()
            if (child.exit_code() or 0) >= 0 or self.stopping.is_set():
                return child
            self._after_a_kill(child)

    def _try_worker(self) -> Child:
        failure = self.pinned.folder.run / "worker-failure.json"
        failure.unlink(missing_ok=True)
        socket_path = self._sockets / "worker.sock"
        socket_path.unlink(missing_ok=True)
        environment = launch.flower_environment(self.pinned.folder.run / "no-flower")
        child = self.children.start(
            "worker",
            launch.module(
                "fedhealth.site.worker",
                "--home",
                self.home.root,
                "--study",
                self.pinned.study.id,
                "--socket",
                socket_path,
                "--failure",
                failure,
                "--log-level",
                self.pinned.config.log_level,
            ),
            env=environment,
        )
        deadline = time.monotonic() + WORKER_START_S
        while not socket_path.exists():
            exit_code = child.exit_code()
            if exit_code is not None and exit_code < 0:
                break
            if exit_code is not None:
                raise read_failure(failure, self.home.logs / "worker.log")
            if self.stopping.wait(0.05):
                break
            if time.monotonic() > deadline:
                raise TransportError(
                    "FH-SITE-001",
                    f"the worker was not ready after {WORKER_START_S:.0f} s.",
                    fix=f"Look at {self.home.logs / 'worker.log'}.",
                )
        return child

    def _restart_worker(self, ended: Child) -> Child:
        """A worker that was killed (out of memory, say) comes back; one that refused stays away."""
        if (ended.exit_code() or 0) >= 0:
            raise read_failure(
                self.pinned.folder.run / "worker-failure.json", self.home.logs / "worker.log"
            )
        self._after_a_kill(ended)
        return self._start_worker()

    def _after_a_kill(self, ended: Child) -> None:
        self.notify(
            f"the worker was killed by signal {-(ended.exit_code() or 0)}; starting it again"
        )
        self.children.end(ended)
        self._back_off()

    def _dial(self) -> list[Child]:
        """The network zone, once the server answers; nothing yet after a wait in vain."""
        if server_answers(self.pinned.address, self.pinned.folder.ca_certificate):
            return [] if self.stopping.is_set() else self._start_network_zone()
        self.notify("no connection to the server")
        self._back_off()
        return []

    def _start_network_zone(self) -> list[Child]:
        folder, config = self.pinned.folder.run, self.pinned.config
        self._dialled_at = time.monotonic()
        port = free_port()
        secret = launch.new_secret(folder / "superexec.secret")
        environment = launch.flower_environment(
            folder / "flwr-home", **{SOCKET_VARIABLE: str(self._sockets / "worker.sock")}
        )
        started = []
        warm = self._sockets / "warm.sock" if config.fast_transport else None
        if warm is not None:
            started.append(
                self.children.start(
                    "relay", launch.module("fedhealth.flower.warm_start", warm), env=environment
                )
            )
        commands = launch.write_site_commands(folder / "bin", warm)
        environment = environment | {"PATH": f"{commands}:{environment['PATH']}"}
        started.append(
            self.children.start(
                "supernode",
                launch.supernode(
                    self.pinned.address,
                    self.pinned.folder.ca_certificate,
                    self.home.node_key,
                    port,
                    secret,
                    fast=config.fast_transport,
                ),
                env=environment,
            )
        )
        started.append(
            self.children.start("superexec", launch.site_superexec(port, secret), env=environment)
        )
        return started

    def _hang_up(self, node: list[Child]) -> list[Child]:
        """End the network zone, and wait before the site dials again; an identity that is refused is final."""
        supernode = next(child for child in node if child.name == "supernode")
        tail = supernode.log_tail()
        for child in reversed(node):
            self.children.end(child, grace_s=2.0)
        if _REFUSED.search(tail):
            raise not_admitted(self.pinned)
        if time.monotonic() - self._dialled_at > STABLE_AFTER_S:
            self._wait_s = 0.0
        if _STILL_COUNTED.search(tail):
            self.notify(
                "the server still counts this site's last connection; it ends within a minute"
            )
        else:
            self.notify("no connection to the server")
        self._back_off()
        return []

    def _back_off(self) -> None:
        config = self.pinned.config
        doubled = max(config.reconnect_first_s, 2 * self._wait_s)
        self._wait_s = min(config.reconnect_max_s, doubled)
        self.notify(f"trying again in {self._wait_s:.0f} s")
        self.stopping.wait(self._wait_s)


def _ready_text(isolation: object) -> str:
    if isolation == "network-namespace":
        return "worker ready: cohort read, no network in the data zone"
    return "worker ready: cohort read (without a network namespace of its own: site.yaml or the kernel)"


def not_admitted(pinned: Pinned) -> IdentityError:
    """The server does not know this site's key: not admitted (yet), or revoked."""
    return IdentityError(
        "FH-IDENTITY-020",
        f"the server refuses the key of site {pinned.config.site_id}: it is not admitted, or was revoked.",
        why="Only admitted sites may take part; nothing was sent but the key.",
        fix="Ask the coordinator to run `fedhealth server admit` with this site's request.json (and not "
        "`server revoke`), then start again.",
    )


def run_site(home: SiteHome, study_id: str, notify: Callable[[str], None]) -> int:
    """Run one site until SIGTERM, SIGINT or a final error; leaves no process behind.

    Returns:
        Exit code: 0 after SIGTERM, 130 after SIGINT.

    Raises:
        FedHealthError: why the site cannot go on.
    """
    pinned = load_pinned(home, study_id)
    with exclusive(pinned.folder.root / "lock", what=f"site {pinned.config.site_id}"):
        site = SiteProcesses(home=home, pinned=pinned, notify=notify)
        received: list[int] = []

        def stop(number: int, _frame: object) -> None:
            received.append(number)
            site.stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            site.run()
        except FedHealthError as error:
            write_json(pinned.folder.status, {"state": "failed", "code": error.code, "pid": None})
            raise
        write_json(pinned.folder.status, {"state": "stopped", "pid": None})
        return ExitCode.INTERRUPTED if signal.SIGINT in received else ExitCode.OK
