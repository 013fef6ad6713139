"""SCAFFOLD against algorithm 1 of the paper written out on quadratics, with and without masks and dropouts."""

from typing import Any

import numpy as np
import pytest
from fedhealth_strategies.scaffold import Scaffold
from fedhealth_strategies.secure_aggregation import SecureAggregation

from fedhealth.config.study import Study
from fedhealth.contracts.aggregation import SiteLevelRelease, SiteReply, SkellamShare
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import AggregationError, ConfigError
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.flower.strategy_options import make_run_strategy
from fedhealth.flower.strategy_state import StrategyState
from fedhealth.training.control_variates import finish

from ..conftest import study_content  # noqa: TID252 - tests are no installed package

SPEC = TensorSpec.of(
    {"w": np.zeros(2, dtype=np.float32), "control.w": np.zeros(2, dtype=np.float32)}
)
SITES = ("site-a", "site-b", "site-c")
# f_i(w) = 1/2 sum_k h_ik (w_k - o_ik)^2: curvatures and optima differ, so that FedAvg drifts.
CURVATURES = np.array([[1.0, 0.2], [0.3, 2.0], [2.0, 0.5]])
OPTIMA = np.array([[-1.0, 3.0], [2.0, 0.0], [0.5, -2.0]])
WEIGHTS = np.array([20.0, 10.0, 10.0])
SHARES = WEIGHTS / WEIGHTS.sum()
BEST = (SHARES[:, None] * CURVATURES * OPTIMA).sum(0) / (SHARES[:, None] * CURVATURES).sum(0)
RATE, STEPS = 0.1, 10
NOISE = SiteLevelRelease(
    mechanism="distributed-skellam",
    noise_multiplier=2.0,
    noise_std=0.1,
    clipping_norm=1.0,
    denominator=5,
    num_replies=5,
    quantile_multiplier=None,
    generator="chacha20",
    skellam=SkellamShare(l1_sensitivity=10.0, l2_sensitivity=5.0, variance=100.0, num_honest=3),
)


def study(name: str = "scaffold", *, masks: dict[str, Any] | None = None, **options: Any) -> Study:
    content = study_content(min_cohort=3)
    content |= {} if masks is None else {"secure_aggregation": masks}
    content["runs"] = [
        {
            "name": "main",
            "num_rounds": 200,
            "strategy": {"name": name, "options": options},
            "control_variates": True,
        }
    ]
    return Study.model_validate(content)


def aggregator(made: Study, min_cohort: int = 2) -> StrategyAggregator:
    return build_aggregator(made.runs[0], SPEC, min_cohort=min_cohort, study=made)


def local(x: Any, site: int, correction: Any) -> Any:
    y = x.copy()
    for _ in range(STEPS):
        y -= RATE * (CURVATURES[site] * (y - OPTIMA[site]) + correction)
    return y


def reply(site_id: str, weight: float, vector: Any, num_sites: int = 1) -> SiteReply:
    return SiteReply(
        site_id=site_id,
        weight=weight,
        load_vector=lambda: vector,
        train_metrics={},
        evaluate_metrics={},
        num_sites=num_sites,
    )


class Federation:
    """Three quadratic sites in which c_i stays where it is when a site is not in a round."""

    def __init__(self, made: StrategyAggregator, *, masks: bool = False) -> None:
        self.made, self.masks = made, masks
        self.vector = np.zeros(4, dtype=np.float32)
        self.own = [{"w": np.zeros(2, dtype=np.float32)} for _ in SITES]

    def round(self, number: int, present: tuple[int, ...] = (0, 1, 2)) -> Any:
        self.made.configure(number, self.vector, SITES)
        incoming = SPEC.unflatten(self.vector)
        sent = []
        for site in present:
            y = local(
                incoming["w"].astype(np.float64),
                site,
                incoming["control.w"].astype(np.float64) - self.own[site]["w"],
            )
            done = finish(
                incoming,
                {"w": y.astype(np.float32)},
                self.own[site],
                learning_rate=RATE,
                num_steps=STEPS,
            )
            self.own[site] = done.own
            sent.append(SPEC.flatten(done.outgoing))
        weights = WEIGHTS[list(present)]
        replies = [
            reply(SITES[i], float(w), v) for i, w, v in zip(present, weights, sent, strict=True)
        ]
        if self.masks:
            mean = np.average(sent, axis=0, weights=weights).astype(np.float32)
            replies = [reply("sum-of-survivors", float(weights.sum()), mean, len(present))]
        self.vector = self.made.aggregate(number, iter(replies)).vector
        return self.vector


