# ruff: noqa: ARG002 - strategies keep Flower's signatures
"""The adapter holds strategies to a round's rules: who is asked, what is sent, what comes back."""

import inspect
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedhealth_strategies.fedavg import FedAvg
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid

from fedhealth import plugins
from fedhealth.config.study import RunPlan
from fedhealth.errors import AggregationError, ConfigError, FedHealthError, QuorumError
from fedhealth.flower.cohort_grid import CohortGrid, node_id_of
from fedhealth.flower.strategy_adapter import StrategyAggregator, build_aggregator
from fedhealth.flower.view_array import ViewArray, array_record
from fedhealth.testing.flower_task import flower_task
from fedhealth.testing.strategy_contract import COHORT, SPEC, model, one_round, reply, updates


@pytest.fixture(autouse=True)
def _in_a_task() -> Iterator[None]:
    with flower_task():
        yield


def plan(name: str, personalisation: str = "none", **options: Any) -> RunPlan:
    choice = {"name": name, "options": options}
    return RunPlan.model_validate(
        {"name": "a-run", "num_rounds": 2, "strategy": choice, "personalisation": personalisation}
    )


def wrapped(strategy: Any) -> StrategyAggregator:
    return StrategyAggregator(strategy, SPEC, min_cohort=2)


def code_of(error: pytest.ExceptionInfo[FedHealthError]) -> str:
    return error.value.code


# --- configure -------------------------------------------------------------------------------------------


def test_flowers_bookkeeping_does_not_reach_a_site() -> None:
    aggregator = build_aggregator(plan("flower-fedavg"), SPEC, min_cohort=2)
    assert aggregator.configure(1, model(0), COHORT) == {}


def test_proximal_mu_reaches_every_site() -> None:
    aggregator = build_aggregator(plan("fedprox", proximal_mu=0.3), SPEC, min_cohort=2)
    assert aggregator.configure(1, model(0), COHORT) == {"proximal_mu": 0.3}


def test_cohort_below_the_minimum_is_no_quorum() -> None:
    aggregator = build_aggregator(plan("fedavg"), SPEC, min_cohort=3)
    with pytest.raises(QuorumError) as caught:
        aggregator.configure(1, model(0), COHORT[:2])
    assert code_of(caught) == "FH-STRATEGY-031"


@pytest.mark.parametrize(
    "options", [{"min_train_nodes": 5}, {"min_available_nodes": 9}, {"fraction_train": 1.5}]
)
def test_stock_strategy_that_would_wait_is_stopped_at_once(options: dict[str, Any]) -> None:
    aggregator = build_aggregator(plan("flower-fedavg", **options), SPEC, min_cohort=2)
    with pytest.raises(QuorumError) as caught:
        aggregator.configure(1, model(0), COHORT)
    assert code_of(caught) == "FH-STRATEGY-030"


