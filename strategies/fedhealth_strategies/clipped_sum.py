"""The sum of clipped updates, folded one reply at a time: what strategies with site-level privacy use."""

import math
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from fedhealth.errors import AggregationError
from fedhealth.privacy.update_clipping import (
    BLOCK,
    MARGIN,
    counts_as_unclipped,
    squared_distance,
    squared_norm,
)
from fedhealth_strategies.server_optimizer import ServerOptimizer
from fedhealth_strategies.weighted_mean import tensor_of

Noise = Callable[[int], NDArray[np.float64]]
"""Gives the next so many values of the noise vector, in the order of the tensors."""


class ClippedSum:
    """Sum over replies of ``delta * min(1, C / ||delta||)``, one norm over all tensors of a reply.

    McMahan, Ramage, Talwar, Zhang 2018 (arXiv 1710.06963), algorithm 1. One reply moves the sum by at most C in
    L2, whatever it holds. Memory is two float32 models (the float64 sum) beside the model that was sent, which is
    not copied, and the reply in hand.

    Args:
        origin: the tensors that were sent to the sites.
        clipping_norm: C.
    """

    def __init__(self, origin: ArrayRecord, clipping_norm: float) -> None:
        self._origin = {name: np.ravel(tensor_of(array)) for name, array in origin.items()}
        self._shapes = {name: tuple(array.shape) for name, array in origin.items()}
        self._sums = {name: np.zeros(flat.size) for name, flat in self._origin.items()}
        self._clipping_norm = clipping_norm
        self._size = sum(flat.size for flat in self._origin.values())
        self._origin_norm = math.sqrt(sum(squared_norm(flat) for flat in self._origin.values()))
        self.num_replies = 0
        self.num_unclipped = 0
        """Replies that no site can have clipped, judged by what came, before it is clipped here again."""

    @property
    def size(self) -> int:
        """Elements of the model."""
        return self._size

    def fold(self, tensors: ArrayRecord) -> None:
        """Add one reply. Its tensors are taken out of it, so that they can go before the next one comes.

        Raises:
            AggregationError: FH-STRATEGY-021 names or shapes are not those that were sent, FH-STRATEGY-046 a value
                is not finite.
        """
        if {name: tuple(array.shape) for name, array in tensors.items()} != self._shapes:
            raise AggregationError(
                "FH-STRATEGY-021",
                "a reply holds other tensor names or shapes than the model that was sent.",
                fix="All sites must run the same study; check that their study digests agree.",
            )
        reply = {name: np.ravel(tensor_of(tensors.pop(name))) for name in self._origin}
        norm = math.sqrt(sum(squared_distance(self._origin[n], flat) for n, flat in reply.items()))
        if not math.isfinite(norm):
            raise AggregationError(
                "FH-STRATEGY-046",
                "a reply holds a value that is not finite.",
                why="It has no norm that could be clipped.",
                fix="Refuse such replies before the strategy sees them, as fedhealth's round does.",
            )
        limit = self._clipping_norm * (1.0 - MARGIN)
        scale = 1.0 if norm <= limit else limit / norm
        for name, flat in reply.items():
            self._add(name, flat, scale)
        self.num_replies += 1
        self.num_unclipped += counts_as_unclipped(
            norm,
            global_norm=self._origin_norm,
            clipping_norm=self._clipping_norm,
            size=self._size,
        )

    def take(self, *, noise: Noise, denominator: int, optimizer: ServerOptimizer) -> ArrayRecord:
        """The next model, float32: origin plus the server's step from ``(sum + noise) / denominator``.

        Sums are given up tensor by tensor, so this can be called once.
        """
        record = ArrayRecord()
        for name, origin in self._origin.items():
            total = self._sums.pop(name)
            moved = np.empty(total.size, dtype=np.float32)
            for start in range(0, total.size, BLOCK):
                part = slice(start, min(start + BLOCK, total.size))
                update = (total[part] + noise(part.stop - start)) / denominator
                with np.errstate(
                    over="ignore"
                ):  # an overflow becomes inf, which whoever asked refuses
                    moved[part] = origin[part] + optimizer.step(name, total.size, start, update)
            del total
            record[name] = Array(moved.reshape(self._shapes[name]))
        return record

    def _add(self, name: str, flat: NDArray[np.generic], scale: float) -> None:
        total, origin = self._sums[name], self._origin[name]
        for start in range(0, total.size, BLOCK):
            part = slice(start, start + BLOCK)
            step = np.subtract(flat[part], origin[part], dtype=np.float64)
            step *= scale
            total[part] += step
