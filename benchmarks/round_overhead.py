"""What a round costs without training: ``python benchmarks/round_overhead.py``.

Real processes over loopback TLS, with the training method `add_one`, whose result is known: after n rounds
every element is n more than at first, and a run whose model differs ends this script with code 1. The first
model is random, since Flower sends equal parts of a message once only: zeros would cost next to nothing. A
round is the time from its record's `opened_at` to the next one's, round 1 left out. Memory of a server process
is its high-water mark (`VmHWM`); "beyond start-up" is that minus its resident memory when round 1 opened.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fedhealth.contracts.tensors import TensorSpec
from fedhealth.durable import read_json, write_atomically
from fedhealth.evidence.journal import Journal
from fedhealth.gate.gate import ReleaseTerms, release_update
from fedhealth.report.record import RoundRecord
from fedhealth.server.checkpoint import read_last_checkpoint, write_initial
from fedhealth.server.enrolment import admit, init_server
from fedhealth.server.home import ServerHome
from fedhealth.site.enrolment import SiteSettings, init_site, join
from fedhealth.site.home import SiteHome
from fedhealth.training.add_one import AddOne

MILLION = 1_000_000
MIB = 2**20
RUN = "main"
TENSOR = "tensor_0000"  # the only one of `add_one`
TARGET_ROUND_S = {1 * MILLION: 5.0, 25 * MILLION: 10.0}
TARGET_MODELS = 3.0
TIMEOUT_S = 900.0
STOP_S = 60.0
SAMPLE_S = 0.1
ROLES = {
    "server_app": "serverapp_process",
    "gateway": "fedhealth.server.gateway",
    "superlink": "flower-superlink",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One federation to measure."""

    sites: int
    parameters: int
    rounds: int
    plain: bool

    def study(self) -> dict[str, Any]:
        """The study file."""
        column = {"name": "age", "dtype": "float", "minimum": 0, "maximum": 120}
        table = {"kind": "table", "name": "ehr", "columns": [column]}
        return {
            "schema_version": 1,
            "id": "bench",
            "title": "Round overhead",
            "seed": 1,
            "data": {"modalities": [table]},
            "training": {
                "name": "add_one",
                "options": {"num_parameters": self.parameters},
                "local_steps": 1,
            },
            "federation": {
                "min_cohort": self.sites,  # a site that is late must not leave a round smaller
                "gather_s": 300,
                "cohort_wait_s": 300,
                "round_deadline_s": 300,
            },
            "runs": [{"name": RUN, "num_rounds": self.rounds}],
        }


@dataclass(kw_only=True)
class Usage:
    """Memory (bytes) and processor time (seconds) of one process."""

    pid: int
    at_round_1: int = 0
    peak: int = 0
    cpu_at_round_1: float = 0.0
    cpu: float = 0.0


@dataclass
class Watch:
    """Looks at the server's processes while they run."""

    home: ServerHome
    usage: dict[str, Usage] = field(default_factory=dict)
    has_opened: bool = False

    def look(self) -> None:
        """Take one sample; at the first one after round 1 opened, note what start-up needed."""
        if len(self.usage) < len(ROLES):
            self._find()
        opens = not self.has_opened and bool(read_json(self.home.run(RUN).status).get("attempt"))
        for one in self.usage.values():
            memory, cpu = _memory_of(one.pid), _cpu_of(one.pid)
            if not memory or cpu is None:
                continue  # it ended
            if opens:
                one.at_round_1, one.cpu_at_round_1 = memory["VmRSS"], cpu
            one.peak, one.cpu = max(one.peak, memory["VmHWM"]), cpu
        self.has_opened = self.has_opened or opens

    def _find(self) -> None:
        marker = str(self.home.root).encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                ours = marker in command + (entry / "environ").read_bytes()
            except OSError:
                continue
            for role, name in ROLES.items():
                if ours and name.encode() in command and role not in self.usage:
                    self.usage[role] = Usage(pid=int(entry.name))


