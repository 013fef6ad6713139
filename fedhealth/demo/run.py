"""Runs a demo: every step is a `fedhealth` command, as a coordinator and a hospital would type it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedhealth.demo.plan import DemoPlan, DemoSite, write_site, write_study
from fedhealth.durable import write_json
from fedhealth.errors import ExitCode, FedHealthError, TransportError, UsageError
from fedhealth.supervision.children import Child, Children

COMMAND_S: Final = 600.0
READY_S: Final = 300.0
PARALLEL_EVALUATIONS: Final = 2  # each has torch in memory


@dataclass(slots=True, kw_only=True)
class Demo:
    """One demo in one folder."""

    plan: DemoPlan
    folder: Path
    say: Callable[[str], None]
    _children: Children = field(init=False)
    _begin: float = field(init=False)

    def __post_init__(self) -> None:
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UsageError(
                "FH-USAGE-041",
                f"{self.folder} is not empty.",
                why="A demo begins with fresh keys and a fresh record.",
                fix="Choose another folder with --out.",
            )
        self._children = Children(self.folder / "logs")
        self._begin = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Provision, federate, evaluate; returns the per-site table and where the reports are.

        Raises:
            FedHealthError: a command failed; its own message was shown.
        """
        self._step(f"demo in {self.folder}")
        self._provision()
        try:
            self._federate()
        finally:
            self._children.end_all()
        results = self._evaluate()
        outcome = {
            "folder": str(self.folder),
            "seconds": round(time.monotonic() - self._begin, 1),
            "has_privacy": self.plan.has_privacy,
            "sites": results,
            "privacy": [self._spent(site) for site in self.plan.sites],
            "reports": [str(path) for path in self._reports()],
        }
        write_json(self.folder / "demo.json", outcome)
        return outcome

    def _provision(self) -> None:
        study = write_study(self.plan, self.folder)
        server = self._server()
        self._command("server", "init", study, "--home", server)
        for site in self.plan.sites:
            home = self._home(site)
            write_site(site, home)
            self._command("site", "init", "--invite", server / "invitation.json", "--home", home)
            (request,) = home.glob("studies/*/request.json")
            self._command("server", "admit", request, "--home", server)
            admission = server / "admissions" / f"{site.site_id}.json"
            self._command("site", "join", admission, "--home", home)
            self._step(f"{site.site_id}: keys made at the site, admitted, joined")
        if self.plan.has_masks:
            roster = self.folder / "roster.json"
            self._command("server", "roster", "--home", server, "--out", roster)
            for site in self.plan.sites:
                self._command("site", "pin", roster, "--home", self._home(site), "--yes")
            self._step("every hospital pinned the others' keys: the server will see sums only")

    def _federate(self) -> None:
        started = [
            self._children.start(
                site.site_id, self._argv("site", "start", "--home", self._home(site))
            )
            for site in self.plan.sites
        ]
        self._step(f"{len(started)} hospitals are starting, each with its own processes")
        server = subprocess.Popen(
            self._argv("server", "run", "--home", self._server()), stdin=subprocess.DEVNULL
        )
        try:
            while server.poll() is None:
                self._require_running(started)
                time.sleep(0.2)
        except BaseException:
            server.send_signal(signal.SIGTERM)
            server.wait()
            raise
        if server.returncode != 0:
            raise _failed("server run", server.returncode)
        self._step("all rounds done")

    def _require_running(self, sites: Sequence[Child]) -> None:
        for site in sites:
            if site.exit_code() is not None:
                self.say(site.log_tail(2000))
                raise _failed(f"site start ({site.name})", site.exit_code() or 0)

    def _evaluate(self) -> list[dict[str, Any]]:
        self._step("each hospital compares on its own held-out patients (the result stays there)")
        with ThreadPoolExecutor(PARALLEL_EVALUATIONS) as pool:
            tables = pool.map(self._evaluate_site, self.plan.sites)
            return list(tables)

    def _evaluate_site(self, site: DemoSite) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(
            self._command("site", "evaluate", "--home", self._home(site), "--json")
        )
        return result

    def _spent(self, site: DemoSite) -> dict[str, Any]:
        """What the hospital's own ledger says that this study cost each of its patients."""
        budget = json.loads(self._command("site", "budget", "--home", self._home(site), "--json"))
        (study,) = budget["studies"]
        return {"site_id": site.site_id, **study}

    def _reports(self) -> list[Path]:
        return sorted(self._server().glob("runs/*/reports/index.html"))

    def _server(self) -> Path:
        return self.folder / "server"

    def _home(self, site: DemoSite) -> Path:
        return self.folder / "sites" / site.site_id

    def _argv(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-I", "-m", "fedhealth", *(str(part) for part in arguments)]

    def _command(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            self._argv(*arguments),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        if done.returncode != 0:
            self.say(done.stderr)
            raise _failed(" ".join(str(part) for part in arguments[:2]), done.returncode)
        return done.stdout

    def _step(self, text: str) -> None:
        self.say(f"[{time.monotonic() - self._begin:5.1f} s] {text}")


def _failed(command: str, code: int) -> FedHealthError:
    error = TransportError(
        "FH-DEMO-001",
        f"`fedhealth {command}` ended with exit code {code}.",
        why="The lines above say why.",
        fix="Every command and log of the demo is in its folder; try the command by hand.",
    )
    if code in set(ExitCode):
        error.exit_code = ExitCode(code)
    return error