@pytest.mark.parametrize("masks", [False, True])
def test_rounds_are_algorithm_1_with_option_ii(masks: bool) -> None:
    options = {"learning_rate": 0.5, "num_sites": 3}
    federation = Federation(aggregator(study(masks={} if masks else None, **options)), masks=masks)
    x, c, own = np.zeros(2), np.zeros(2), [np.zeros(2) for _ in SITES]
    for number in range(1, 6):
        moves, changes = [], []
        for site in range(3):
            y = local(x, site, c - own[site])
            following = own[site] - c + (x - y) / (STEPS * RATE)
            moves.append(SHARES[site] * (y - x))
            changes.append(SHARES[site] * (following - own[site]))
            own[site] = following
        x, c = x + 0.5 * np.sum(moves, axis=0), c + np.sum(changes, axis=0)
        vector = federation.round(number)
        # float32 models: a few units in the last place of values near 1
        np.testing.assert_allclose(vector, [*x, *c], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("masks", [False, True])
def test_a_round_of_two_of_three_sites_moves_c_by_two_thirds_of_their_mean_change(
    masks: bool,
) -> None:
    """|S| / N, under masks too, where the strategy sees one reply that stands for two sites."""
    content = {"min_survivors": 3, "colluding": 0} if masks else None
    made = aggregator(study(masks=content, num_sites=3))
    federation = Federation(made, masks=masks)
    federation.round(1, (0, 1))
    first, second = (local(np.zeros(2), site, np.zeros(2)) for site in (0, 1))
    mean = -(2 * first + second) / 3 / (STEPS * RATE)
    np.testing.assert_allclose(federation.vector[2:], mean * 2 / 3, rtol=2e-5)


def test_noise_under_the_masks_has_divided_the_sum_by_all_sites_already() -> None:
    """The mean of three survivors of five is a fifth of their sum: taking 3 / 5 of it would take it twice."""
    inner = Scaffold(num_sites=5)
    wrapper = SecureAggregation(inner, StrategyState(inner), NOISE)
    made = StrategyAggregator(wrapper, SPEC, min_cohort=3)
    made.configure(1, np.zeros(4, dtype=np.float32), SITES)
    mean = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    result = made.aggregate(1, iter([reply("sum-of-survivors", 3.0, mean, 3)]))
    np.testing.assert_array_equal(result.vector, mean)


def test_without_the_option_the_sites_that_reply_are_taken_for_all() -> None:
    federation = Federation(aggregator(study()))
    federation.round(1, (0, 1))
    first, second = (local(np.zeros(2), site, np.zeros(2)) for site in (0, 1))
    np.testing.assert_allclose(
        federation.vector[2:], -(2 * first + second) / 3 / (STEPS * RATE), rtol=2e-5
    )


def test_scaffold_converges_to_the_optimum_where_fedavg_drifts() -> None:
    federation = Federation(aggregator(study(num_sites=3)))
    for number in range(1, 101):
        federation.round(number)
    np.testing.assert_allclose(federation.vector[:2], BEST, atol=1e-4)
    # At the optimum the mean gradient is zero, and so is the sum of all control variates.
    np.testing.assert_allclose(federation.vector[2:], 0.0, atol=1e-4)
    drifting = np.zeros(2)
    for _ in range(100):
        drifting = sum(SHARES[site] * local(drifting, site, np.zeros(2)) for site in range(3))
    assert np.abs(drifting - BEST).max() > 0.1


def test_strategy_and_run_must_both_say_control_variates() -> None:
    content = study().model_dump(mode="json")
    content["runs"][0]["control_variates"] = False
    without = Study.model_validate(content)
    with pytest.raises(ConfigError, match="FH-STRATEGY-019"):
        make_run_strategy(without, without.runs[0])
    with pytest.raises(ConfigError, match="FH-STRATEGY-019"):
        make_run_strategy(study("fedavg"), study("fedavg").runs[0])
    with pytest.raises(ConfigError, match="FH-STRATEGY-019"):
        make_run_strategy(study("flower-fedadam"), study("flower-fedadam").runs[0])


@pytest.mark.parametrize(
    "options", [{"learning_rate": 0.0}, {"learning_rate": 11.0}, {"num_sites": 1}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-007"):
        make_run_strategy(study(**options), study(**options).runs[0])


def test_masks_that_drop_coordinates_are_refused() -> None:
    made = study(masks={"kept_share": 0.5})
    with pytest.raises(ConfigError, match="FH-STRATEGY-008"):
        make_run_strategy(made, made.runs[0])


def test_tensors_without_their_control_variates_are_refused() -> None:
    made = study()
    bare = TensorSpec.of({"w": np.zeros(2, dtype=np.float32)})
    with pytest.raises(ConfigError, match="FH-STRATEGY-006"):
        build_aggregator(made.runs[0], bare, min_cohort=2).configure(
            1, np.zeros(2, dtype=np.float32), SITES
        )


def test_more_sites_than_the_option_says_are_refused() -> None:
    made = aggregator(study(num_sites=2))
    with pytest.raises(ConfigError, match="FH-STRATEGY-044"):
        made.configure(1, np.zeros(4, dtype=np.float32), SITES)


def test_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(AggregationError, match="FH-STRATEGY-045"):
        aggregator(study()).load_state_dict({"first_moment:w": np.zeros(2)})
