"""What masks cost in accuracy, and what noise under masks does: python benchmarks/distributed_privacy.py [--quick].

On the four real heart hospitals, AUC and log loss on held-out patients:

- masks without noise: FedAvg as shipped, and the same through the fixed-point sums of secure aggregation. The split is
  that of one seed, so that seeds differ in initial weights and batch order only: what is called seed noise.
- noise for each patient, one global step a round: `distributed` (shares under the masks), `central` (one party that
  holds all patients adds Gaussian noise once: DP-SGD with everybody in every step), `local` (each site adds all of that
  noise by itself, without masks). With the 4 hospitals, and with 20: each hospital in five parts.
- noise for each site, 20 of them: `distributed`, and `central`, the strategy dp-fedavg.

`std` is of the noise on one coordinate of the mean gradient or update, when all sites are there. Distributed noise is
larger than central: by the root of sites over honest ones (a share is sized for the fewest honest sites that can be in
a sum), and since Skellam sums are accounted for by RDP and Gaussian noise by PLD.

Training, clipping, rounding, noise, decoding, accounting and strategies are the product's. Masks are made and removed
in the first round of every run, and that sum must be the plain one word for word, or this ends with code 1; later
rounds take the plain one. Noise comes from the operating system, so a second run has other last digits. In the tables
with noise a seed has a split, initial weights and a noise of its own.

Intervals are Student's t over seeds of the mean over hospitals, 95 %; AUC is without Switzerland (`privacy_utility`).
Learning rates and clipping norms were chosen with central noise on other seeds (101 and 102).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noise_cells.federation import Federation, dp_sgd
from noise_cells.studies import (
    SETTINGS,
    Setting,
    central_multiplier,
    heart_study,
    held_out,
    load,
    noise_std,
    noised_study,
    pooled,
    sites_of,
    with_its_split,
)
from numpy.typing import NDArray
from privacy_utility import Hospital, interval

from fedhealth.config.study import Study
from fedhealth.contracts.local_training import Vector
from fedhealth.testing.flower_task import flower_task

Row = dict[str, Any]
FIRST_SEED = 1
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, None)
METRICS = ("auc", "log_loss")
PLAIN = "in the clear"
MASKS: dict[str, Row] = {
    "16 bits": {"bits": 16},
    "8 bits": {"bits": 8},
    "16 bits, half of the values": {"bits": 16, "kept_share": 0.5},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One model on held-out patients, means over hospitals; `num_cut` values were beyond the range of the sums."""

    table: str
    epsilon: float | None
    method: str
    seed: int
    auc: float
    log_loss: float
    num_cut: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, epsilon 8, one round, fewer tables"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many; at least 2")
    args = parser.parse_args()
    if args.seeds < 2:  # noqa: PLR2004 - no interval from one seed
        parser.error("--seeds: an interval needs at least 2")
    torch.set_num_threads(1)
    started = time.monotonic()
    seeds = range(FIRST_SEED, FIRST_SEED + (2 if args.quick else args.seeds))
    settings = [replace(one, num_rounds=1) for one in SETTINGS[::2]] if args.quick else SETTINGS
    epsilons = (8.0,) if args.quick else EPSILONS
    with flower_task():  # strategies build Flower's messages
        masks = {"16 bits": MASKS["16 bits"]} if args.quick else MASKS
        outcomes = masks_without_noise(seeds, masks, rounds=1 if args.quick else 5)
        outcomes += [one for setting in settings for one in noise(setting, epsilons, seeds)]
    record = {
        "schema_version": 1,
        "benchmark": "distributed_privacy",
        "seeds": list(seeds),
        "masks": rows_of_masks(outcomes),
        "noise": [row for setting in settings for row in rows_of_noise(outcomes, setting)],
        "outcomes": [asdict(outcome) for outcome in outcomes],
        "seconds": round(time.monotonic() - started, 1),
    }
    if args.json:
        print(json.dumps(record))
    else:
        print_tables(record)
    return 0


def masks_without_noise(seeds: Sequence[int], masks: dict[str, Row], rounds: int) -> list[Outcome]:
    """FedAvg of the shipped study, in the clear and through sums of each kind."""
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hospitals = [with_its_split(one) for one in load(FIRST_SEED, folder)]
        for seed in seeds:
            for method, changes in {PLAIN: None, **masks}.items():
                study = heart_study(seed, rounds, masks=changes)
                federation = Federation(study, hospitals, folder / f"{seed}-{method}")
                auc, log_loss = held_out(study, federation.run_all(), hospitals, folder)
                outcomes.append(
                    Outcome(
                        table="masks",
                        epsilon=None,
                        method=method,
                        seed=seed,
                        auc=auc,
                        log_loss=log_loss,
                        num_cut=federation.num_cut,
                    )
                )
    return outcomes


