"""FedNova against the paper's update written out, and against the point that FedAvg misses."""

from typing import Any

import numpy as np
import pytest
from fedhealth_strategies.fednova import FedNova
from flwr.app import Array, ArrayRecord, ConfigRecord

from fedhealth.config.study import OptimizerConfig, PluginChoice, RunPlan, Study
from fedhealth.contracts.aggregation import SiteReply
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import ConfigError
from fedhealth.flower.cohort_grid import CohortGrid
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.flower.strategy_options import make_run_strategy
from fedhealth.training.strategy_wishes import StrategyWishes

from ..conftest import study_content  # noqa: TID252 - tests are no installed package

SPEC = TensorSpec.of({"w": np.zeros(1, dtype=np.float32)})
SITES = ("few-steps", "many-steps")
OPTIMA, CURVATURES, STEPS, WEIGHTS = (-1.0, 2.0), (1.0, 1.0), (2, 20), (30.0, 10.0)
RATE = 0.02
BEST = 0.75 * OPTIMA[0] + 0.25 * OPTIMA[1]  # of sum p_i (w - o_i)^2 / 2


def aggregator(name: str, **options: Any) -> StrategyAggregator:
    run = RunPlan(
        name="quadratics", num_rounds=500, strategy=PluginChoice(name=name, options=options)
    )
    return build_aggregator(run, SPEC, min_cohort=2)


def local(w: float, site: int, momentum: float = 0.0) -> float:
    velocity = 0.0
    for _ in range(STEPS[site]):
        velocity = momentum * velocity + CURVATURES[site] * (w - OPTIMA[site])
        w -= RATE * velocity
    return w


def play(made: StrategyAggregator, rounds: int, momentum: float = 0.0) -> list[float]:
    optimizer = OptimizerConfig(name="sgd", learning_rate=RATE, momentum=momentum)
    vector, path = np.zeros(1, dtype=np.float32), []
    for number in range(1, rounds + 1):
        wishes = StrategyWishes.of(made.configure(number, vector, SITES))
        replies = []
        for site, name in enumerate(SITES):
            trained = np.array([local(float(vector[0]), site, momentum)], dtype=np.float32)
            sent = wishes.outgoing(
                {"w": vector}, {"w": trained}, optimizer=optimizer, num_steps=STEPS[site]
            )["w"]
            replies.append(
                SiteReply(
                    site_id=name,
                    weight=WEIGHTS[site],
                    load_vector=lambda sent=sent: sent,  # type: ignore[misc]  # default binds
                    train_metrics={},
                    evaluate_metrics={},
                )
            )
        vector = made.aggregate(number, iter(replies)).vector
        path.append(float(vector[0]))
    return path


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_a_round_is_the_papers_equation_8(momentum: float) -> None:
    made = play(aggregator("fednova", effective_steps=5.0), 3, momentum)
    w = 0.0
    for model in made:
        d = []
        for site in range(2):
            tau, rho = STEPS[site], momentum
            a = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
            d.append((w - local(w, site, momentum)) / a)
        w -= 5.0 * (0.75 * d[0] + 0.25 * d[1])
        assert model == pytest.approx(w, rel=1e-5)


def test_fedavg_converges_to_the_wrong_point_and_fednova_to_the_right_one() -> None:
    """Objective inconsistency, figure 2 of the paper: FedAvg weighs a site by size times steps."""
    wrong = play(aggregator("fedavg"), 300)[-1]
    right = play(aggregator("fednova", effective_steps=2.0), 300)[-1]
    # What is left at FedNova is local drift within a round, of the order of the learning rate times the steps.
    assert abs(right - BEST) < 0.12
    assert abs(wrong - BEST) > 0.9


def test_the_configuration_is_the_same_for_every_site_and_says_no_more_than_the_study() -> None:
    config = aggregator("fednova", effective_steps=5.0, proximal_mu=0.1).configure(
        1, np.zeros(1, dtype=np.float32), SITES
    )
    assert config == {"effective_steps": 5.0, "proximal_mu": 0.1}
    record = ArrayRecord({"w": Array(np.zeros(1, dtype=np.float32))})
    messages = list(FedNova(2.0).configure_train(1, record, ConfigRecord(), CohortGrid(SITES)))
    assert "proximal_mu" not in messages[0].content["config"]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_steps_that_mean_nothing_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-004"):
        FedNova(value)


def test_it_is_refused_where_personalisation_takes_other_steps() -> None:
    study = Study.model_validate(study_content())
    other = study.runs[0].model_copy(update={"personalisation": "pulled"})
    with pytest.raises(ConfigError, match="FH-STRATEGY-009"):
        FedNova(2.0).check_study(study, other)
    FedNova(2.0).check_study(study, study.runs[0])


def test_it_is_refused_where_sites_take_no_local_steps() -> None:
    noise: dict[str, Any] = {
        "unit": "patient",
        "noise_multiplier": 1.0,
        "clipping_norm": 1.0,
        "num_sites": 4,
    }
    noise["num_patients"] = 500
    content = study_content(min_cohort=3) | {"secure_aggregation": {"distributed_privacy": noise}}
    content["runs"] = [
        {
            "name": "main",
            "num_rounds": 3,
            "strategy": {"name": "fednova", "options": {"effective_steps": 2.0}},
        }
    ]
    study = Study.model_validate(content)
    with pytest.raises(ConfigError, match="FH-STRATEGY-005"):
        make_run_strategy(study, study.runs[0])
