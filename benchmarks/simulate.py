"""What a simulation costs: the shipped tabular study with 20 hospitals and 50 rounds, in seconds of one core.

python benchmarks/simulate.py [--quick] [--json]

`cpu_s` is what counts on a machine with other work; `wall_s` beside it says how loaded the machine was.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from fedhealth.config.load import load_study
from fedhealth.simulation import Progress, generated_sites, simulate

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
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, time.monotonic()


def measure(num_sites: int, num_rounds: int, folder: Path) -> dict[str, Any]:
    meter = Meter()
    content = yaml.safe_load(STUDY.read_text("utf-8"))
    content["runs"][0]["num_rounds"] = num_rounds
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    study, out = load_study(path), folder / "out"
    sites = generated_sites(study, out, package="synthetic", num_sites=num_sites, options=OPTIONS)
    meter.mark("generate cohorts")

    def told(progress: Progress) -> None:
        if progress.record is not None:
            is_first = progress.record.round_number == 1
            meter.mark("keys, imports and the first round" if is_first else "further rounds")

    done = simulate(study, sites, out, told)
    meter.mark("pages")
    (run,) = done.runs.values()
    laps = [record.timings for record in run.records[1:]]
    rounds = meter.parts["further rounds"]
    total = {unit: sum(part[unit] for part in meter.parts.values()) for unit in ("cpu_s", "wall_s")}
    return {
        "schema_version": 1,
        "num_sites": num_sites,
        "num_rounds": num_rounds,
        "num_parameters": run.spec.num_elements,
        **_rounded(total),
        "rounds_per_cpu_s": round(len(laps) / rounds["cpu_s"], 2),
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 hospitals, 10 rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    num_sites, num_rounds = (5, 10) if args.quick else (20, 50)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(num_sites, num_rounds, Path(folder))
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")
    is_over = not args.quick and result["cpu_s"] > BUDGET_CPU_S
    if is_over:
        sys.stderr.write(f"over the budget of {BUDGET_CPU_S:.0f} s of one core\n")
    return int(is_over)


if __name__ == "__main__":
    sys.exit(main())