def noise(
    setting: Setting, epsilons: Sequence[float | None], seeds: Sequence[int]
) -> Iterable[Outcome]:
    """All methods of one unit, on the same patients."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            hospitals = load(seed, Path(name))
            for epsilon in epsilons:
                for method in methods_of(setting, epsilon):
                    state = Path(name) / f"{method}-{epsilon}"
                    study = noised_study(setting, epsilon, seed, method)
                    vector = learn(study, setting, epsilon, method, hospitals, state)
                    auc, log_loss = held_out(study, vector, hospitals, state)
                    yield Outcome(
                        table=setting.name,
                        epsilon=epsilon,
                        method=method,
                        seed=seed,
                        auc=auc,
                        log_loss=log_loss,
                    )


def methods_of(setting: Setting, epsilon: float | None) -> tuple[str, ...]:
    """Local noise of whole sites is left out: fedhealth has no such mechanism."""
    has_local = setting.unit == "patient" and epsilon is not None
    return ("central", "distributed", "local") if has_local else ("central", "distributed")


def learn(  # noqa: PLR0917 - the facts of one cell
    study: Study,
    setting: Setting,
    epsilon: float | None,
    method: str,
    hospitals: list[Hospital],
    state: Path,
) -> Vector:
    sites = sites_of(setting, hospitals)
    if setting.unit == "site" or method == "distributed":
        return Federation(study, sites, state).run_all()
    own = [pooled(hospitals, setting.divisor)] if method == "central" else sites
    return dp_sgd(study, setting, central_multiplier(setting, epsilon), own, state)


def rows_of_masks(outcomes: list[Outcome]) -> list[Row]:
    """Each method over seeds, and minus the first of them seed by seed; seed noise is how far that one's seeds are."""
    rows = []
    for method in dict.fromkeys(one.method for one in outcomes if one.table == "masks"):
        cut = sum(outcome.num_cut for outcome in outcomes if outcome.method == method)
        row: Row = {"method": method, "num_cut": cut}
        for metric in METRICS:
            own, plain = (by_seed(outcomes, "masks", None, m, metric) for m in (method, PLAIN))
            row[metric] = interval(own)
            row[f"{metric}_change"] = interval(own - plain)
            row[f"{metric}_seed_std"] = round(float(plain.std(ddof=1)), 4)
        rows.append(row)
    return rows


def rows_of_noise(outcomes: list[Outcome], setting: Setting) -> list[Row]:
    """Each method at each epsilon over seeds, and minus central noise seed by seed."""
    rows = []
    for epsilon, method in dict.fromkeys(
        (one.epsilon, one.method) for one in outcomes if one.table == setting.name
    ):
        row: Row = {"table": setting.name, "epsilon": epsilon, "method": method}
        row["noise_std"] = float(f"{noise_std(setting, epsilon, method):.3g}")
        for metric in METRICS:
            own, central = (
                by_seed(outcomes, setting.name, epsilon, m, metric) for m in (method, "central")
            )
            row[metric] = interval(own)
            row[f"{metric}_minus_central"] = interval(own - central)
        rows.append(row)
    return rows


def by_seed(
    outcomes: list[Outcome], table: str, epsilon: float | None, method: str, metric: str
) -> NDArray[np.float64]:
    cell = (table, epsilon, method)
    return np.array(
        [getattr(o, metric) for o in outcomes if (o.table, o.epsilon, o.method) == cell]
    )


def print_tables(record: Row) -> None:
    num_seeds = len(record["seeds"])
    print(f"Masks without noise, {num_seeds} seeds: mean (95 % interval over seeds)\n")
    print("| updates | AUC | minus in the clear | log loss | minus in the clear | values cut |")
    print("|---|---|---|---|---|---|")
    for row in record["masks"]:
        cells = [row["method"], *(shown(row, metric, "change") for metric in METRICS)]
        print(f"| {' | '.join(cells)} | {row['num_cut']} |")
    print()
    for row in record["masks"][1:]:
        print(f"{row['method']}: {'; '.join(verdict(row, metric) for metric in METRICS)}.")
    for table in dict.fromkeys(row["table"] for row in record["noise"]):
        print(f"\nNoise for {table}, {num_seeds} seeds: mean (95 % interval over seeds)\n")
        print("| epsilon | noise | std | AUC | minus central | log loss | minus central |")
        print("|---|---|---|---|---|---|---|")
        for row in record["noise"]:
            if row["table"] == table:
                epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:g}"
                cells = [epsilon, row["method"], f"{row['noise_std']:.2g}"]
                cells += [shown(row, metric, "minus_central") for metric in METRICS]
                print(f"| {' | '.join(cells)} |")
    print(f"\n{record['seconds']} s")


def shown(row: Row, metric: str, difference: str) -> str:
    """A value, and its difference from the baseline."""
    value, change = row[metric], row[f"{metric}_{difference}"]
    return (
        f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f}) | "
        f"{change['mean']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"
    )


def verdict(row: Row, metric: str) -> str:
    change, spread = abs(row[f"{metric}_change"]["mean"]), row[f"{metric}_seed_std"]
    said = "within" if change <= spread else "beyond"
    name = metric.replace("_", " ").replace("auc", "AUC")
    return f"{name} is {change:.4f} off, {said} seed noise ({spread:.4f} in the clear)"


if __name__ == "__main__":
    sys.exit(main())
