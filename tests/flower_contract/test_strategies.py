"""What Flower 1.41's strategies do that fedhealth relies on, or guards against. An upgrade must fail here first."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx
from flwr.serverapp.strategy import strategy_utils as stock_sampling

from fedhealth.flower.cohort_grid import CohortGrid
from fedhealth.testing.flower_task import flower_task

COHORT = ("hospital-a", "hospital-b", "hospital-c")


@pytest.fixture
def in_a_task() -> Iterator[None]:
    with flower_task():
        yield


def arrays(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(3, value, dtype=np.float32))})


def reply(value: float, metrics: dict[str, float], size: float = 1.0) -> Message:
    content = RecordDict(
        {"arrays": arrays(value), "metrics": MetricRecord({**metrics, "num-examples": size})}
    )
    return Message(content, 1, MessageType.TRAIN)


def test_message_needs_a_task_identity_that_no_public_call_sets() -> None:
    with pytest.raises(RuntimeError, match=r"TaskIdentity\.run_id is not set"):
        Message(RecordDict(), 1, MessageType.TRAIN)
    with flower_task(run_id=7, node_id=8):
        message = Message(RecordDict(), 1, MessageType.TRAIN)
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, 8)
    with pytest.raises(RuntimeError, match="TaskIdentity"):
        Message(RecordDict(), 1, MessageType.TRAIN)


def test_reply_carries_the_node_it_comes_from(in_a_task: None) -> None:
    instruction = Message(RecordDict(), 42, MessageType.TRAIN)
    assert Message(RecordDict(), reply_to=instruction).metadata.src_node_id == 42


class _StopWaitingError(Exception):
    pass


def test_stock_sampling_waits_without_end_for_more_nodes(
    in_a_task: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise _StopWaitingError

    monkeypatch.setattr(stock_sampling, "sleep", nap)
    strategy = FedAvg(min_train_nodes=4)
    with pytest.raises(_StopWaitingError):
        strategy.configure_train(1, arrays(0), ConfigRecord(), CohortGrid(COHORT))
    assert len(naps) == 3


def test_stock_sampling_is_not_seeded_by_the_strategy(in_a_task: None) -> None:
    import random

    strategy = FedAvg(fraction_train=0.4, min_train_nodes=1, min_available_nodes=1)
    grid = [f"site-{i}" for i in range(50)]
    picks = []
    for seed in (1, 2):
        random.seed(seed)  # the module-wide generator decides who trains
        messages = strategy.configure_train(1, arrays(0), ConfigRecord(), CohortGrid(grid))
        picks.append([m.metadata.dst_node_id for m in messages])
    assert picks[0] != picks[1]


def test_stock_configuration_carries_the_round_and_fedprox_a_key_that_is_not_ours(
    in_a_task: None,
) -> None:
    strategy = FedProx(proximal_mu=0.1)
    messages = list(strategy.configure_train(3, arrays(0), ConfigRecord(), CohortGrid(COHORT)))
    config = next(iter(messages[0].content.config_records.values()))
    assert dict(config) == {"server-round": 3, "proximal-mu": 0.1}  # refused by the allow-list


def test_stock_fedavg_aggregates_a_single_survivor(in_a_task: None) -> None:
    result, _ = FedAvg(min_train_nodes=3).aggregate_train(1, [reply(5.0, {"loss": 1.0})])
    assert result is not None
    np.testing.assert_array_equal(result["w"].numpy(), np.full(3, 5.0))


@pytest.mark.parametrize("kind", [FedAvg, FedMedian, FedAdam])
def test_stock_strategies_refuse_replies_whose_metrics_differ(in_a_task: None, kind: Any) -> None:
    strategy = kind()
    with pytest.raises(InconsistentMessageReplies):
        strategy.aggregate_train(1, [reply(1, {"loss": 1.0, "auc": 0.5}), reply(2, {"loss": 1.0})])


def test_metric_cannot_be_none(in_a_task: None) -> None:
    with pytest.raises(TypeError):
        MetricRecord({"auc": None})  # type: ignore[dict-item]


def test_one_nan_metric_makes_the_mean_nan(in_a_task: None) -> None:
    _, metrics = FedAvg().aggregate_train(
        1, [reply(1, {"auc": 0.8}), reply(2, {"auc": float("nan")})]
    )
    assert metrics is not None
    assert np.isnan(metrics["auc"])


@pytest.mark.parametrize(("kind", "keeps_nan"), [(FedAvg, True), (FedMedian, True)])
def test_one_nan_update_makes_the_model_nan(in_a_task: None, kind: Any, keeps_nan: bool) -> None:
    result, _ = kind().aggregate_train(1, [reply(1, {"a": 1}), reply(float("nan"), {"a": 1})])
    assert np.isnan(result["w"].numpy()).all() == keeps_nan


def test_fedmedian_hides_an_infinite_update(in_a_task: None) -> None:
    replies = [reply(v, {"a": 1}) for v in (1.0, 2.0, float("inf"))]
    result, _ = FedMedian().aggregate_train(1, replies)
    assert result is not None
    assert np.isfinite(result["w"].numpy()).all()


def test_fedadam_returns_float64_and_keeps_its_moments_in_attributes(in_a_task: None) -> None:
    strategy = FedAdam()
    list(strategy.configure_train(1, arrays(0), ConfigRecord(), CohortGrid(COHORT)))
    replies: Sequence[Message] = [reply(1, {"a": 1}), reply(2, {"a": 1})]
    result, _ = strategy.aggregate_train(1, replies)
    assert result is not None
    assert result["w"].numpy().dtype == np.float64
    assert set(vars(strategy)) >= {"m_t", "v_t", "current_arrays"}


def test_array_record_made_from_a_dict_serialises_every_array() -> None:
    class Loud(Array):
        asked = 0

        @property
        def data(self) -> bytes:  # type: ignore[override]
            type(self).asked += 1
            return self.__dict__["payload"]

        @data.setter
        def data(self, value: bytes) -> None:
            self.__dict__["payload"] = value

    array = Loud("float32", (1,), "numpy.ndarray", b"x")
    record = ArrayRecord()
    record["w"] = array
    assert Loud.asked == 0  # what view_array.py relies on
    ArrayRecord({"w": array})
    assert Loud.asked == 1  # what it avoids
