"""A step from the model that was sent towards the weighted mean: what strategies with a server step share."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedhealth.errors import AggregationError
from fedhealth_strategies.fedavg import FedAvg
from fedhealth_strategies.weighted_mean import BLOCK, tensor_of

State = dict[str, NDArray[np.generic]]


class MeanStep(FedAvg):
    """``x <- x + step(mean of replies - x)``; subclasses say which step.

    Args:
        weighting: as in `FedAvg`.
    """

    sum_based: ClassVar[bool] = True

    def __init__(self, weighting: Literal["size", "uniform"]) -> None:
        super().__init__(weighting)
        self._origin: ArrayRecord | None = None

    @abstractmethod
    def _step(
        self, name: str, size: int, start: int, update: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What to add to elements ``start`` and following of tensor `name` (of `size` elements)."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages; remembers (without a copy) what is sent, to step from it."""
        self._origin = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, float32. ``(None, None)`` when no reply carries content.

        Raises:
            AggregationError: as `FedAvg`; FH-STRATEGY-021 replies hold other tensors than were sent,
                FH-STRATEGY-047 no model was sent in this round, FH-STRATEGY-054 the mean is not finite.
        """
        if self._origin is None:
            raise AggregationError(
                "FH-STRATEGY-047",
                "replies came, but no model was sent with configure_train before them.",
                why="A step begins at the model that was sent.",
                fix="Call configure_train before every aggregate_train.",
            )
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, None
        origin, self._origin = self._origin, None
        _check_mean(mean, origin)
        return self._moved(mean, origin), metrics

    def state_dict(self) -> State:
        """Nothing: what a plain step needs is in the model. Subclasses with state override both."""
        return {}

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Begin anew. Raises AggregationError FH-STRATEGY-045 when there is a state that this strategy has not."""
        refuse_state(sorted(state))
        self._origin = None

    def _moved(self, mean: ArrayRecord, origin: ArrayRecord) -> ArrayRecord:
        record = ArrayRecord()
        for name, array in origin.items():
            start_flat, mean_flat = np.ravel(tensor_of(array)), np.ravel(tensor_of(mean.pop(name)))
            moved = np.empty(start_flat.size, dtype=np.float32)
            for start in range(0, moved.size, BLOCK):
                part = slice(start, min(start + BLOCK, moved.size))
                update = np.subtract(mean_flat[part], start_flat[part], dtype=np.float64)
                step = self._step(name, moved.size, start, update)
                with np.errstate(over="ignore"):  # becomes inf, which whoever asked refuses
                    moved[part] = start_flat[part] + step
            record[name] = Array(moved.reshape(tuple(array.shape)))
        return record


def refuse_state(unknown: Sequence[str]) -> None:
    """Raises AggregationError FH-STRATEGY-045 if there are names in the state that the strategy does not have."""
    if unknown:
        raise AggregationError(
            "FH-STRATEGY-045",
            f"the strategy's state in the checkpoint holds {unknown[0]!r}.",
            why="Going on from it would be another algorithm than what ran.",
            fix="Go on with the study and the fedhealth version that wrote the checkpoint.",
        )


def _check_mean(mean: ArrayRecord, origin: ArrayRecord) -> None:
    """Before any state changes: a round that fails leaves the strategy as it was."""
    shapes = [{n: tuple(a.shape) for n, a in record.items()} for record in (mean, origin)]
    if shapes[0] != shapes[1]:
        raise AggregationError(
            "FH-STRATEGY-021",
            "replies hold other tensor names or shapes than the model that was sent.",
            fix="All sites must run the same study; check that their study digests agree.",
        )
    if not all(bool(np.isfinite(tensor_of(array)).all()) for array in mean.values()):
        raise AggregationError(
            "FH-STRATEGY-054",
            "the mean of the replies is not finite.",
            why="It would spoil the state of all rounds that follow.",
            fix="Lower the local learning rate.",
        )
