"""What a strategy gets under masks: one reply for all, and nothing that looks at single updates."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fedhealth_strategies.secure_aggregation import SecureAggregation, check_needs_sum_only
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum

from fedhealth.config.study import Study
from fedhealth.contracts.aggregation import SiteLevelRelease, SiteReply, SkellamShare
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import AggregationError, ConfigError, QuorumError
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.flower.strategy_options import make_run_strategy
from fedhealth.flower.strategy_state import StrategyState

from ..conftest import study_content  # noqa: TID252 - tests are no installed package

SPEC = TensorSpec.of({"w": np.zeros(4, dtype=np.float32)})
SKELLAM = SkellamShare(l1_sensitivity=10.0, l2_sensitivity=5.0, variance=100.0, num_honest=3)
NOISE = SiteLevelRelease(
    mechanism="distributed-skellam",
    noise_multiplier=2.0,
    noise_std=0.1,
    clipping_norm=1.0,
    denominator=5,
    num_replies=5,
    quantile_multiplier=None,
    generator="chacha20",
    skellam=SKELLAM,
)


def study(name: str = "fedavg", **options: Any) -> Study:
    content = study_content(min_cohort=3) | {"secure_aggregation": {}}
    content["runs"] = [
        {"name": "main", "num_rounds": 3, "strategy": {"name": name, "options": options}}
    ]
    return Study.model_validate(content)


def aggregator(name: str = "fedavg", **options: Any) -> StrategyAggregator:
    made = study(name, **options)
    return build_aggregator(made.runs[0], SPEC, min_cohort=3, study=made)


def total(value: float, *, weight: float = 60.0, num_sites: int = 3) -> SiteReply:
    vector = np.full(4, value, dtype=np.float32)
    return SiteReply(
        site_id="sum-of-survivors",
        weight=weight,
        load_vector=lambda: vector,
        train_metrics={"train_loss": 0.5},
        evaluate_metrics={"auc": 0.7},
        num_sites=num_sites,
    )


def step(made: StrategyAggregator, number: int, reply: SiteReply) -> Any:
    made.configure(number, np.zeros(4, dtype=np.float32), ["site-1", "site-2", "site-3"])
    return made.aggregate(number, iter([reply]))


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "flower-fedavg"])
def test_the_one_reply_becomes_the_model(name: str) -> None:
    options = {"proximal_mu": 0.1} if name == "fedprox" else {}
    done = step(aggregator(name, **options), 1, total(0.25))
    np.testing.assert_array_equal(done.vector, np.full(4, 0.25, dtype=np.float32))
    assert done.evaluate_metrics == {"auc": 0.7}
    assert done.train_metrics == {"train_loss": 0.5}
    assert done.site_level is None


def test_a_server_optimiser_steps_from_it_and_keeps_its_moments() -> None:
    made = aggregator("flower-fedadam", eta=0.1)
    first = step(made, 1, total(1.0))
    assert (first.vector > 0).all()
    state = made.state_dict()
    assert state
    again = aggregator("flower-fedadam", eta=0.1)
    again.load_state_dict(state)
    np.testing.assert_array_equal(
        step(made, 2, total(1.0)).vector, step(again, 2, total(1.0)).vector
    )


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_our_server_optimisers_do_under_masks_what_they_do_without(name: str) -> None:
    masked, open_ = aggregator(name), build_aggregator(study(name).runs[0], SPEC, min_cohort=3)
    for number in (1, 2):
        singles = [
            replace(total(v, weight=20.0, num_sites=1), site_id=f"site-{v}") for v in (1, 2, 3)
        ]
        open_.configure(number, np.zeros(4, dtype=np.float32), ["site-1", "site-2", "site-3"])
        np.testing.assert_array_equal(
            step(masked, number, total(2.0)).vector, open_.aggregate(number, iter(singles)).vector
        )


@pytest.mark.parametrize("kind", [FedMedian, FedTrimmedAvg, Krum])
def test_strategies_of_single_updates_are_refused_with_the_reason(kind: Any) -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-061") as error:
        check_needs_sum_only(kind())
    assert "single updates" in error.value.why


@pytest.mark.parametrize("name", ["dp-fedavg", "dp-ftrl"])
def test_central_noise_is_refused_and_points_to_noise_under_the_masks(name: str) -> None:
    options: dict[str, Any] = {"num_sites": 3, "noise_multiplier": 1.0, "clipping_norm": 1.0}
    options |= {"bands": 2} if name == "dp-ftrl" else {}
    with pytest.raises(ConfigError, match="FH-STRATEGY-061") as error:
        make_run_strategy(study(name, **options), study(name, **options).runs[0])
    assert "distributed_privacy" in error.value.why


def test_a_strategy_of_ones_own_is_refused_unless_it_says_that_the_mean_is_enough() -> None:
    class Own(FedAvg):
        pass

    class Summed(FedAvg):
        sum_based = True

    class Not(Summed):
        sum_based = False

    class OwnFold(Summed):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return super().aggregate_train(server_round, replies)

    check_needs_sum_only(Summed())
    for kind in (Own, Not, OwnFold):
        with pytest.raises(ConfigError, match="FH-STRATEGY-061"):
            check_needs_sum_only(kind())


def test_the_wrapper_is_no_strategy_that_a_study_can_name() -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-062"):
        aggregator("secure-aggregation")


def test_two_replies_never_reach_a_strategy() -> None:
    inner = FedAvg()
    wrapper = SecureAggregation(inner, StrategyState(inner))
    with pytest.raises(AggregationError, match="FH-STRATEGY-060"):
        wrapper.aggregate_evaluate(1, [])


def test_a_sum_of_too_few_sites_is_refused() -> None:
    with pytest.raises(QuorumError):
        step(aggregator(), 1, total(1.0, num_sites=2))


def noised() -> StrategyAggregator:
    made = study()
    strategy = make_run_strategy(made, made.runs[0], noise=NOISE)
    return StrategyAggregator(strategy, SPEC, min_cohort=3)


def test_every_noised_sum_is_a_release_with_the_number_of_its_sites() -> None:
    made = noised()
    first = step(made, 1, total(0.1, weight=1.0, num_sites=3))
    second = step(made, 2, total(0.1, weight=1.0, num_sites=5))
    assert first.site_level is not None
    assert [one.num_replies for one in second.site_level_so_far] == [3, 5]
    assert all(one.skellam == SKELLAM for one in second.site_level_so_far)


def test_the_account_of_noised_sums_is_in_the_state() -> None:
    made = noised()
    step(made, 1, total(0.1, weight=1.0))
    again = noised()
    again.load_state_dict(made.state_dict())
    assert len(step(again, 2, total(0.1, weight=1.0)).site_level_so_far) == 2
    with pytest.raises(AggregationError, match="FH-STRATEGY-045"):
        aggregator().load_state_dict(made.state_dict())


def test_replies_carry_what_flower_expects() -> None:
    seen: list[Any] = []

    class Looks(FedAvg):
        sum_based = True

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            seen.extend(replies)
            return super().aggregate_train(server_round, seen)

    inner = Looks()
    wrapper = SecureAggregation(inner, StrategyState(inner))
    step(StrategyAggregator(wrapper, SPEC, min_cohort=3), 1, total(0.5))
    (message,) = seen
    assert isinstance(next(iter(message.content.array_records.values())), ArrayRecord)
    assert isinstance(next(iter(message.content.metric_records.values())), MetricRecord)