def test_strategy_that_keeps_asking_for_nodes_is_stopped() -> None:
    class Waiting(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Any:
            while len(list(grid.get_node_ids())) < 10:
                pass

    with pytest.raises(QuorumError) as caught:
        wrapped(Waiting()).configure(1, model(0), COHORT)
    assert code_of(caught) == "FH-STRATEGY-030"


@pytest.mark.parametrize("fraction", [0.5, 0.0])
def test_strategy_that_picks_some_sites_is_refused(fraction: float) -> None:
    choice = plan("flower-fedavg", fraction_train=fraction, min_train_nodes=1)
    aggregator = build_aggregator(choice, SPEC, min_cohort=2)
    with pytest.raises(ConfigError) as caught:
        aggregator.configure(1, model(0), COHORT)
    assert code_of(caught) == "FH-STRATEGY-016"


class Sending(FedAvg):
    """Sends something of its own to each site."""

    def __init__(self, config: Any = None, extra: Any = None, arrays: Any = None) -> None:
        super().__init__()
        self.config, self.extra, self.arrays = config or {}, extra or {}, arrays

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for number, node_id in enumerate(grid.get_node_ids()):
            own = {key: value(number) for key, value in self.config.items()}
            records = {"arrays": self.arrays or arrays, "config": ConfigRecord(own), **self.extra}
            yield Message(RecordDict(records), node_id, MessageType.TRAIN)


@pytest.mark.parametrize(
    "strategy",
    [
        Sending(config={"prompt": lambda _: 1}),
        Sending(config={"proximal_mu": lambda _: "0.1"}),
        Sending(config={"proximal_mu": lambda _: b"x"}),
        Sending(config={"proximal_mu": lambda _: [0.1]}),
        Sending(config={"proximal_mu": lambda _: float("nan")}),
        Sending(config={"proximal_mu": float}),
        Sending(extra={"metrics": MetricRecord({"a": 1})}),
        Sending(extra={"more": ConfigRecord({})}),
        Sending(extra={"variates": ArrayRecord()}),
        Sending(arrays=ArrayRecord({"w": Array(np.zeros(2))})),
    ],
    ids=["key", "text", "bytes", "list", "nan", "per-site", "metrics", "config", "arrays", "model"],
)
def test_what_may_not_reach_a_site_is_refused(strategy: Sending) -> None:
    with pytest.raises(ConfigError) as caught:
        wrapped(strategy).configure(1, model(0), COHORT)
    assert code_of(caught) == "FH-STRATEGY-017"


@pytest.mark.parametrize("verb", ["push_messages", "pull_messages", "send_and_receive", "set_run"])
def test_strategy_may_not_talk_to_sites_itself(verb: str) -> None:
    class Talking(FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Any:
            return getattr(grid, verb)([])

    with pytest.raises(ConfigError) as caught:
        wrapped(Talking()).configure(1, model(0), COHORT)
    assert code_of(caught) == "FH-STRATEGY-011"


def test_grid_knows_its_cohort_by_stable_ids() -> None:
    grid = CohortGrid(COHORT)
    assert list(grid.get_node_ids()) == [node_id_of(site) for site in COHORT]
    assert grid.site_id_of(node_id_of("hospital-b")) == "hospital-b"
    assert grid.site_id_of(1) is None
    assert [node.node_id for node in grid.get_nodes()] == [node_id_of(site) for site in COHORT]
    assert (
        node_id_of("hospital-a") == 7440924962096976494
    )  # fixed: strategies may keep state by node


def test_grid_refuses_a_cohort_that_repeats() -> None:
    with pytest.raises(ConfigError):
        CohortGrid(["hospital-a", "hospital-a"])


# --- aggregate -------------------------------------------------------------------------------------------


class Returning(FedAvg):
    """Returns what it was made with."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = result

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        list(replies)
        return self._result() if callable(self._result) else self._result


def tensors(**changes: Any) -> ArrayRecord:
    named = {name: np.array(t) for name, t in SPEC.unflatten(model(0)).items()} | changes
    return ArrayRecord({name: Array(np.asarray(t)) for name, t in named.items() if t is not None})


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ((None, None), "FH-STRATEGY-051"),
        (lambda: (tensors(**{"fusion.bias": None}), None), "FH-STRATEGY-052"),
        (lambda: (tensors(extra=np.zeros(1)), None), "FH-STRATEGY-052"),
        (lambda: (tensors(**{"fusion.bias": np.zeros((1, 5))}), None), "FH-STRATEGY-053"),
        (lambda: (tensors(**{"fusion.bias": np.zeros(5, complex)}), None), "FH-STRATEGY-053"),
        (lambda: (tensors(**{"fusion.bias": np.full(5, np.nan)}), None), "FH-STRATEGY-054"),
        (lambda: (tensors(**{"fusion.bias": np.full(5, 1e300)}), None), "FH-STRATEGY-054"),
        (lambda: 1 / 0, "FH-STRATEGY-050"),
    ],
)
def test_result_off_the_contract_voids_the_round(result: Any, code: str) -> None:
    with pytest.raises(AggregationError) as caught:
        one_round(wrapped(Returning(result)), 1, model(0), updates(1))
    assert code_of(caught) == code


def test_a_failing_strategy_is_told_by_its_own_line_and_not_by_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise ValueError("weights 0.25 and 0.5")

    failing = Returning(fail)
    with caplog.at_level("INFO", "fedhealth"), pytest.raises(AggregationError) as caught:
        one_round(wrapped(failing), 1, model(0), updates(1))
    lines, first = inspect.getsourcelines(fail)
    wanted = f"Returning.aggregate_train failed with ValueError at {Path(__file__).name}:"
    assert f"{wanted}{first + len(lines) - 1}" in str(caught.value)
    assert "0.25" not in f"{caught.value} {caught.value.why} {caught.value.fix} {caplog.text}"
    with caplog.at_level("DEBUG", "fedhealth"), pytest.raises(AggregationError):
        one_round(wrapped(failing), 1, model(0), updates(1))
    assert "weights 0.25 and 0.5" in caplog.text


def test_float64_result_is_cast_to_the_spec() -> None:
    result = (tensors(**{"fusion.bias": np.arange(5, dtype=np.float64)}), None)
    aggregate = one_round(wrapped(Returning(result)), 1, model(0), updates(1))
    assert aggregate.vector.dtype == np.float32
    np.testing.assert_array_equal(aggregate.vector[-5:], np.arange(5))


def test_metrics_that_a_strategy_makes_up_do_not_come_out() -> None:
    made_up = MetricRecord({"train_loss": 0.5, "clusters": 3})
    aggregate = one_round(wrapped(Returning((tensors(), made_up))), 1, model(0), updates(1))
    assert aggregate.train_metrics == {"train_loss": 0.5}


def test_infinite_update_is_refused_though_a_median_would_hide_it() -> None:
    aggregator = build_aggregator(plan("flower-fedmedian"), SPEC, min_cohort=2)
    broken = updates(1)
    broken[0][0] = np.inf
    with pytest.raises(AggregationError, match="hospital-a"):
        one_round(aggregator, 1, model(0), broken)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight_that_is_not_positive_is_refused(weight: float) -> None:
    from dataclasses import replace

    aggregator = build_aggregator(plan("fedavg"), SPEC, min_cohort=2)
    replies = [reply(0, model(1)), replace(reply(1, model(2)), weight=weight)]
    with pytest.raises(AggregationError) as caught:
        aggregator.aggregate(1, iter(replies))
    assert code_of(caught) == "FH-STRATEGY-055"


def test_site_that_replies_twice_is_refused() -> None:
    aggregator = build_aggregator(plan("fedavg"), SPEC, min_cohort=2)
    with pytest.raises(AggregationError) as caught:
        aggregator.aggregate(1, iter([reply(0, model(1)), reply(0, model(2))]))
    assert code_of(caught) == "FH-STRATEGY-055"


def test_error_of_the_reply_iterator_comes_out_as_it_is() -> None:
    def replies() -> Iterator[Any]:
        yield reply(0, model(1))
        raise QuorumError("FH-QUORUM-999", "the cohort failed.")

    with pytest.raises(QuorumError, match="FH-QUORUM-999"):
        build_aggregator(plan("fedavg"), SPEC, min_cohort=2).aggregate(1, replies())


def test_unreadable_spool_is_not_blamed_on_the_strategy() -> None:
    from dataclasses import replace

    def load() -> Any:
        raise OSError("disk")

    replies = [reply(0, model(1)), replace(reply(1, model(2)), load_vector=load)]
    with pytest.raises(OSError, match="disk"):
        build_aggregator(plan("fedavg"), SPEC, min_cohort=2).aggregate(1, iter(replies))


# --- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "code", "named"),
    [
        ("fedavg", {"weightin": "size"}, "FH-STRATEGY-013", "weighting"),
        ("fedavg", {"weighting": "loss"}, "FH-STRATEGY-014", "weighting"),
        ("dp-fedavg", {"num_sites": 4}, "FH-STRATEGY-018", "noise_multiplier and clipping_norm"),
        ("dp-fedavg", {"num_sites": 4, "clipping_norm": 1.0}, "FH-STRATEGY-018", "option noise"),
        ("fedprox", {"proximal_mu": "0.1"}, "FH-STRATEGY-014", "proximal_mu"),
        ("fedprox", {"proximal_mu": -1}, "FH-STRATEGY-002", "proximal_mu"),
        ("fedprox", {"mu": 1}, "FH-STRATEGY-013", "proximal_mu"),
        ("flower-fedadam", {"eta": "fast"}, "FH-STRATEGY-014", "eta"),
        ("flower-fedadam", {"beta1": 0.9}, "FH-STRATEGY-013", "beta_1"),
        ("flower-fedavg", {"train_metrics_aggr_fn": 1}, "FH-STRATEGY-013", "min_train_nodes"),
    ],
)
def test_wrong_option_is_refused_and_the_right_one_named(
    name: str, options: dict[str, Any], code: str, named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_aggregator(plan(name, **options), SPEC, min_cohort=2)
    assert code_of(caught) == code
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"num_sites": 3}, "needs the options noise_multiplier and clipping_norm."),
        ({}, "needs the options num_sites, noise_multiplier and clipping_norm."),
        ({"num_sites": 3, "noise_multiplier": 1.0}, "needs the option clipping_norm."),
    ],
)
def test_missing_required_options_are_named_and_no_other(
    options: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_aggregator(plan("dp-fedavg", **options), SPEC, min_cohort=2)
    assert code_of(caught) == "FH-STRATEGY-018"
    assert caught.value.what == f"strategy 'dp-fedavg' {what}"
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize("wrong", [{"noise_multiplier": -1.0}, {"beta_1": 1.0}])
def test_an_option_out_of_its_range_says_why(wrong: dict[str, Any]) -> None:
    options = {"num_sites": 3, "noise_multiplier": 1.0, "clipping_norm": 1.0} | wrong
    with pytest.raises(ConfigError) as caught:
        build_aggregator(plan("dp-fedavg", **options), SPEC, min_cohort=2)
    assert code_of(caught) == "FH-STRATEGY-042"
    assert caught.value.why


def test_integer_is_good_enough_for_a_float_option() -> None:
    build_aggregator(plan("flower-fedadam", eta=1), SPEC, min_cohort=2)


def test_fedper_without_private_heads_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        build_aggregator(plan("fedper"), SPEC, min_cohort=2)
    assert code_of(caught) == "FH-STRATEGY-015"


def test_plug_in_that_is_no_strategy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("odd", "builtins:dict", "fedhealth.strategies")
    monkeypatch.setattr(plugins, "entry_points", lambda **_: (point,))
    with pytest.raises(ConfigError) as caught:
        build_aggregator(plan("odd"), SPEC, min_cohort=2)
    assert code_of(caught) == "FH-STRATEGY-012"


# --- state -----------------------------------------------------------------------------------------------


def test_fresh_strategy_has_no_state() -> None:
    for name in ("fedavg", "flower-fedavg", "flower-fedadam"):
        assert build_aggregator(plan(name), SPEC, min_cohort=2).state_dict() == {}


def test_fedadam_state_holds_its_moments_by_tensor() -> None:
    aggregator = build_aggregator(plan("flower-fedadam"), SPEC, min_cohort=2)
    one_round(aggregator, 1, model(0), updates(1))
    state = aggregator.state_dict()
    assert {"dict:m_t:encoder.weight", "dict:v_t:fusion.bias"} <= set(state)
    assert all(isinstance(array, np.ndarray) for array in state.values())


def test_empty_state_takes_a_used_strategy_back_to_its_beginning() -> None:
    aggregator = build_aggregator(plan("flower-fedadam"), SPEC, min_cohort=2)
    first = one_round(aggregator, 1, model(0), updates(1))
    aggregator.load_state_dict({})
    again = one_round(aggregator, 1, model(0), updates(1))
    assert again.vector.tobytes() == first.vector.tobytes()


class Remembering(FedAvg):
    """Keeps state of every kind that a checkpoint can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.rate, self.seen = 0, 1.0, False
        self.moment: Any = None
        self.layers: Any = None
        self.record: Any = None

    def change(self) -> None:
        self.count, self.rate, self.seen = 3, 0.25, True
        self.moment = np.arange(3.0)
        self.layers = [np.arange(12.0) + i for i in range(11)]
        self.record = ArrayRecord({"w": Array(np.ones(2, dtype=np.float32))})


def test_state_of_every_kind_comes_back() -> None:
    used, fresh = Remembering(), Remembering()
    source, target = wrapped(used), wrapped(fresh)
    used.change()
    target.load_state_dict(source.state_dict())
    assert (fresh.count, fresh.rate, fresh.seen) == (3, 0.25, True)
    np.testing.assert_array_equal(fresh.moment, used.moment)
    np.testing.assert_array_equal(np.stack(fresh.layers), np.stack(used.layers))
    np.testing.assert_array_equal(fresh.record["w"].numpy(), np.ones(2))


def test_state_that_no_checkpoint_can_hold_is_refused_by_name() -> None:
    strategy = Remembering()
    aggregator = wrapped(strategy)
    strategy.moment = {"rng": np.random.default_rng(0)}
    with pytest.raises(AggregationError, match="moment") as caught:
        aggregator.state_dict()
    assert code_of(caught) == "FH-STRATEGY-040"


def test_strategy_with_its_own_state_methods_is_asked() -> None:
    class Explicit(FedAvg):
        value = 0.0

        def state_dict(self) -> dict[str, Any]:
            return {"value": np.asarray(self.value)}

        def load_state_dict(self, state: Any) -> None:
            self.value = float(state["value"])

    source, target = Explicit(), Explicit()
    source.value = 2.5
    wrapped(target).load_state_dict(wrapped(source).state_dict())
    assert target.value == 2.5


# --- arrays ----------------------------------------------------------------------------------------------


def test_array_record_shares_memory_with_the_vector() -> None:
    vector = model(0)
    for name, array in array_record(SPEC, vector).items():
        assert np.shares_memory(np.asarray(array), vector), name


def test_view_array_cannot_be_written_through() -> None:
    vector = model(0)
    record = array_record(SPEC, vector)
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(record["fusion.bias"])[0] = 1
    record["fusion.bias"].numpy()[0] = 1e9  # a copy, as of any Flower array
    np.testing.assert_array_equal(vector, model(0))
    vector[0] = 0  # the vector itself stays its owner's


def test_view_array_serialises_as_flowers_own_array_does() -> None:
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    ours, stock = ViewArray(tensor), Array(tensor)
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (
        *(stock.dtype, stock.shape, stock.stype),
        stock.data,
    )
    np.testing.assert_array_equal(ours.numpy(), stock.numpy())
