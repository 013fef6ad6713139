"""A masked round against a plain one in real federations over loopback TLS, as `round_overhead.py` runs them.

Training is `add_one`: after n rounds every element is n more than at first, but for n times the quantisation's step.
A plain round is one trip of a model down and an update up; the budget is 1.25 times two such trips. All plain sites
send the same update, of which Flower stores equal parts once: a plain round is then cheaper than one with updates of
different sites, and the ratio is never flattered by that.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from round_overhead import RUN, TIMEOUT_S, Plan, commands, first_model, provision, start
from secagg_cells.processes import Row

from fedhealth.report.record import RoundRecord
from fedhealth.server.checkpoint import read_last_checkpoint
from fedhealth.server.enrolment import issue_roster
from fedhealth.server.home import ServerHome
from fedhealth.site.enrolment import pin_roster, read_roster_file

SITES = 3
VALUE_RANGE, BITS = 4.0, 16
STEP = VALUE_RANGE / (2 ** (BITS - 1) - 1)
FLOAT32 = 1e-6  # of a value up to 16: what adding in float32 costs a round
MAX_RATIO = 1.25
POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class MaskedPlan(Plan):
    """The same federation with masks."""

    def study(self) -> dict[str, Any]:
        """The study file."""
        masks = {"min_survivors": SITES, "value_range": VALUE_RANGE, "bits": BITS}
        return super().study() | {"secure_aggregation": masks}


def measure(parameters: int, rounds: int) -> list[Row]:
    """A row of the plain federation, and one of the masked."""
    plain, masked = (
        _run(kind(sites=SITES, parameters=parameters, rounds=rounds, plain=False))
        for kind in (Plan, MaskedPlan)
    )
    if plain["round_s"] and masked["round_s"]:
        masked["times_a_plain_round"] = round(masked["round_s"] / plain["round_s"], 2)
        ratio = masked["round_s"] / (2 * plain["round_s"])
        masked["times_two_plain_trips"] = round(ratio, 2)
        masked["budget_times_two_plain_trips"] = MAX_RATIO
        masked["within_budget"] = ratio <= MAX_RATIO
    return [plain, masked]


def _run(plan: Plan) -> Row:
    load = os.getloadavg()[0]
    with TemporaryDirectory(prefix="fedhealth-bench-") as name:
        folder = Path(name)
        server, sites = provision(folder, plan)
        if isinstance(plan, MaskedPlan):
            roster = issue_roster(server, folder / "roster.json").path
            for home in sites:
                pin_roster(home, read_roster_file(home, roster))
        with commands() as started:
            for home in sites:
                started.append(
                    start(folder, home.root.name, "site", "start", "--home", str(home.root))
                )
            run = start(folder, "server", "server", "run", "--home", str(server.root))
            started.append(run)
            deadline = time.monotonic() + TIMEOUT_S
            while run.poll() is None and time.monotonic() < deadline:
                if any(site.poll() for site in started[:SITES]):
                    break  # a site that failed would be waited for in vain
                time.sleep(POLL_S)
        if run.returncode != 0:
            for output in sorted(folder.glob("*.out")):
                sys.stderr.write(f"{output.name}: {output.read_text()[-2000:]}\n")
        return _figures(plan, server) | {
            "exit_code": run.returncode,
            "load_1min_before": round(load, 2),
            "load_1min_after": round(os.getloadavg()[0], 2),
        }


def _figures(plan: Plan, server: ServerHome) -> Row:
    records = [
        RoundRecord.model_validate_json(path.read_bytes())
        for path in sorted(server.run(RUN).reports.glob("round-*.json"))
    ]
    opened = [datetime.fromisoformat(record.opened_at).timestamp() for record in records]
    rounds_s = [after - before for before, after in pairwise(opened[1:])]  # the first warms up
    steady = [record for record in records[1:] if record.kind == "train"]
    masking = [record.masking for record in steady if record.masking is not None]
    return {
        "kind": "masked" if isinstance(plan, MaskedPlan) else "plain",
        "sites": plan.sites,
        "parameters": plan.parameters,
        "rounds": plan.rounds,
        "round_s": round(statistics.median(rounds_s), 3) if rounds_s else None,
        "rounds_s": [round(seconds, 3) for seconds in rounds_s],
        "trips": 1 + max((fact.unmask_trips for fact in masking), default=0),
        "exchange_s": _median([record.timings.exchange_s for record in steady]),
        "aggregate_s": _median([record.timings.aggregate_s for record in steady]),
        "checkpoint_s": _median([record.timings.checkpoint_s for record in steady]),
        "bytes_up_per_parameter": _mean(
            [
                (site.wire_bytes_in or 0) / plan.parameters
                for record in steady
                for site in record.sites
            ]
        ),
        "result_is_right": _is_right(plan, server, records),
    }


def _is_right(plan: Plan, server: ServerHome, records: Sequence[RoundRecord]) -> bool:
    """All rounds complete, masked where they should be, and the model within quantisation of the known one."""
    trained = [record for record in records if record.kind == "train"]
    is_masked = isinstance(plan, MaskedPlan)
    if not all(record.status == "complete" for record in records) or len(trained) != plan.rounds:
        return False
    if any(
        (record.masking is not None and record.masking.is_masked) != is_masked for record in trained
    ):
        return False
    expected = first_model(plan.parameters) + np.float32(plan.rounds)
    error = np.abs(read_last_checkpoint(server.run(RUN)).vector - expected).max()
    return bool(error <= plan.rounds * ((STEP if is_masked else 0.0) + FLOAT32))


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None
