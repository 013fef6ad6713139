"""A simulation on Ray, through `flwr run`: the model of one process, loopback only, nothing left behind."""

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhealth.config.load import load_study
from fedhealth.config.study import Study
from fedhealth.flower.simulation_place import SimulationPlace
from fedhealth.report.write import read_rounds
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.home import ServerHome
from fedhealth.simulation import OnRay, Progress, Simulation, generated_sites, simulate

from .conftest import processes_of, study_content, wait_until

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason='Ray is not installed: pip install ".[ray]" -c constraints.txt, or `make ray`',
    ),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "site_index": "{index}",
    "num_sites": 3,
    "num_patients": 40,
    "size": 16,
    "imaging": False,
}
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
LISTEN = "0A"


def records_study(folder: Path) -> Study:
    """The shipped tabular study, two rounds: every bit of a trained network depends on the order of sums."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "configs/simulation/study.yaml").read_text())
    content["runs"] = [
        {"name": "main", "num_rounds": 2, "personalisation": "private_head", "strategy": {"name": "fedper"}},
    ]  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_study(path)


def run_on(study: Study, folder: Path, **more: Any) -> Simulation:
    sites = generated_sites(study, folder, package="synthetic", num_sites=3, options=OPTIONS)
    return simulate(study, sites, folder, **more)


def listening(pids: set[int]) -> set[str]:
    """Hexadecimal addresses on which these processes listen."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(link.readlink()))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


def test_on_ray_the_model_is_that_of_one_process_bit_by_bit_and_only_loopback_is_listened_on(
    tmp_path: Path,
) -> None:
    study = records_study(tmp_path)
    addresses: set[str] = set()
    modes: set[int] = set()
    told: list[tuple[int, str]] = []

    def watch(progress: Progress) -> None:
        assert progress.record is not None, progress.text
        told.append((progress.record.round_number, progress.record.kind))
        addresses.update(listening(set(processes_of(tmp_path / "ray"))))
        plan = SimulationPlace(ServerHome(tmp_path / "ray/server")).read_plan()
        private = Path(plan.temp_dir).parent
        modes.add(private.stat().st_mode & 0o777)
        modes.add((private / "token").stat().st_mode & 0o777 | 0o100)

    here = run_on(study, tmp_path / "here")
    there = run_on(study, tmp_path / "ray", on_progress=watch, backend=OnRay())
    assert told == [(1, "train"), (2, "train"), (3, "evaluate")]
    pairs = zip(here.runs["main"].records, there.runs["main"].records, strict=True)
    for ours, theirs in pairs:
        assert ours.model_out_sha256 == theirs.model_out_sha256
        assert ours.aggregate_evaluate_metrics == theirs.aggregate_evaluate_metrics
        assert theirs.is_simulation
        assert [site.drop_code for site in theirs.sites] == [None] * 3
    assert "simulated by one party" in (there.runs["main"].reports / "index.html").read_text()
    private = [run.context("hospital-2", "main").state_dir for run in (here, there)]
    assert sorted(p.name for p in private[0].iterdir()) == sorted(
        p.name for p in private[1].iterdir()
    )
    assert modes == {0o700}, "Ray opens its own folder to everybody"
    assert addresses, "Ray and the SuperLink do listen"
    assert addresses <= LOOPBACK
    assert processes_of(tmp_path / "ray") == {}


def test_ctrl_c_ends_every_process_and_one_process_goes_on_from_the_last_round(
    tmp_path: Path,
) -> None:
    content = study_content({"step": 0.5, "wait_s": 0.5}, num_rounds=6, min_cohort=3)
    content["secure_aggregation"] = {"min_survivors": 3, "value_range": 8.0}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    argv = [
        sys.executable, "-I", "-m", "fedhealth", "simulate", str(tmp_path / "study.yaml"),
        "--num-sites", "3", "--train-size", "10", "--out", str(out), "--keep",
    ]  # fmt: skip
    reports = out / "server/runs/main/reports"
    with (tmp_path / "said.txt").open("w") as file:
        first = subprocess.Popen(
            [*argv, "--backend", "ray"], stdout=file, stderr=file, stdin=subprocess.DEVNULL
        )
        try:
            wait_until((reports / "round-0002.json").exists, 300, "two rounds were done")
            first.send_signal(signal.SIGINT)
            assert first.wait(timeout=90) == 130, (tmp_path / "said.txt").read_text()
        finally:
            first.kill()
            first.wait()
    assert processes_of(out) == {}
    before = len(read_rounds(reports))
    assert before < 7
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    complete = [r for r in read_rounds(reports) if r.status == "complete"]
    assert [(r.round_number, r.kind) for r in complete] == [
        *((number, "train") for number in range(1, 7)),
        (7, "evaluate"),
    ]
    model = read_last_checkpoint(ServerHome(out / "server").run("main")).vector
    expected = 6 * 0.5 * (1 + 2 + 3) / 3
    np.testing.assert_allclose(model, expected, atol=6 * 8 / 2**15)
