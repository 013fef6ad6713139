# ruff: noqa: D102 - the names of tests state the rule
"""The suite that a strategy author runs on a strategy: subclass `StrategyContract` in a pytest module and name it.

    class TestMyStrategy(StrategyContract):
        strategy = "my-strategy"
        streams_replies = True

Every test goes through the adapter that the server uses, so what passes here behaves the same in a round.
"""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from fedhealth.config.study import PluginChoice, RunPlan
from fedhealth.contracts.aggregation import STRATEGY_CONFIG_ALLOWED, Aggregate, SiteReply
from fedhealth.contracts.tensors import TensorSpec
from fedhealth.errors import AggregationError, ConfigError, EvidenceError, QuorumError
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.privacy.randomness import Randomness
from fedhealth.testing.flower_task import flower_task

Vector = NDArray[np.float32]

SPEC = TensorSpec.of(
    {
        "encoder.weight": np.zeros((3, 4), dtype=np.float32),
        "encoder.scale": np.zeros((), dtype=np.float32),
        "fusion.bias": np.zeros((5,), dtype=np.float32),
    }
)
SPEC_WITH_CONTROLS = TensorSpec.of(
    {
        "encoder.weight": np.zeros((3, 3), dtype=np.float32),
        "control.encoder.weight": np.zeros((3, 3), dtype=np.float32),
    }
)
"""As long as `SPEC`: for a strategy that asks for a run with control variates."""
COHORT = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
SIZES = (120.0, 30.0, 7.0, 64.0)
METRICS = {"train_loss": 0.5}


