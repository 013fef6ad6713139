"""Rounds of strategies with site-level privacy, through the adapter that the server uses, with known noise."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedhealth.config.study import PluginChoice, RunPlan
from fedhealth.contracts.aggregation import Aggregate, SiteReply
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.privacy.randomness import Randomness

Vector = NDArray[np.float32]

NO_NOISE = 1e-9  # the least that is allowed: below float32 rounding in every test that uses it


def spec_of(*sizes: int) -> TensorSpec:
    return TensorSpec.of(
        {f"tensor.{i}": np.zeros(size, dtype=np.float32) for i, size in enumerate(sizes)}
    )


def seeded(start: int = 0) -> Callable[[int], Randomness]:
    """One stream for each round; another `start` gives other streams."""
    return lambda number: Randomness.seeded_for_tests((start + number).to_bytes(32, "big"))


def aggregator(
    spec: TensorSpec,
    name: str = "dp-fedavg",
    *,
    seed: int | None = 0,
    rounds: int = 8,
    **options: object,
) -> StrategyAggregator:
    """As the server builds it; `seed` None leaves the operating system's randomness in place."""
    given = {"num_sites": 4, "noise_multiplier": NO_NOISE, "clipping_norm": 1.0} | options
    run = RunPlan(
        name="dp",
        num_rounds=rounds,
        strategy=PluginChoice.model_validate({"name": name, "options": given}),
    )
    made = build_aggregator(run, spec, min_cohort=2)
    if seed is not None:
        made.strategy.randomness_of_round = seeded(seed)  # type: ignore[attr-defined]
    return made


def reply(index: int, vector: Vector, weight: float = 1.0) -> SiteReply:
    return SiteReply(
        site_id=f"site-{index}",
        weight=weight,
        load_vector=lambda: vector,
        train_metrics={},
        evaluate_metrics={},
    )


def one_round(
    one: StrategyAggregator,
    number: int,
    vector: Vector,
    models: Sequence[Vector],
    *,
    cohort: int = 4,
    weights: Sequence[float] | None = None,
) -> Aggregate:
    """The first sites of the cohort return these models; the others drop out."""
    one.configure(number, vector, [f"site-{i}" for i in range(cohort)])
    sizes = weights or [1.0] * len(models)
    return one.aggregate(
        number, iter([reply(i, m, w) for i, (m, w) in enumerate(zip(models, sizes, strict=True))])
    )


def noise_of_rounds(
    one: StrategyAggregator, spec: TensorSpec, num_rounds: int, *, num_replies: int = 4
) -> tuple[NDArray[np.float64], list[Aggregate]]:
    """(rounds, n) noise on the mean: every site returns the model it got, which stays near zero."""
    vector: Vector = np.zeros(spec.num_elements, dtype=np.float32)
    rows, results = [], []
    for number in range(1, num_rounds + 1):
        result = one_round(one, number, vector, [vector] * num_replies)
        rows.append(result.vector.astype(np.float64) - vector)
        results.append(result)
        vector = result.vector
    return np.array(rows), results
