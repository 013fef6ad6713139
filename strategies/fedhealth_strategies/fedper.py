"""FedPer: FedAvg over the shared tensors; each site keeps its own head.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019
(arXiv 1912.00818), algorithms 1 and 2: base layers are averaged, personalisation layers never travel.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedhealth.errors import AggregationError, ConfigError
from fedhealth_strategies.fedavg import FedAvg


class FedPer(FedAvg):
    """FedAvg that refuses any tensor of a head.

    The head stays at the site because the run says ``personalisation: private_head``, which takes it out of
    the tensor spec; this class is the server's second look.

    Args:
        weighting: as in `FedAvg`.
        head_prefixes: tensors whose name begins with one of these must never reach the server.

    Raises:
        ConfigError: FH-STRATEGY-003 no prefix, or an empty one.
    """

    personalisation: ClassVar[str] = "private_head"
    sum_based: ClassVar[bool] = True

    def __init__(
        self,
        weighting: Literal["size", "uniform"] = "size",
        head_prefixes: list[str] | None = None,
    ) -> None:
        super().__init__(weighting)
        self.head_prefixes = ("head.",) if head_prefixes is None else tuple(head_prefixes)
        if not self.head_prefixes or not all(self.head_prefixes):
            raise ConfigError(
                "FH-STRATEGY-003",
                "option `head_prefixes` must hold at least one prefix, and no empty one.",
                fix="Leave it out for the built-in models, whose head is `head.`.",
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages. Raises AggregationError FH-STRATEGY-023 when the model holds a head."""
        self._refuse_head(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """FedAvg's mean. Raises AggregationError FH-STRATEGY-023 when a reply holds a head."""
        return super().aggregate_train(server_round, map(self._checked, replies))

    def _checked(self, reply: Message) -> Message:
        if not reply.has_error():
            for record in reply.content.array_records.values():
                self._refuse_head(record)
        return reply

    def _refuse_head(self, arrays: ArrayRecord) -> None:
        heads = [name for name in arrays if name.startswith(self.head_prefixes)]
        if heads:
            raise AggregationError(
                "FH-STRATEGY-023",
                f"{len(heads)} tensors of a private head reached the server, first {heads[0]!r}.",
                why="Under private_head the head never leaves a site.",
                fix="Set `personalisation: private_head` on the run, or use the strategy `fedavg`.",
            )
