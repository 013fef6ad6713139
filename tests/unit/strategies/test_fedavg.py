"""Our strategies by themselves, with Flower's plain messages: they also work in a stock ServerApp."""

from collections.abc import Iterator

import numpy as np
import pytest
from fedhealth_strategies.fedavg import FedAvg
from fedhealth_strategies.fedper import FedPer
from fedhealth_strategies.fedprox import FedProx
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from fedhealth.errors import AggregationError, ConfigError
from fedhealth.flower.cohort_grid import CohortGrid
from fedhealth.testing.flower_task import flower_task

GRID = ("hospital-a", "hospital-b")


@pytest.fixture(autouse=True)
def _in_a_task() -> Iterator[None]:
    with flower_task():
        yield


def reply(size: float, name: str = "w", value: float = 1.0, **metrics: float) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(np.full((2, 2), value, dtype=np.float32))}),
            "metrics": MetricRecord({"num-examples": size, **metrics}),
        }
    )
    return Message(content, 1, MessageType.TRAIN)


def test_mean_is_weighted_by_size() -> None:
    arrays, metrics = FedAvg().aggregate_train(
        1, [reply(1, value=0.0, loss=1.0), reply(3, value=4.0, loss=2.0)]
    )
    assert arrays is not None
    assert metrics is not None
    np.testing.assert_array_equal(arrays["w"].numpy(), np.full((2, 2), 3.0))
    assert dict(metrics) == {"loss": 1.75}


def test_uniform_mean_forgets_size_in_tensors_not_in_metrics() -> None:
    arrays, metrics = FedAvg(weighting="uniform").aggregate_train(
        1, [reply(1, value=0.0, loss=1.0), reply(3, value=4.0, loss=2.0)]
    )
    assert arrays is not None
    assert metrics is not None
    np.testing.assert_array_equal(arrays["w"].numpy(), np.full((2, 2), 2.0))
    assert dict(metrics) == {"loss": 1.75}


def test_no_reply_gives_no_model() -> None:
    assert FedAvg().aggregate_train(1, []) == (None, None)
    assert FedAvg().aggregate_evaluate(1, []) is None


def test_error_reply_is_passed_over() -> None:
    instruction = Message(RecordDict(), 1, MessageType.TRAIN)
    failed = Message(Error(code=1), reply_to=instruction)
    arrays, _ = FedAvg().aggregate_train(1, [failed, reply(1, value=2.0)])
    assert arrays is not None
    np.testing.assert_array_equal(arrays["w"].numpy(), np.full((2, 2), 2.0))


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf")])
def test_reply_without_a_positive_size_is_refused(size: float) -> None:
    with pytest.raises(AggregationError, match="FH-STRATEGY-022"):
        FedAvg().aggregate_train(1, [reply(size)])


def test_replies_with_other_tensors_are_refused() -> None:
    with pytest.raises(AggregationError, match="FH-STRATEGY-021"):
        FedAvg().aggregate_train(1, [reply(1, name="w"), reply(1, name="v")])


def test_every_node_is_asked_once_in_roster_order() -> None:
    grid = CohortGrid(GRID)
    arrays = ArrayRecord({"w": Array(np.zeros(1, dtype=np.float32))})
    for verb in (FedAvg().configure_train, FedAvg().configure_evaluate):
        messages = list(verb(4, arrays, ConfigRecord(), grid))
        assert [m.metadata.dst_node_id for m in messages] == list(grid.get_node_ids())
        assert messages[0].content["config"]["server-round"] == 4


def test_weighting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-001"):
        FedAvg(weighting="loss")  # type: ignore[arg-type]


def test_fedprox_sends_its_mu() -> None:
    arrays = ArrayRecord({"w": Array(np.zeros(1, dtype=np.float32))})
    messages = list(FedProx(0.5).configure_train(1, arrays, ConfigRecord(), CohortGrid(GRID)))
    assert messages[0].content["config"]["proximal_mu"] == 0.5


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_fedprox_refuses_a_mu_that_is_negative_or_not_finite(value: float) -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-002"):
        FedProx(value)


def test_fedper_refuses_a_head_in_the_model_and_in_a_reply() -> None:
    head = ArrayRecord({"head.weight": Array(np.zeros(1, dtype=np.float32))})
    with pytest.raises(AggregationError, match="FH-STRATEGY-023"):
        FedPer().configure_train(1, head, ConfigRecord(), CohortGrid(GRID))
    with pytest.raises(AggregationError, match="FH-STRATEGY-023"):
        FedPer().aggregate_train(1, [reply(1, name="head.weight")])


def test_fedper_takes_another_name_for_the_head() -> None:
    strategy = FedPer(head_prefixes=["classifier."])
    arrays, _ = strategy.aggregate_train(1, [reply(1, name="head.weight")])
    assert arrays is not None
    with pytest.raises(AggregationError, match=r"classifier\.bias"):
        strategy.aggregate_train(1, [reply(1, name="classifier.bias")])


@pytest.mark.parametrize("prefixes", [[], [""], ["head.", ""]])
def test_fedper_refuses_a_prefix_that_means_nothing_or_everything(prefixes: list[str]) -> None:
    with pytest.raises(ConfigError, match="FH-STRATEGY-003"):
        FedPer(head_prefixes=prefixes)
