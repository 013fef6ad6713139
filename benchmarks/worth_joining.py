"""Was it worth joining? The registered comparison of `protocol.yaml`, and what came of each of its bars.

    python benchmarks/worth_joining.py [--json] [--quick] [--part PART ...] [--design]

Parts: heart, generated, controls, controls_again (second registration), ceiling (what nobody can exceed).
`--design` chooses each method's setting on the design seeds by the protocol's rule and prints the protocol's `chosen`;
it never touches a judged seed. Without it the judged seeds are run with what is chosen there. A bar that is missed is
printed as missed; the exit code tells only whether everything ran. `--quick`: one design seed, two methods, no epsilon.

The product's own parts do the work (plans, private steps, sessions, personal state, tuned baseline, evaluation,
statistics); the network and the server's mean, weighted by declared size, are simulated in one process.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joining_cells import ceiling, cohorts, controls, controls_again, judge, methods
from joining_cells.protocol import CohortName, Setting, read_protocol, settings_of

PARTS = ("heart", "generated", "controls", "controls_again", "ceiling")
NOISE_FREE = ("tuned", "pooled", "table_only", "volume_only")
SINGLE = {"table_only": ("ehr",), "volume_only": ("t1",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All methods of one cohort with one seed; with `every_setting` the whole grid."""

    cohort: CohortName
    seed: int
    every_setting: bool
    is_quick: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One method at one hospital."""

    cohort: CohortName
    seed: int
    epsilon: float | None
    method: str
    setting: str
    hospital: str
    scores: judge.Scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="one seed, no epsilon, two methods")
    parser.add_argument("--design", action="store_true", help="choose settings, judge nothing")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=None)
    args = parser.parse_args()
    started = time.monotonic()
    protocol = read_protocol()
    parts = args.part or [
        "heart",
        "generated",
        *([] if args.design or args.quick else PARTS[2:]),
    ]
    chosen_cohorts: list[CohortName] = [c for c in ("heart", "generated") if c in parts]  # type: ignore[misc]
    seeds_key = "design_seeds" if args.design or args.quick else "judged_seeds"
    jobs = [
        Job(cohort=cohort, seed=seed, every_setting=args.design, is_quick=args.quick)
        for cohort in chosen_cohorts
        for seed in protocol["cohorts"][cohort][seeds_key][: 1 if args.quick else None]
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = [result for found in pool.map(run_job, jobs) for result in found]
        found_controls = (
            list(pool.map(controls.run, controls.jobs())) if "controls" in parts else []
        )
        found_again = (
            list(pool.map(controls_again.run, controls_again.jobs()))
            if "controls_again" in parts
            else []
        )
        found_ceilings = (
            list(pool.map(ceiling.ceilings, protocol["cohorts"]["generated"]["judged_seeds"]))
            if "ceiling" in parts
            else []
        )
    record: dict[str, Any] = {"schema_version": 1, "benchmark": "worth_joining"}
    if args.design:
        record["chosen"] = choose(results)
        record["personalised"] = choose_method(results, record["chosen"], protocol)
    else:
        record["rows"] = judge.rows(results, protocol)
        record["bars"] = judge.bars(results, protocol) if not args.quick else []
        if found_controls:
            record["controls"] = controls.summarise(found_controls, protocol)
        if found_again:
            record["controls_again"] = controls_again.summarise(found_again, protocol)
        if found_ceilings:
            record["ceiling"] = ceiling.summarise([c for each in found_ceilings for c in each])
    record["seconds"] = round(time.monotonic() - started, 1)
    if args.json:
        print(json.dumps(record))
    else:
        judge.print_record(record)
    return 0


def run_job(job: Job) -> list[Result]:
    """All methods at all epsilons on the same patients."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        hospitals = cohorts.load(job.cohort, job.seed, Path(folder))
        return [
            Result(
                cohort=job.cohort,
                seed=job.seed,
                epsilon=epsilon,
                method=method,
                setting=name,
                hospital=hospital.name,
                scores=judge.Scores.of(
                    scores[hospital.name],
                    hospital,
                    seed=None if job.cohort == "heart" else job.seed,
                ),
            )
            for method, epsilon, name, setting in plan(job)
            for scores in (predictions(job, method, epsilon, setting, hospitals),)
            for hospital in hospitals
        ]


def plan(job: Job) -> Iterator[tuple[str, float | None, str, Setting]]:
    """Method, epsilon and setting of everything that a job runs."""
    protocol = read_protocol()
    grid, first = settings_of(protocol), next(iter(settings_of(protocol)))
    own = ("local", "fedavg", *protocol["personalised_of"])
    if job.is_quick:
        yield ("tuned", None, first, grid[first])
        yield ("private_head", None, first, grid[first])
        return
    if not job.every_setting:
        for method in NOISE_FREE:
            if method not in SINGLE or job.cohort == "generated":
                yield (method, None, first, grid[first])
    for epsilon in protocol["epsilons"]:
        for method in own:
            if job.every_setting:
                yield from ((method, epsilon, name, grid[name]) for name in grid)
            else:
                name = protocol["chosen"][job.cohort][judge.label_of(epsilon)][method]
                yield (method, epsilon, name, grid[name])


def predictions(
    job: Job,
    method: str,
    epsilon: float | None,
    setting: Setting,
    hospitals: Sequence[cohorts.Hospital],
) -> methods.Predictions:
    if method == "tuned":
        return methods.tuned(job.cohort, setting, hospitals, seed=job.seed)
    if method == "pooled":
        return methods.pooled_tuned(job.cohort, setting, hospitals, seed=job.seed)
    if method in SINGLE:
        return methods.pooled_tuned(
            job.cohort, setting, hospitals, seed=job.seed, modalities=SINGLE[method]
        )
    if method == "local":
        return methods.local(job.cohort, setting, hospitals, seed=job.seed, epsilon=epsilon)
    found, _ = methods.federated(
        job.cohort, method, setting, hospitals, seed=job.seed, epsilon=epsilon
    )
    return found


def choose(results: Sequence[Result]) -> dict[str, dict[str, dict[str, str]]]:
    """For each cohort, epsilon and method the setting with the least mean log loss."""
    losses: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for result in results:
        key = (result.cohort, judge.label_of(result.epsilon), result.method)
        losses.setdefault(key, {}).setdefault(result.setting, []).append(result.scores.log_loss)
    chosen: dict[str, dict[str, dict[str, str]]] = {}
    for (cohort, epsilon, method), by_setting in losses.items():
        best = min(by_setting, key=lambda name: float(np.mean(by_setting[name])))
        chosen.setdefault(cohort, {}).setdefault(epsilon, {})[method] = best
    return chosen


def choose_method(
    results: Sequence[Result],
    chosen: Mapping[str, Mapping[str, Mapping[str, str]]],
    protocol: Mapping[str, Any],
) -> dict[str, str]:
    """For each cohort the personalised method with the least mean log loss over all epsilons, each in its setting."""
    best: dict[str, str] = {}
    for cohort, by_epsilon in chosen.items():
        losses = {
            method: np.mean(
                [
                    r.scores.log_loss
                    for r in results
                    if (r.cohort, r.method) == (cohort, method)
                    and r.setting == by_epsilon[judge.label_of(r.epsilon)][method]
                ]
            )
            for method in protocol["personalised_of"]
        }
        best[cohort] = min(losses, key=lambda method: float(losses[method]))
    return best


if __name__ == "__main__":
    sys.exit(main())
