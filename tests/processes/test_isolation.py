"""The two zones of a hospital, seen by the kernel: real processes under strace through one faulted round."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from fedhealth.contracts.codes import DropCode
from fedhealth.durable import read_json

from .conftest import Federation, factory, processes_of, study_content, wait, wait_until

ROOT = Path(__file__).parents[2]
TRACED = ("hospital-1", "hospital-2")
FAULTED = "hospital-2"
WORKER = "fedhealth.site.worker"
NETWORK_ZONE = ("fedhealth.flower.warm_start", "fedhealth.flower.supernode_process", "superexec")


@pytest.fixture(scope="module")
def strace() -> str:
    if shutil.which("strace") is None and os.getuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "strace"]
        for attempt in (["apt-get", "update", "-qq"], command):
            subprocess.run(attempt, check=False, capture_output=True, timeout=120)
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed, and this account cannot install it")
    if subprocess.run([found, "-qq", "-o", os.devnull, "true"], check=False).returncode != 0:
        pytest.skip("this system does not let a process be traced")
    return found


@dataclass(frozen=True)
class Process:
    """One traced process: everything its threads and it asked of the kernel."""

    command: str
    calls: list[str]

    def opened(self) -> list[str]:
        return [call for call in self.calls if call.startswith("open") and " = -1 " not in call]

    def mentions(self, path: Path) -> list[str]:
        return [call for call in self.calls if str(path) in call and not call.startswith("exec")]


@dataclass
class Traced:
    """What the kernel saw at one site."""

    federation: Federation
    folders: dict[str, Path]
    mapped: dict[str, dict[str, str]]
    """site -> role -> memory map while the round was at work"""

    def processes(self, site_id: str) -> list[Process]:
        """Every process, with the command of its nearest ancestor that has one (forks have none)."""
        calls = {
            int(path.suffix[1:]): path.read_text(errors="replace").splitlines()
            for path in self.folders[site_id].glob("trace.*")
        }
        parents = {
            int(found[1]): pid
            for pid, lines in calls.items()
            for line in lines
            if (found := re.match(r"(?:clone3?|v?fork)\(.* = (\d+)", line))
        }

        def command(pid: int) -> str:
            for line in reversed(calls.get(pid, [])):
                if line.startswith("execve(") and line.endswith(" = 0"):
                    return line
            return command(parents[pid]) if pid in parents else "?"

        return [Process(command=command(pid), calls=lines) for pid, lines in calls.items()]

    def data_zone(self, site_id: str) -> list[Process]:
        return [p for p in self.processes(site_id) if WORKER in p.command]

    def network_zone(self, site_id: str) -> list[Process]:
        """Everything that is not the worker, the supervisor included."""
        return [p for p in self.processes(site_id) if WORKER not in p.command]

    def data_dir(self, site_id: str) -> Path:
        return self.federation.sites[site_id].root / "data"


def study() -> dict[str, object]:
    tests = yaml.safe_load((ROOT / "configs/synthetic/study-tests.yaml").read_text())
    options = {"fault": "raise", "fault_site": FAULTED, "reads_cohort": True, "wait_s": 4}
    content = study_content(options, cohort_wait_s=150, gather_s=120)
    content["data"] = tests["data"]
    return content


@pytest.fixture(scope="module")
def traced(strace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    root = tmp_path_factory.mktemp("isolation")
    for make in factory(root):
        federation = make(
            study(),
            package_options=lambda index: {"site_index": index, "num_patients": 12, "size": 16},
        )
        folders = {site_id: root / f"strace-{site_id}" for site_id in TRACED}
        for site_id, folder in folders.items():
            folder.mkdir()
            start_traced(federation, site_id, strace, folder)
        federation.start_site("hospital-3")
        server = federation.start_server()
        wait_training(federation)
        mapped = {site_id: memory_maps(federation.sites[site_id].root) for site_id in TRACED}
        assert wait(server, 150) == 0, federation.output("server")
        federation.end()
        wait_until(lambda: not tracers(root), 30, "strace wrote everything")
        yield Traced(federation=federation, folders=folders, mapped=mapped)


def wait_training(federation: Federation) -> None:
    status = [federation.sites[site].study("scripted").status for site in TRACED]
    wait_until(
        lambda: all(read_json(path).get("state") == "working" for path in status),
        200,
        "both traced sites train",
    )


def start_traced(federation: Federation, site_id: str, strace: str, folder: Path) -> None:
    """`site start` with a tracer beside it (`-D`), so that the process is our own child all the same."""
    calls = "%network,%process,open,openat,openat2,creat"
    options = ["-D", "-ff", "-qq", "-y", "-s", "4096", "-e", f"trace={calls}"]
    start = [
        "-I",
        "-m",
        "fedhealth",
        "site",
        "start",
        "--home",
        str(federation.sites[site_id].root),
    ]
    with (federation.root / f"{site_id}.out").open("a") as out:
        process = subprocess.Popen(
            [strace, *options, "-o", str(folder / "trace"), sys.executable, *start],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
    federation.processes.append(process)


def tracers(root: Path) -> list[str]:
    return [command for command in processes_of(root).values() if "strace" in command.split()[0]]


def memory_maps(home: Path) -> dict[str, str]:
    """Memory map of each living process of a site, by its command line."""
    found = {}
    for pid, command in processes_of(home).items():
        try:
            found[f"{pid} {command}"] = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("site_id", TRACED)
def test_the_trace_saw_every_process_of_the_site(traced: Traced, site_id: str) -> None:
    commands = "\n".join(process.command for process in traced.processes(site_id))
    for part in (*NETWORK_ZONE, WORKER, "clientapp_stub"):
        assert part in commands, part
    forks = [p for p in traced.network_zone(site_id) if "warm_start" in p.command]
    assert len(forks) > 2, "the relay forked for each message"


def test_the_round_went_on_without_the_faulted_site(traced: Traced) -> None:
    first, closing = traced.federation.records()
    codes = {site.site_id: site.drop_code for site in first.sites}
    assert codes == {"hospital-1": None, FAULTED: DropCode.SITE_ERROR, "hospital-3": None}
    assert {site.drop_code for site in closing.sites} == {None}


@pytest.mark.parametrize("site_id", TRACED)
def test_the_worker_read_the_data_so_the_trace_is_not_blind(traced: Traced, site_id: str) -> None:
    data = traced.data_dir(site_id)
    assert any(data.rglob("*.csv"))
    (reads,) = [
        hits
        for p in traced.data_zone(site_id)
        if (hits := [c for c in p.opened() if str(data) in c])
    ]
    assert any(".csv" in call for call in reads)


@pytest.mark.parametrize("site_id", TRACED)
def test_no_process_but_the_worker_opens_a_file_of_the_data_folder(
    traced: Traced, site_id: str
) -> None:
    for process in traced.network_zone(site_id):
        assert process.mentions(traced.data_dir(site_id)) == [], process.command


@pytest.mark.parametrize("site_id", TRACED)
def test_the_network_zone_has_never_imported_torch(traced: Traced, site_id: str) -> None:
    for process in traced.network_zone(site_id):
        hits = [call for call in process.opened() if re.search(r"/torch/|libtorch|/monai/", call)]
        assert hits == [], process.command
    zones = {name: maps for name, maps in traced.mapped[site_id].items() if WORKER not in name}
    for part in NETWORK_ZONE:
        assert any(part in name for name in zones), part
    for name, maps in zones.items():
        assert "libtorch" not in maps, name


@pytest.mark.parametrize("site_id", TRACED)
def test_the_worker_opened_no_network_socket(traced: Traced, site_id: str) -> None:
    sockets = [
        call
        for process in traced.data_zone(site_id)
        for call in process.calls
        if re.match(r"socket(pair)?\(", call)
    ]
    assert sockets, "the unix socket of the relay is among them"
    assert [call for call in sockets if not re.match(r"socket(pair)?\(AF_UNIX,", call)] == []
    dialled = [
        c
        for p in traced.data_zone(site_id)
        for c in p.calls
        if re.search(r"AF_INET|AF_NETLINK|AF_PACKET", c)
    ]
    assert dialled == []


@pytest.mark.parametrize("site_id", TRACED)
def test_the_network_zone_did_dial_so_the_trace_sees_sockets(traced: Traced, site_id: str) -> None:
    dialled = [c for p in traced.network_zone(site_id) for c in p.calls if "AF_INET" in c]
    assert dialled


def test_the_cause_of_the_fault_is_found_nowhere_outside_the_site(traced: Traced) -> None:
    needle = b"DOE^JOHN"
    outside = [traced.federation.server.root, traced.federation.sites["hospital-1"].root]
    outside += [traced.federation.sites[FAULTED].logs]
    hits = [
        path
        for folder in outside
        for path in folder.rglob("*")
        if path.is_file() and needle in path.read_bytes()
    ]
    assert hits == []