def _memory_of(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {k: int(fields[k].split()[0]) * 1024 for k in ("VmRSS", "VmHWM") if k in fields}


def _cpu_of(pid: int) -> float | None:
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def first_model(parameters: int) -> NDArray[np.float32]:
    """Random values in [0, 1), the same at every call."""
    return np.random.default_rng(0).random(parameters, dtype=np.float32)


def provision(folder: Path, plan: Plan) -> tuple[ServerHome, list[SiteHome]]:
    """Homes of a server and its sites, enrolled and admitted."""
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(plan.study(), sort_keys=False))
    server = ServerHome(folder / "server")
    init_server(
        server, study, host="127.0.0.1", listen_host="127.0.0.1", port=0, method=AddOne()
    )  # fmt: skip
    write_initial(server.run(RUN), {TENSOR: first_model(plan.parameters)})
    sites = []
    for number in range(1, plan.sites + 1):
        site_id = f"hospital-{number}"
        home = SiteHome(folder / site_id)
        settings = SiteSettings(
            site_id=site_id,
            package="synthetic",  # named and never loaded: `add_one` reads no patient
            package_options={},
            data_dir=home.root / "data",
            train_size=10 * number,
        )
        request = init_site(home, server.invitation, settings).request_path
        join(home, admit(server, request).admission_path)
        if plan.plain:
            config = yaml.safe_load(home.config_path.read_text()) | {"fast_transport": False}
            write_atomically(home.config_path, yaml.safe_dump(config).encode())
        sites.append(home)
    return server, sites


@contextmanager
def commands() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Started commands; they are ended when the block ends, and end their own children."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in started:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its children carry a death signal
                process.wait()


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-I", "-m", "fedhealth", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def measure(plan: Plan, folder: Path) -> dict[str, Any]:
    """Run one federation to its end and give its figures."""
    server, sites = provision(folder, plan)
    watch, load = Watch(server), os.getloadavg()[0]
    with commands() as started:
        for home in sites:
            started.append(start(folder, home.root.name, "site", "start", "--home", str(home.root)))
        run = start(folder, "server", "server", "run", "--home", str(server.root))
        started.append(run)
        deadline = time.monotonic() + TIMEOUT_S
        while run.poll() is None and time.monotonic() < deadline:
            watch.look()
            time.sleep(SAMPLE_S)
    if run.returncode != 0:
        sys.stderr.write((folder / "server.out").read_text()[-4000:])
    return figures(plan, server, watch) | {
        "exit_code": run.returncode,
        "load_1min_before": round(load, 2),
        "load_1min_after": round(os.getloadavg()[0], 2),
    }


def figures(plan: Plan, server: ServerHome, watch: Watch) -> dict[str, Any]:
    """What the records, the last checkpoint and the samples say."""
    records = [
        RoundRecord.model_validate_json(path.read_bytes())
        for path in sorted(server.run(RUN).reports.glob("round-*.json"))
    ]
    opened = [datetime.fromisoformat(r.opened_at).timestamp() for r in records]
    rounds_s = [after - before for before, after in pairwise(opened[1:])]
    steady = [record for record in records[1:] if record.kind == "train"]
    model_bytes = 4 * plan.parameters
    return {
        "sites": plan.sites,
        "parameters": plan.parameters,
        "rounds": plan.rounds,
        "transport": "plain" if plan.plain else "fast",
        "round_s": round(statistics.median(rounds_s), 3) if rounds_s else None,
        "rounds_s": [round(seconds, 3) for seconds in rounds_s],
        "target_round_s": TARGET_ROUND_S.get(plan.parameters) if plan.sites == 3 else None,  # noqa: PLR2004 - the budget's own
        "exchange_s": _median([r.timings.exchange_s for r in steady]),
        "aggregate_s": _median([r.timings.aggregate_s for r in steady]),
        "checkpoint_s": _median([r.timings.checkpoint_s for r in steady]),
        "wire_mb_in_per_site": _median([(s.wire_bytes_in or 0) / 1e6 for s in steady[0].sites])
        if steady
        else None,
        "memory": {role: _memory(one, model_bytes) for role, one in watch.usage.items()},
        "cpu_s_per_round": {
            role: round((one.cpu - one.cpu_at_round_1) / (plan.rounds + 1), 2)
            for role, one in watch.usage.items()
        },
        "target_models_server_app": TARGET_MODELS,
        "gate_and_journal_s": round(gate_and_journal_s(plan.parameters), 4),
        "result_is_right": result_is_right(plan, server, records),
    }


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def _memory(one: Usage, model_bytes: int) -> dict[str, float]:
    beyond = max(0, one.peak - one.at_round_1)
    return {
        "at_round_1_mib": round(one.at_round_1 / MIB, 1),
        "peak_mib": round(one.peak / MIB, 1),
        "beyond_start_mib": round(beyond / MIB, 1),
        "beyond_start_models": round(beyond / model_bytes, 2),
    }


