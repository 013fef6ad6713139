"""What a simulation costs: the shipped tabular study with 20 hospitals and 50 rounds, in seconds of one core.

python benchmarks/simulate.py [--backend ray] [--quick] [--json]

`cpu_s` is what counts on a machine with other work; `wall_s` beside it says how loaded the machine was.
With `--backend ray` the same study is simulated in this process and on Ray, one after the other, and compared:
processor time is that of all processes, and the models have to be the same.
"""

import argparse
import ctypes
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import yaml

from fedhealth.config.load import load_study
from fedhealth.simulation import InProcess, OnRay, Progress, generated_sites, simulate

STUDY = Path(__file__).parents[1] / "configs/simulation/study.yaml"
OPTIONS = {
    "site_index": "{index}",
    "num_sites": "{num_sites}",
    "num_patients": 120,
    "size": 16,
    "imaging": False,
}
BUDGET_CPU_S = 60.0
"""A 20-site, 50-round tabular study in under a minute."""
PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)


class Meter:
    """CPU and wall seconds between marks."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self._last = _now()

    def mark(self, name: str) -> None:
        """Give the seconds since the last mark to `name`."""
        now = _now()
        part = self.parts.setdefault(name, {"cpu_s": 0.0, "wall_s": 0.0})
        part["cpu_s"] += now[0] - self._last[0]
        part["wall_s"] += now[1] - self._last[1]
        self._last = now


def _now() -> tuple[float, float]:
    """CPU of this process and of every descendant that has ended, and the clock."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used), time.monotonic()


def adopt_orphans() -> None:
    """Make this process the parent of orphaned descendants, so that their processor time is told here."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def bury_orphans(within_s: float = 5.0) -> None:
    """Wait for what adoption brought here."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
        except ChildProcessError:
            return


def measure(
    num_sites: int, num_rounds: int, folder: Path, backend: InProcess | OnRay
) -> dict[str, Any]:
    meter = Meter()
    content = yaml.safe_load(STUDY.read_text("utf-8"))
    content["runs"][0]["num_rounds"] = num_rounds
    folder.mkdir()
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    study, out = load_study(path), folder / "out"
    sites = generated_sites(study, out, package="synthetic", num_sites=num_sites, options=OPTIONS)
    meter.mark("generate cohorts")

    def told(progress: Progress) -> None:
        if progress.record is not None:
            is_first = progress.record.round_number == 1
            meter.mark("keys, imports and the first round" if is_first else "further rounds")

    done = simulate(study, sites, out, told, backend=backend)
    bury_orphans()
    meter.mark("pages, and the end of all processes")
    (run,) = done.runs.values()
    laps = [record.timings for record in run.records[1:]]
    rounds = meter.parts["further rounds"]
    total = {unit: sum(part[unit] for part in meter.parts.values()) for unit in ("cpu_s", "wall_s")}
    return {
        "schema_version": 1,
        "num_sites": num_sites,
        "num_rounds": num_rounds,
        "num_parameters": run.spec.num_elements,
        "model_sha256": run.records[-1].model_out_sha256,
        **_rounded(total),
        "rounds_per_cpu_s": round(len(laps) / max(rounds["cpu_s"], 1e-9), 2),
        "rounds_per_wall_s": round(len(laps) / rounds["wall_s"], 2),
        "parts": {name: _rounded(part) for name, part in meter.parts.items()},
        "share_of_rounds": {
            "hospitals": _share([lap.exchange_s for lap in laps], [lap.total_s for lap in laps]),
            "aggregate": _share([lap.aggregate_s for lap in laps], [lap.total_s for lap in laps]),
            "checkpoint": _share([lap.checkpoint_s for lap in laps], [lap.total_s for lap in laps]),
        },
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _rounded(part: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in part.items()}


def _share(parts: list[float], totals: list[float]) -> float:
    return round(sum(parts) / max(sum(totals), 1e-9), 3)


def compare(num_sites: int, num_rounds: int, folder: Path) -> dict[str, Any]:
    """One process and Ray after each other on this machine, with their ratios (above 1: Ray takes more)."""
    adopt_orphans()
    here = measure(num_sites, num_rounds, folder / "here", InProcess())
    ray = measure(num_sites, num_rounds, folder / "ray", OnRay())
    if here["model_sha256"] != ray["model_sha256"]:
        raise SystemExit("the two backends gave different models")
    here_round, ray_round = (
        part["parts"]["further rounds"]["wall_s"] / num_rounds for part in (here, ray)
    )
    # On Ray rounds are another process's: their processor time is known when it has ended.
    del ray["rounds_per_cpu_s"]
    for part in ray["parts"].values():
        part.pop("cpu_s")
    return {
        "schema_version": 1,
        "cores": os.cpu_count(),
        "in_process": here,
        "ray": ray,
        "ray_over_in_process": {
            "cpu_s": round(ray["cpu_s"] / here["cpu_s"], 2),
            "wall_s": round(ray["wall_s"] / here["wall_s"], 2),
            "wall_s_of_a_round": round(ray_round / max(here_round, 1e-9), 2),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 hospitals, 10 rounds")
    parser.add_argument("--backend", choices=["in-process", "ray"], default="in-process")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    num_sites, num_rounds = (5, 10) if args.quick else (20, 50)
    with tempfile.TemporaryDirectory() as folder:
        if args.backend == "ray":
            result = compare(num_sites, num_rounds, Path(folder))
        else:
            result = measure(num_sites, num_rounds, Path(folder) / "here", InProcess())
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")
    is_over = args.backend == "in-process" and not args.quick and result["cpu_s"] > BUDGET_CPU_S
    if is_over:
        sys.stderr.write(f"over the budget of {BUDGET_CPU_S:.0f} s of one core\n")
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
