"""FedAdam, FedYogi and FedAdagrad against the paper's formula in plain floats, and against Flower's own."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from fedhealth_strategies.fedadagrad import FedAdagrad
from fedhealth_strategies.fedadam import FedAdam
from fedhealth_strategies.fedyogi import FedYogi
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import strategy as flowers

from fedhealth.errors import AggregationError, ConfigError
from fedhealth.flower.cohort_grid import CohortGrid

GRID = ("hospital-a", "hospital-b")
KINDS = [FedAdam, FedYogi, FedAdagrad]
NEXT_SECOND: dict[type, Callable[[float, float], float]] = {
    FedAdam: lambda v, d: 0.99 * v + 0.01 * d * d,
    FedYogi: lambda v, d: v - 0.01 * d * d * math.copysign(1.0, v - d * d),
    FedAdagrad: lambda v, d: v + d * d,
}


def record(values: Iterable[float]) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.array(list(values), dtype=np.float32))})


def reply(values: Iterable[float], size: float = 1.0) -> Message:
    content = RecordDict(
        {"arrays": record(values), "metrics": MetricRecord({"num-examples": size})}
    )
    return Message(content, 1, MessageType.TRAIN)


def rounds(strategy: Any, targets: list[list[float]], start: list[float]) -> list[list[float]]:
    """The models of a run in which sites return the target and one off it, so that the mean is the target."""
    model, models = np.array(start, dtype=np.float32), []
    for number, target in enumerate(targets, start=1):
        list(strategy.configure_train(number, record(model), ConfigRecord(), CohortGrid(GRID)))
        around = [reply([t + 1 for t in target], 1.0), reply([t - 1 for t in target], 1.0)]
        arrays, _ = strategy.aggregate_train(number, around)
        assert arrays is not None
        model = arrays["w"].numpy()
        models.append([float(v) for v in model])
    return models


@pytest.mark.parametrize("kind", KINDS)
def test_three_rounds_are_the_papers_algorithm_2(kind: type) -> None:
    targets, start = [[1.0, -2.0], [0.5, -2.0], [3.0, 0.25]], [0.0, 0.5]
    made = rounds(kind(learning_rate=0.1, beta_1=0.9, tau=0.01), targets, start)
    x, m, v = list(start), [0.0, 0.0], [0.01**2] * 2
    for target, model in zip(targets, made, strict=True):
        for i in range(2):
            update = target[i] - x[i]
            m[i] = 0.9 * m[i] + 0.1 * update
            v[i] = NEXT_SECOND[kind](v[i], update)
            x[i] += 0.1 * m[i] / (math.sqrt(v[i]) + 0.01)
        # float32 models and moments: 2^-24 relative, a few of them
        assert model == pytest.approx(x, rel=2e-6)


@pytest.mark.parametrize(
    ("ours", "flower", "options"),
    [
        (FedYogi, flowers.FedYogi, {"beta_1": 0.9, "beta_2": 0.99}),
        (FedAdagrad, flowers.FedAdagrad, {}),
    ],
)
def test_flowers_own_agrees_where_the_second_moment_outweighs_its_start(
    ours: type, flower: type, options: dict[str, float]
) -> None:
    """Flower starts v at 0 where the paper starts it at tau squared; with updates of 1 and tau 1e-6 that is nothing."""
    targets = [[1.0, -2.0], [0.5, -3.0], [3.0, 0.25]]
    made = rounds(ours(learning_rate=0.1, tau=1e-6, **options), targets, [0.0, 0.5])
    theirs = rounds(flower(eta=0.1, tau=1e-6, **options), targets, [0.0, 0.5])
    np.testing.assert_allclose(made, theirs, rtol=1e-5)


def test_flowers_fedadam_differs_by_its_bias_correction_alone() -> None:
    targets = [[1.0, -2.0]]
    made = rounds(FedAdam(learning_rate=0.1, tau=1e-6), targets, [0.0, 0.5])
    theirs = rounds(flowers.FedAdam(eta=0.1, tau=1e-6), targets, [0.0, 0.5])
    factor = math.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    moved = (np.array(theirs) - [0.0, 0.5]) / (np.array(made) - [0.0, 0.5])
    np.testing.assert_allclose(moved, factor, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_weighted_by_size_unless_the_study_says_uniform(kind: type) -> None:
    results = {}
    for weighting in ("size", "uniform"):
        made = kind(weighting=weighting, tau=10.0)
        list(made.configure_train(1, record([0.0]), ConfigRecord(), CohortGrid(GRID)))
        arrays, _ = made.aggregate_train(1, [reply([0.0], 1), reply([4.0], 3)])
        results[weighting] = float(arrays["w"].numpy()[0])
    assert results["size"] > results["uniform"] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "option", [{"learning_rate": 0.0}, {"beta_1": 1.0}, {"tau": 0.0}, {"tau": float("nan")}]
)
def test_options_out_of_range_are_refused(kind: type, option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-042"):
        kind(**option)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_that_fails_leaves_the_moments_as_they_were(kind: type) -> None:
    made = kind()
    rounds(made, [[1.0]], [0.0])
    before = {name: array.copy() for name, array in made.state_dict().items()}
    list(made.configure_train(2, record([0.0]), ConfigRecord(), CohortGrid(GRID)))
    with pytest.raises(AggregationError, match="FH-STRATEGY-054"):
        made.aggregate_train(2, [reply([np.inf])])
    for name, array in made.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_replies_without_a_model_before_them_or_of_another_model_are_refused() -> None:
    made = FedAdam()
    with pytest.raises(AggregationError, match="FH-STRATEGY-047"):
        made.aggregate_train(1, [reply([1.0])])
    list(made.configure_train(1, record([0.0, 0.0]), ConfigRecord(), CohortGrid(GRID)))
    with pytest.raises(AggregationError, match="FH-STRATEGY-021"):
        made.aggregate_train(1, [reply([1.0])])


def test_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(AggregationError, match="FH-STRATEGY-045"):
        FedAdam().load_state_dict({"releases": np.zeros(1)})
