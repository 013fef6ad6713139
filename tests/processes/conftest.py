"""Real federations over loopback TLS: provisioned by fedhealth's own functions, run by its own commands."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhealth.report.record import RoundRecord
from fedhealth.server.enrolment import admit, init_server, issue_roster
from fedhealth.server.home import ServerHome
from fedhealth.site.enrolment import (
    SiteSettings,
    init_site,
    join,
    pin_roster,
    read_roster_file,
)
from fedhealth.site.home import SiteHome
from fedhealth.site.sessions import load_training_method

DATA: dict[str, Any] = {
    "modalities": [
        {
            "kind": "table",
            "name": "ehr",
            "columns": [{"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}],
        }
    ]
}


def study_content(
    options: Mapping[str, Any], *, num_rounds: int = 1, **federation: Any
) -> dict[str, Any]:
    rules = {"min_cohort": 2, "gather_s": 60, "cohort_wait_s": 90, "round_deadline_s": 60}
    return {
        "schema_version": 1,
        "id": "scripted",
        "title": "Known updates",
        "seed": 7,
        "data": DATA,
        "training": {"name": "scripted", "options": dict(options), "local_steps": 1},
        "federation": rules | federation,
        "release": {"metrics": ["auc", "log_loss", "train_loss"]},
        "runs": [{"name": "main", "num_rounds": num_rounds}],
    }


@dataclass
class Federation:
    """One server's home and its sites' homes, and the processes that were started."""

    root: Path
    server: ServerHome
    sites: dict[str, SiteHome] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start_site(self, site_id: str, *extra: str) -> subprocess.Popen[str]:
        return self.command(
            "site", "start", "--home", str(self.sites[site_id].root), *extra, out=f"{site_id}.out"
        )

    def start_sites(self, site_ids: Sequence[str] | None = None) -> None:
        for site_id in site_ids or self.sites:
            self.start_site(site_id)

    def start_server(self) -> subprocess.Popen[str]:
        return self.command("server", "run", "--home", str(self.server.root), out="server.out")

    def command(self, *arguments: str, out: str) -> subprocess.Popen[str]:
        with (self.root / out).open("a") as file:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "fedhealth", *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        self.processes.append(process)
        return process

    def output(self, name: str) -> str:
        return (self.root / f"{name}.out").read_text()

    def records(self, run: str = "main") -> list[RoundRecord]:
        folder = self.server.run(run).reports
        return [
            RoundRecord.model_validate_json(path.read_bytes())
            for path in sorted(folder.glob("round-*.json"))
        ]

    def run_to_the_end(self, timeout_s: float = 150) -> int:
        self.start_sites()
        return wait(self.start_server(), timeout_s)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def pin_everywhere(federation: Federation) -> None:
    """The roster goes to every site, which pins it."""
    path = issue_roster(federation.server, federation.root / "roster.json").path
    for home in federation.sites.values():
        pin_roster(home, read_roster_file(home, path))


def wait(process: subprocess.Popen[str], timeout_s: float) -> int:
    return process.wait(timeout=timeout_s)


def wait_until(is_true: Callable[[], bool], timeout_s: float, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.1)


def processes_of(home: Path) -> dict[int, str]:
    """Every living process with this home on its command line or in its environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and str(home).encode() in command + environment:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


MakeFederation = Callable[..., Federation]


@pytest.fixture
def make_federation(tmp_path: Path) -> Iterator[MakeFederation]:
    """A factory of provisioned federations; ends every process at the end of the test."""
    yield from factory(tmp_path)


def factory(root: Path) -> Iterator[MakeFederation]:
    made: list[Federation] = []

    def make(
        content: Mapping[str, Any],
        *,
        num_sites: int = 3,
        sizes: Sequence[int] = (10, 20, 30, 40, 50),
        name: str = "federation",
        package: str = "synthetic",
        package_options: Callable[[int], Mapping[str, object]] = lambda _: {},
        modalities: Mapping[int, tuple[str, ...]] | None = None,
        variants: Mapping[int, str] | None = None,
    ) -> Federation:
        folder = root / name
        folder.mkdir(parents=True)
        study = folder / "study.yaml"
        study.write_text(yaml.safe_dump(dict(content), sort_keys=False))
        federation = Federation(root=folder, server=ServerHome(folder / "server"))
        made.append(federation)
        method = load_training_method(content["training"].get("name", "supervised"))
        init_server(
            federation.server, study, host="127.0.0.1", listen_host="127.0.0.1", port=0,
            method=method,
        )  # fmt: skip
        for index in range(num_sites):
            site_id = f"hospital-{index + 1}"
            home = SiteHome(folder / site_id)
            federation.sites[site_id] = home
            settings = SiteSettings(
                site_id=site_id,
                package=package,
                package_options=package_options(index),
                data_dir=home.root / "data",
                train_size=sizes[index],
                modalities=(modalities or {}).get(index + 1),
                variant=(variants or {}).get(index + 1),
            )
            done = init_site(home, federation.server.invitation, settings)
            with home.config_path.open("a") as file:
                file.write("reconnect_first_s: 0.2\nreconnect_max_s: 0.5\n")
            join(home, admit(federation.server, done.request_path).admission_path)
        if "secure_aggregation" in content:
            pin_everywhere(federation)
        return federation

    try:
        yield make
    finally:
        for federation in made:
            federation.end()
