"""What `fedhealth simulate` shows: a line per round while it runs, and a table when it is done."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fedhealth.cli.output import say

if TYPE_CHECKING:
    from fedhealth.report.record import RoundRecord
    from fedhealth.simulation import Progress, SimulatedRun, Simulation

Table = Callable[[Sequence[str], Sequence[Sequence[object]]], str]
NOTE = "A simulation: all hospitals were one party. Records and pages say so; they are no evidence about a hospital."


class ProgressLine:
    """Shows progress: one line that is redrawn on a terminal, a line per round elsewhere."""

    def __init__(self) -> None:
        self._is_open = False

    def __call__(self, progress: "Progress") -> None:
        """Something happened."""
        if progress.run is None or progress.record is None:
            self.close()
            say(progress.text)
            return
        line = f"[{progress.seconds:6.1f} s] {progress.run.name}: {_what(progress.record, progress.run.num_rounds)}"
        if not sys.stderr.isatty():
            say(line)
            return
        print(f"\r\033[2K{line}", end="", file=sys.stderr, flush=True)
        self._is_open = True

    def close(self) -> None:
        """End the line that is being redrawn."""
        if self._is_open:
            print(file=sys.stderr)
            self._is_open = False


def _what(record: "RoundRecord", num_rounds: int) -> str:
    from fedhealth.report.record import SiteStatus

    of = (
        "final evaluation"
        if record.kind == "evaluate"
        else f"round {record.round_number} of {num_rounds}"
    )
    dropped = record.count(SiteStatus.DROPPED)
    tail = f", {dropped} dropped" if dropped else ""
    return f"{of} {record.status}{tail}"


def payload(done: "Simulation") -> dict[str, Any]:
    """The command's JSON: runs with their final means and hospitals."""
    return {
        "is_simulation": True,
        "study_id": done.study.id,
        "folder": str(done.folder),
        "seconds": round(done.seconds, 3),
        "num_sites": len(next(iter(done.runs.values())).records[-1].sites),
        "absent": dict(done.absent),
        "runs": [_run(run) for run in done.runs.values()],
    }


def _run(run: "SimulatedRun") -> dict[str, Any]:
    from fedhealth.report.record import SiteStatus

    trained = [record for record in run.records if record.kind == "train"]
    last = run.records[-1]
    return {
        "run_name": run.name,
        "strategy": last.strategy,
        "rounds": sum(record.status == "complete" for record in trained),
        "void_rounds": sum(record.status == "void" for record in run.records),
        "model_sha256": last.model_out_sha256,
        "mean_metrics": dict(last.aggregate_evaluate_metrics),
        "sites": [
            {
                "site_id": site.site_id,
                "contributed": _count(trained, site.site_id, SiteStatus.CONTRIBUTED),
                "dropped": _count(trained, site.site_id, SiteStatus.DROPPED),
                "metrics": dict(site.evaluate_metrics),
                "epsilon": None if site.privacy is None else site.privacy.epsilon,
            }
            for site in last.sites
        ],
        "report": str(run.reports / "index.html"),
    }


def _count(records: "Sequence[RoundRecord]", site_id: str, status: object) -> int:
    return sum(
        site.site_id == site_id and site.status is status
        for record in records
        for site in record.sites
    )


def text(result: dict[str, Any], table: Table) -> Iterator[str]:
    """Everything that is printed at the end."""
    yield ""
    head = f"{result['num_sites']} hospitals, {result['seconds']:.1f} s."
    yield f"{head} Metrics are of the final models, on validation patients."
    names = sorted({name for run in result["runs"] for name in run["mean_metrics"]})
    yield table(
        ["run", "strategy", "rounds", "void", *names],
        [
            [r["run_name"], r["strategy"], r["rounds"], r["void_rounds"]]
            + [r["mean_metrics"].get(name) for name in names]
            for r in result["runs"]
        ],
    )
    for run in result["runs"]:
        yield from _site_lines(run, table)
    yield ""
    yield NOTE


def _site_lines(run: dict[str, Any], table: Table) -> Iterator[str]:
    names = sorted({name for site in run["sites"] for name in site["metrics"]})
    yield ""
    yield f"{run['run_name']}: {run['report']}"
    yield table(
        ["hospital", "rounds", "dropped", *names, "epsilon"],
        [
            [site["site_id"], site["contributed"], site["dropped"]]
            + [site["metrics"].get(name) for name in names]
            + [site["epsilon"]]
            for site in run["sites"]
        ],
    )