def result_is_right(plan: Plan, server: ServerHome, records: list[RoundRecord]) -> bool:
    """Every round complete with every site, and every element its first value plus the number of rounds."""
    kinds = [record.kind for record in records]
    complete = all(
        record.status == "complete" and all(site.status == "contributed" for site in record.sites)
        for record in records
    )
    last = read_last_checkpoint(server.run(RUN))
    return (
        kinds == ["train"] * plan.rounds + ["evaluate"]
        and complete
        and last.round_number == plan.rounds
        and bool(
            np.allclose(last.vector, first_model(plan.parameters) + plan.rounds, rtol=1e-5, atol=0)
        )
    )


def gate_and_journal_s(parameters: int) -> float:
    """Seconds of the gate, the update's digest and a journal line, as a site does them once a round."""
    tensors = {TENSOR: np.ones(parameters, dtype=np.float32)}
    terms = ReleaseTerms(spec=TensorSpec.of(tensors), metrics=(), metric_digits=3)
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal.jsonl")
        for _ in range(5):
            begin = time.perf_counter()
            released = release_update(tensors, train_metrics={}, evaluate_metrics={}, terms=terms)
            journal.append("update", {"payload_sha256": released.digest, "num_bytes": 0})
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "fedhealth": version("fedhealth"),
        "flwr": version("flwr"),
    }


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    memory = row["memory"]
    cells = [
        f"{row['parameters'] / MILLION:>6g}M",
        f"{row['sites']:>5}",
        f"{row['round_s'] or float('nan'):>8.2f}",
        f"{row['exchange_s'] or float('nan'):>8.2f}",
        f"{row['aggregate_s'] or float('nan'):>6.2f}",
        f"{row['checkpoint_s'] or float('nan'):>6.2f}",
    ]
    for role in ROLES:
        one = memory.get(role, {})
        beyond = one.get("beyond_start_models", float("nan"))
        cells.append(f"{one.get('peak_mib', float('nan')):>6.0f} MiB +{beyond:>5.2f}")
    share = row["gate_and_journal_s"] / row["round_s"] if row["round_s"] else float("nan")
    cells += [f"{share:>6.1%}", "right" if row["result_is_right"] else "WRONG"]
    return "  ".join(cells)


def plans(arguments: argparse.Namespace) -> list[Plan]:
    """3 sites at 1M and 25M, 8 sites at 25M; what the command line names takes their place."""
    sizes = [(3, 1 * MILLION), (3, 25 * MILLION), (8, 25 * MILLION)]
    if arguments.quick:
        sizes = [(3, 1 * MILLION)]
    if arguments.sites or arguments.parameters:
        sizes = [(arguments.sites or 3, arguments.parameters or MILLION)]
    rounds = arguments.rounds or (3 if arguments.quick else 6)
    return [
        Plan(sites=sites, parameters=count, rounds=rounds, plain=arguments.plain_transport)
        for sites, count in sizes
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="machine facts and rows as JSON")
    parser.add_argument("--quick", action="store_true", help="1M parameters, 3 sites, 3 rounds")
    parser.add_argument("--sites", type=int, help="at least 2")
    parser.add_argument("--parameters", type=int, help="float32 elements of the model")
    parser.add_argument("--rounds", type=int, help="at least 2")
    parser.add_argument(
        "--plain-transport", action="store_true", help="sites with fast_transport: false"
    )
    arguments = parser.parse_args()
    if not arguments.json:
        print("params  sites  round s  exchg s  agg s  ckpt s  peak, models beyond start: ", end="")
        print(", ".join(ROLES), " gate+journal  result")
    rows = []
    for plan in plans(arguments):
        with tempfile.TemporaryDirectory(prefix="fedhealth-bench-") as folder:
            rows.append(measure(plan, Path(folder)))
        if not arguments.json:
            print(show(rows[-1]), flush=True)
    if arguments.json:
        found = {"schema_version": 1, "benchmark": "round_overhead", "machine": machine()}
        print(json.dumps(found | {"rows": rows}))
    return 0 if all(row["result_is_right"] and row["exit_code"] == 0 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