class StrategyContract:
    """What the round loop relies on, whatever the algorithm."""

    strategy: ClassVar[str]
    """Entry point name."""

    options: ClassVar[dict[str, Any]] = {}
    """Options as in study.yaml."""

    streams_replies: ClassVar[bool] = False
    """True if a reply is dropped before the next is loaded: server memory is then O(model)."""

    keeps_agreement: ClassVar[bool] = True
    """True if sites that all return the same tensors get these tensors (a mean, a median; not FedAdam)."""

    adds_noise: ClassVar[bool] = False
    """True if the strategy draws noise: its `randomness_of_round` then gets a stream with a fixed seed per round.
    Choose options with little noise, since the tests of tolerance know none."""

    @pytest.fixture(autouse=True)
    def _in_a_flower_task(self) -> Iterator[None]:
        with flower_task():
            yield

    personalisation: ClassVar[Literal["none", "private_head"]] = "none"
    """The run's personalisation, for a strategy that asks for one."""

    control_variates: ClassVar[bool] = False
    """Whether the run has control variates, for a strategy that asks for them."""

    def aggregator(self) -> StrategyAggregator:
        """A new aggregator, as the server builds it."""
        spec = SPEC_WITH_CONTROLS if self.control_variates else SPEC
        run = RunPlan(
            name="contract",
            num_rounds=4,
            strategy=PluginChoice(name=self.strategy, options=self.options),
            personalisation=self.personalisation,
            control_variates=self.control_variates,
        )
        made = build_aggregator(run, spec, min_cohort=2)
        if self.adds_noise:
            made.strategy.randomness_of_round = _seeded  # type: ignore[attr-defined]  # of noisy strategies
        return made

    def test_configuration_holds_allowed_keys_only(self) -> None:
        config = self.aggregator().configure(1, model(0), COHORT)
        assert set(config) <= STRATEGY_CONFIG_ALLOWED

    def test_configuration_leaves_the_model_as_it_is(self) -> None:
        vector = model(0)
        self.aggregator().configure(1, vector, COHORT)
        np.testing.assert_array_equal(vector, model(0))

    def test_result_is_finite_float32_on_the_spec(self) -> None:
        result = one_round(self.aggregator(), 1, model(0), updates(1))
        assert result.vector.dtype == np.float32
        assert result.vector.shape == (SPEC.num_elements,)
        assert np.isfinite(result.vector).all()

    def test_sites_that_agree_get_what_they_agree_on(self) -> None:
        if not self.keeps_agreement:
            pytest.skip("this strategy takes a step from the mean, it does not return it")
        same = model(7)
        result = one_round(self.aggregator(), 1, model(0), [same, same, same])
        np.testing.assert_allclose(result.vector, same, rtol=1e-6)

    def test_same_replies_in_the_same_order_give_the_same_bits(self) -> None:
        first = one_round(self.aggregator(), 1, model(0), updates(1))
        second = one_round(self.aggregator(), 1, model(0), updates(1))
        assert first.vector.tobytes() == second.vector.tobytes()

    def test_roster_order_changes_rounding_only(self) -> None:
        order = [2, 0, 3, 1]
        straight = one_round(self.aggregator(), 1, model(0), updates(1))
        aggregator = self.aggregator()
        aggregator.configure(1, model(0), [COHORT[i] for i in order])
        replies = [reply(i, updates(1)[i]) for i in order]
        permuted = aggregator.aggregate(1, iter(replies))
        np.testing.assert_allclose(permuted.vector, straight.vector, rtol=1e-4, atol=1e-5)

    def test_round_goes_on_without_a_site_that_dropped_out(self) -> None:
        aggregator = self.aggregator()
        aggregator.configure(1, model(0), COHORT)
        result = aggregator.aggregate(1, iter([reply(i, updates(1)[i]) for i in (0, 2)]))
        assert np.isfinite(result.vector).all()

    def test_one_survivor_is_never_aggregated(self) -> None:
        aggregator = self.aggregator()
        aggregator.configure(1, model(0), COHORT)
        with pytest.raises(QuorumError):
            aggregator.aggregate(1, iter([reply(0, model(1))]))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_update_that_is_not_finite_is_refused(self, value: float) -> None:
        broken = updates(1)
        broken[1][3] = value
        with pytest.raises(AggregationError):
            one_round(self.aggregator(), 1, model(0), broken)

    def test_update_of_another_length_is_refused(self) -> None:
        broken = updates(1)
        broken[1] = broken[1][:-1]
        with pytest.raises(AggregationError):
            one_round(self.aggregator(), 1, model(0), broken)

    def test_metric_of_all_sites_is_averaged_and_a_suppressed_one_is_left_out(self) -> None:
        aggregator = self.aggregator()
        aggregator.configure(1, model(0), COHORT)
        replies = [reply(i, update) for i, update in enumerate(updates(1))]
        replies[2] = replace(replies[2], evaluate_metrics={"brier": 0.2})  # no AUC: one class only
        result = aggregator.aggregate(1, iter(replies))
        assert result.train_metrics == pytest.approx({"train_loss": 0.5})
        assert result.evaluate_metrics == pytest.approx({"brier": 0.2})

    def test_failure_while_loading_a_reply_ends_the_round_as_it_is(self) -> None:
        aggregator = self.aggregator()
        aggregator.configure(1, model(0), COHORT)
        replies = [reply(i, update) for i, update in enumerate(updates(1))]
        replies[1] = replace(replies[1], load_vector=_unreadable)
        with pytest.raises(EvidenceError, match="FH-CONTRACT-001"):
            aggregator.aggregate(1, iter(replies))

    def test_state_restores_bit_by_bit(self) -> None:
        straight, vector = self.aggregator(), model(0)
        for number in range(1, 5):
            vector = one_round(straight, number, vector, updates(number)).vector
        first, resumed = self.aggregator(), model(0)
        for number in (1, 2):
            resumed = one_round(first, number, resumed, updates(number)).vector
        stored = {name: array.copy() for name, array in first.state_dict().items()}
        second = self.aggregator()
        second.load_state_dict(stored)
        for number in (3, 4):
            resumed = one_round(second, number, resumed, updates(number)).vector
        assert resumed.tobytes() == vector.tobytes()

    def test_unknown_state_is_refused(self) -> None:
        with pytest.raises(AggregationError):
            self.aggregator().load_state_dict({"array:no_such_attribute": np.zeros(1)})

    def test_unknown_option_is_refused_by_name(self) -> None:
        run = RunPlan(
            name="contract",
            num_rounds=1,
            strategy=PluginChoice(name=self.strategy, options={"no_such_option": 1}),
            personalisation=self.personalisation,
            control_variates=self.control_variates,
        )
        with pytest.raises(ConfigError, match="no_such_option"):
            build_aggregator(run, SPEC, min_cohort=2)

    def test_noise_is_on_the_account_and_the_account_survives(self) -> None:
        aggregator = self.aggregator()
        result = one_round(aggregator, 1, model(0), updates(1))
        assert (result.site_level is not None) == self.adds_noise
        if result.site_level is None:
            assert result.site_level_so_far == ()
            return
        assert result.site_level.generator == "seeded_for_tests"
        resumed = self.aggregator()
        resumed.load_state_dict(aggregator.state_dict())
        again = one_round(resumed, 2, result.vector, updates(2))
        assert again.site_level_so_far == (result.site_level, again.site_level)

    def test_replies_are_dropped_one_by_one_where_streaming_is_claimed(self) -> None:
        if not self.streams_replies:
            pytest.skip("this strategy keeps its replies: server memory grows with the sites")
        alive: list[int] = []
        loaded: list[weakref.ref[Vector]] = []

        def load(update: Vector) -> Vector:
            alive.append(sum(ref() is not None for ref in loaded))
            loaded.append(weakref.ref(update))
            return update

        aggregator = self.aggregator()
        aggregator.configure(1, model(0), COHORT)
        gc.disable()  # what only the collector can free is still held
        try:
            replies = [
                replace(reply(i, model(0)), load_vector=lambda i=i: load(model(i + 1)))  # type: ignore[misc]  # default binds
                for i in range(len(COHORT))
            ]
            aggregator.aggregate(1, iter(replies))
        finally:
            gc.enable()
        assert alive == [0] * len(COHORT)


def model(seed: int) -> Vector:
    """A random flat model on `SPEC`."""
    return np.random.default_rng(seed).normal(size=SPEC.num_elements).astype(np.float32)


def updates(seed: int) -> list[Vector]:
    """One flat model for each site of the cohort."""
    return [model(100 * seed + i) for i in range(len(COHORT))]


def reply(index: int, vector: Vector) -> SiteReply:
    """The reply of the cohort's site of that index."""
    return SiteReply(
        site_id=COHORT[index],
        weight=SIZES[index],
        load_vector=lambda: vector,
        train_metrics=METRICS,
        evaluate_metrics={"auc": 0.8, "brier": 0.2},
    )


def one_round(
    aggregator: StrategyAggregator, number: int, vector: Vector, returned: Sequence[Vector]
) -> Aggregate:
    """Configure and aggregate one round in which the first sites of the cohort return these models."""
    aggregator.configure(number, vector, COHORT[: len(returned)])
    return aggregator.aggregate(number, iter([reply(i, v) for i, v in enumerate(returned)]))


def _seeded(round_number: int) -> Randomness:
    return Randomness.seeded_for_tests(round_number.to_bytes(32, "big"))


def _unreadable() -> Vector:
    raise EvidenceError("FH-CONTRACT-001", "the spooled reply does not read.")
