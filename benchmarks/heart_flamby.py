"""Reproduce FLamby's Fed-Heart-Disease table: pooled, the four local rows, and six federated strategies.

    python benchmarks/heart_flamby.py [--json] [--quick]

Settings are FLamby's, nothing is tuned: logistic regression, Adam with learning rate 0.001, batches of 4, 50
epochs, seeds 42 to 46 (those of its result files); accuracy at 0.5 on each hospital's test side, averaged over the four
hospitals. Federated rows: 15 rounds of 100 local steps of SGD, weights by size, rates as in its result files, server
optimisers with tau 1e-8 and betas 0.9 and 0.999. What a strategy does with the updates is the product's own
strategy; local steps are simulated for all seeds side by side. Exits 1 when a row is more than 0.01 from the published.

The seeds belong to the settings: at that learning rate 30 Swiss patients move the weights little, so that row
hangs on the initial weights (standard deviation 0.05 over seeds; over many seeds its mean is 0.60, not 0.57).
`--quick` therefore keeps the seeds and leaves the pooled and the federated rows out.

Reference: Ogier du Terrail et al., NeurIPS 2022; published figures from the result tables in its repository.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from fedhealth_site_heart import HOSPITALS, Hospital, flamby_pooled_train, flamby_split
from flamby_cells.federation import FEDERATED, federate, initial_parameters
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.testing.flower_task import flower_task

LEARNING_RATE, BATCH_SIZE, NUM_EPOCHS = 0.001, 4, 50
SEEDS = range(42, 47)
TOLERANCE = 0.01
PUBLISHED = {
    "pooled": 0.735,
    "local-cleveland": 0.722,
    "local-hungarian": 0.629,
    "local-switzerland": 0.567,
    "local-va": 0.637,
    "fedavg": 0.685,
    "fedprox": 0.685,
    "scaffold": 0.684,
    "fedadam": 0.726,
    "fedyogi": 0.731,
    "fedadagrad": 0.731,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table."""

    name: str
    ours: float
    published: float
    difference: float
    std_over_seeds: float
    per_hospital: list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="local rows only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    rows = [run(f"local-{hospital}", *flamby_split(hospital)[:2]) for hospital in HOSPITALS]
    if not args.quick:
        rows.insert(0, run("pooled", *flamby_pooled_train()))
        with flower_task():
            rows += [judge(setting.name, *federate(setting, SEEDS)) for setting in FEDERATED]
    is_close = all(abs(row.difference) <= TOLERANCE for row in rows)
    if args.json:
        record = {
            "schema_version": 1,
            "rows": [asdict(row) for row in rows],
            "tolerance": TOLERANCE,
            "seeds": list(SEEDS),
            "reproduced": is_close,
            "seconds": round(time.monotonic() - started, 1),
            "machine": f"{platform.machine()}, torch {torch.__version__}",
        }
        print(json.dumps(record))
    else:
        print_table(rows)
    return 0 if is_close else 1


def run(name: str, features: NDArray[np.float32], labels: NDArray[np.int64]) -> Row:
    """Train once per seed, test at every hospital on features scaled by that hospital, as FLamby does."""
    return judge(name, *train(torch.from_numpy(features), torch.from_numpy(labels).float()))


def judge(name: str, weights: Tensor, bias: Tensor) -> Row:
    """A row from every seed's model, (S, D) and (S,)."""
    accuracy = np.array([test(hospital, weights, bias) for hospital in HOSPITALS])  # (4, seeds)
    ours = float(accuracy.mean())
    return Row(
        name=name,
        ours=round(ours, 4),
        published=PUBLISHED[name],
        difference=round(ours - PUBLISHED[name], 4),
        std_over_seeds=round(float(accuracy.mean(axis=0).std()), 4),
        per_hospital=[round(float(value), 3) for value in accuracy.mean(axis=1)],
    )


def train(x_ND: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803 - shape suffix
    """Logistic regressions of all seeds side by side: Adam works element by element, so they are independent.

    Returns:
        weights (S, D) and biases (S,).
    """
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    initial = torch.stack([initial_parameters(x_ND.shape[1], seed) for seed in SEEDS])
    parameters_SP = initial.requires_grad_()  # noqa: N806 - shape suffix
    optimizer = torch.optim.Adam([parameters_SP], lr=LEARNING_RATE)
    for _ in range(NUM_EPOCHS):
        orders_SN = torch.stack([torch.randperm(len(y_N), generator=g) for g in generators])  # noqa: N806
        for rows_SB in torch.split(orders_SN, BATCH_SIZE, dim=1):  # noqa: N806
            logits_SB = torch.einsum("sbd,sd->sb", x_ND[rows_SB], parameters_SP[:, :-1])  # noqa: N806
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                logits_SB + parameters_SP[:, -1:], y_N[rows_SB], reduction="none"
            )
            optimizer.zero_grad()
            torch.autograd.backward(losses.mean(dim=1).sum())
            optimizer.step()
    final = parameters_SP.detach()
    return final[:, :-1], final[:, -1]


def test(hospital: Hospital, weights: Tensor, bias: Tensor) -> list[float]:
    """Accuracy of every seed's model on one hospital's test side."""
    _, _, x_test, y_test = flamby_split(hospital)
    predicted = torch.from_numpy(x_test) @ weights.T + bias > 0
    correct = predicted == torch.from_numpy(y_test)[:, None].bool()
    return [float(value) for value in correct.double().mean(dim=0)]


def print_table(rows: list[Row]) -> None:
    print(f"{'row':<20}{'ours':>8}{'published':>11}{'difference':>12}   per hospital")
    for row in rows:
        mark = "" if abs(row.difference) <= TOLERANCE else "  <- off"
        each = " / ".join(f"{value:.3f}" for value in row.per_hospital)
        print(
            f"{row.name:<20}{row.ours:>8.3f}{row.published:>11.3f}{row.difference:>+12.3f}   {each}{mark}"
        )


if __name__ == "__main__":
    sys.exit(main())
