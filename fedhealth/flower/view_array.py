"""Flower arrays over memory that is already there: what strategies see of the one flat vector."""

from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import DTypeLike, NDArray

from fedhealth.contracts.tensors import TensorSpec

_STYPE = "numpy.ndarray"


class ViewArray(Array):
    """A Flower Array that holds a numpy view instead of serialised bytes.

    A stock Array copies its tensor into ``.npy`` bytes when it is made and out of them at every ``numpy()``.
    Here nothing is copied until someone asks: ``numpy()`` gives a fresh, writable array, as stock code
    expects; ``np.asarray(array)`` gives the read-only view; ``data`` serialises on demand.
    """

    def __init__(self, tensor: NDArray[np.float32]) -> None:
        view = tensor.view()
        view.flags.writeable = False
        # Array's own constructor serialises; its fields are set past its __setattr__, which tracks caches.
        self.__dict__.update(
            dtype=str(view.dtype), shape=tuple(view.shape), stype=_STYPE, _view=view
        )

    def __array__(
        self, dtype: DTypeLike | None = None, *, copy: bool | None = None
    ) -> NDArray[np.generic]:
        view: NDArray[np.float32] = self.__dict__["_view"]
        if dtype is not None and np.dtype(dtype) != view.dtype:
            return view.astype(dtype)
        return view.copy() if copy else view

    def numpy(self) -> NDArray[np.float32]:
        """A writable copy of the tensor."""
        view: NDArray[np.float32] = self.__dict__["_view"]
        return view.copy()

    @property
    def data(self) -> bytes:  # type: ignore[override]  # lazy here, a field in Flower's class
        """The tensor as ``.npy`` bytes, made at every call."""
        buffer = BytesIO()
        np.save(buffer, self.__dict__["_view"], allow_pickle=False)
        return buffer.getvalue()


def array_record(spec: TensorSpec, vector: NDArray[np.float32]) -> ArrayRecord:
    """The named tensors of a flat vector, without copying.

    Raises:
        AggregationError: FH-TENSOR-003 the vector has another length.
    """
    record = ArrayRecord()
    for name, view in spec.views(vector):  # ArrayRecord(dict) would serialise every tensor
        record[name] = ViewArray(view)
    return record
