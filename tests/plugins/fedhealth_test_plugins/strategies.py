"""Strategies as a Flower user would bring them: subclasses of Flower's own classes, in a package of their own."""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class MomentumFedAvg(FedAvg):
    """Server momentum (Hsu, Qi, Brown 2019, arXiv 1909.06335) over Flower's FedAvg."""

    sum_based: ClassVar[bool] = True  # the mean is all it needs

    def __init__(
        self,
        momentum: float = 0.9,
        *,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
    ) -> None:
        super().__init__(
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
        )
        self.momentum = momentum
        self.sent: dict[str, np.ndarray[Any, Any]] = {}
        self.velocity: dict[str, np.ndarray[Any, Any]] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.sent = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        moved = ArrayRecord()
        for name, array in mean.items():
            before = self.velocity.get(name, np.float32(0))
            self.velocity[name] = self.momentum * before + array.numpy() - self.sent[name]
            moved[name] = Array(np.asarray(self.sent[name] + self.velocity[name]))
        self.sent = {}
        return moved, metrics


class FirstReply(FedAvg):
    """Takes the first site's model as the next one: it needs a single update, which masks do not leave."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return super().aggregate_train(server_round, list(replies)[:1])
