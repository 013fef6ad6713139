"""The weighted mean of tensors and metrics, folded one reply at a time: what averaging strategies here use."""

from collections.abc import Iterator

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from numpy.typing import NDArray

from fedhealth.errors import AggregationError

BLOCK = 1 << 16  # elements; one float64 block stays in a core's L2 cache


def tensor_of(array: Array) -> NDArray[np.generic]:
    """The tensor behind an Array: a view where it offers numpy's ``__array__``, else a decoded copy."""
    return np.asarray(array) if hasattr(array, "__array__") else array.numpy()


class TensorMean:
    """Weighted mean over replies, in float64, in the order in which they come.

    Memory is two float32 models (the float64 sums) whatever the number of replies. Float64 products of
    float32 values and sizes below 2**29 are exact, so the result differs from the true mean by rounding of
    the sums only (about 1e-16 relative to the largest term), and one reply alone comes back bit by bit.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._total = 0.0
        self._block = np.empty(BLOCK, dtype=np.float64)

    def fold(self, tensors: ArrayRecord, weight: float) -> None:
        """Add one reply. Its tensors are taken out of it: Flower's records are cyclic, so they outlive their use.

        Raises:
            AggregationError: FH-STRATEGY-021 names or shapes differ from the first reply's.
        """
        if not self._shapes:
            self._shapes = {name: tuple(array.shape) for name, array in tensors.items()}
            self._sums = {
                name: np.zeros(int(np.prod(shape)), dtype=np.float64)
                for name, shape in self._shapes.items()
            }
        if {name: tuple(array.shape) for name, array in tensors.items()} != self._shapes:
            raise AggregationError(
                "FH-STRATEGY-021",
                "a reply holds other tensor names or shapes than the replies before it.",
                fix="All sites must run the same study; check that their study digests agree.",
            )
        for name, total in self._sums.items():
            self._add(total, np.ravel(tensor_of(tensors.pop(name))), weight)
        self._total += weight

    def take(self) -> ArrayRecord:
        """The mean as float32. Sums are given up tensor by tensor, so this can be called once."""
        record = ArrayRecord()
        for name in list(self._sums):
            mean = self._compact(self._sums.pop(name))
            record[name] = Array(mean.reshape(self._shapes[name]))
        return record

    def _add(self, total: NDArray[np.float64], tensor: NDArray[np.generic], weight: float) -> None:
        for start in range(0, total.size, BLOCK):
            stop = min(start + BLOCK, total.size)
            scaled = self._block[: stop - start]
            np.multiply(tensor[start:stop], weight, out=scaled, dtype=np.float64)
            total[start:stop] += scaled

    def _compact(self, total: NDArray[np.float64]) -> NDArray[np.float32]:
        # In place, front to back: float32 element i lies on float64 element i // 2, which is already read.
        compact = total.view(np.float32)[: total.size]
        with np.errstate(over="ignore"):  # an overflow becomes inf, which whoever asked refuses
            for start in range(0, total.size, BLOCK):
                stop = min(start + BLOCK, total.size)
                mean = self._block[: stop - start]
                np.divide(total[start:stop], self._total, out=mean)
                compact[start:stop] = mean
        return compact.copy()  # lets the sums go before the tensor is serialised


class MetricMean:
    """Weighted mean of the scalar metrics that every reply carries."""

    def __init__(self, weight_key: str) -> None:
        self._weight_key = weight_key
        self._sums: dict[str, float] | None = None
        self._total = 0.0

    def fold(self, metrics: MetricRecord, weight: float) -> None:
        """Add one reply's metrics; a metric that one reply lacks is dropped for all."""
        scalars = dict(self._scalars(metrics))
        if self._sums is None:
            self._sums = dict.fromkeys(scalars, 0.0)
        common = [name for name in self._sums if name in scalars]
        self._sums = {name: self._sums[name] + weight * scalars[name] for name in common}
        self._total += weight

    def take(self) -> MetricRecord:
        """The mean of each metric."""
        return MetricRecord({name: s / self._total for name, s in (self._sums or {}).items()})

    def _scalars(self, metrics: MetricRecord) -> Iterator[tuple[str, float]]:
        for name, value in metrics.items():
            if name != self._weight_key and isinstance(value, int | float):
                yield name, float(value)
