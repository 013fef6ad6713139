"""FedAvg: the weighted mean of the sites' tensors, folded as replies come.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017 (arXiv 1602.05629), algorithm 1.
"""

import math
from collections.abc import Iterable
from logging import INFO, getLogger
from typing import ClassVar, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedhealth.errors import AggregationError, ConfigError
from fedhealth_strategies.weighted_mean import MetricMean, TensorMean

_log = getLogger(__name__)


class FedAvg(Strategy):
    """Mean of tensors weighted by declared training size, or uniform; metrics are always size-weighted.

    Every node of the grid takes part in every round: cohorts are small and chosen by the study, so there is
    no sampling. Memory during aggregation is two float32 models plus the one reply in hand.

    Args:
        weighting: ``size`` weighs a site by the training size it declared; ``uniform`` weighs all alike.

    Raises:
        ConfigError: FH-STRATEGY-001 another weighting.
    """

    streaming: ClassVar[bool] = True
    """Each reply is read once and dropped before the next is asked for."""

    sum_based: ClassVar[bool] = True
    """The weighted mean of all updates is all it needs: secure aggregation may hide the single ones."""

    weighted_by_key: ClassVar[str] = "num-examples"
    arrayrecord_key: ClassVar[str] = "arrays"
    configrecord_key: ClassVar[str] = "config"

    def __init__(self, weighting: Literal["size", "uniform"] = "size") -> None:
        if weighting not in {"size", "uniform"}:
            raise ConfigError(
                "FH-STRATEGY-001",
                "option `weighting` must be `size` or `uniform`.",
                fix="Write `weighting: size` in the study's strategy options, or leave it out.",
            )
        self.weighting = weighting

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for every node, with the global tensors and the configuration."""
        return self._messages(MessageType.TRAIN, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies. ``(None, None)`` when no reply carries content.

        Raises:
            AggregationError: FH-STRATEGY-021 tensors differ between replies, FH-STRATEGY-022 a reply without
                exactly one record of tensors and a positive size.
        """
        tensors, metrics = TensorMean(), MetricMean(self.weighted_by_key)
        folded = 0
        for reply in replies:
            if not reply.has_error():
                self._fold(reply.content, tensors, metrics)
                folded += 1
            # The name would keep this reply's tensors alive while the next reply is loaded.
            del reply
        _log.debug("round %d: %d replies folded", server_round, folded)
        return (tensors.take(), metrics.take()) if folded else (None, None)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message for every node, as in training."""
        return self._messages(MessageType.EVALUATE, server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Size-weighted mean of the metrics that all replies carry; None without replies.

        Raises:
            AggregationError: FH-STRATEGY-022 a reply without a positive size.
        """
        metrics, folded = MetricMean(self.weighted_by_key), 0
        for reply in replies:
            if not reply.has_error():
                record, size = self._metrics_of(reply.content)
                metrics.fold(record, size)
                folded += 1
        _log.debug("round %d: %d evaluations folded", server_round, folded)
        return metrics.take() if folded else None

    def summary(self) -> None:
        """Log the settings."""
        _log.log(INFO, "%s, weighting by %s", type(self).__name__, self.weighting)

    def _fold(self, content: RecordDict, tensors: TensorMean, metrics: MetricMean) -> None:
        arrays = self._tensors_of(content)
        record, size = self._metrics_of(content)
        tensors.fold(arrays, size if self.weighting == "size" else 1.0)
        metrics.fold(record, size)

    def _tensors_of(self, content: RecordDict) -> ArrayRecord:
        records = list(content.array_records.values())
        if len(records) != 1:
            raise _malformed_reply()
        return records[0]

    def _metrics_of(self, content: RecordDict) -> tuple[MetricRecord, float]:
        records = list(content.metric_records.values())
        size = records[0].get(self.weighted_by_key) if len(records) == 1 else None
        if not isinstance(size, int | float) or not math.isfinite(size) or size <= 0:
            raise _malformed_reply()
        return records[0], float(size)

    def _messages(
        self,
        message_type: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return [
            Message(content, dst_node_id=node_id, message_type=message_type)
            for node_id in grid.get_node_ids()
        ]


def _malformed_reply() -> AggregationError:
    return AggregationError(
        "FH-STRATEGY-022",
        "a reply does not hold one record of tensors and one of metrics with a positive size.",
        fix="Replies must come through fedhealth's relay, or carry `num-examples` in their metrics.",
    )
