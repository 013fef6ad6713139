"""The tensor spec and the one flat float32 vector that travels (docs/adr/0003)."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import AggregationError

FLOAT32 = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One named tensor: its shape, and where it begins in the flat vector (in elements)."""

    name: str
    shape: tuple[int, ...]
    offset: int
    dtype: str = FLOAT32

    @property
    def num_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Names, shapes, dtypes and offsets of the tensors that travel, in order, without gaps."""

    entries: tuple[TensorEntry, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.float32]]) -> "TensorSpec":
        """The spec of named tensors, in the mapping's order."""
        entries, offset = [], 0
        for name, tensor in tensors.items():
            entry = TensorEntry(name=name, shape=tuple(tensor.shape), offset=offset)
            entries.append(entry)
            offset += entry.num_elements
        return cls(entries=tuple(entries))

    @property
    def num_elements(self) -> int:
        """Length of the flat vector."""
        return sum(entry.num_elements for entry in self.entries)

    @property
    def num_bytes(self) -> int:
        """Size of the flat vector in bytes (4 per element)."""
        return 4 * self.num_elements

    def names(self) -> list[str]:
        """Tensor names, in order."""
        return [entry.name for entry in self.entries]

    def flatten(self, tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """One vector from named tensors.

        Raises:
            AggregationError: FH-TENSOR-001 missing or extra names, FH-TENSOR-002 a wrong shape.
        """
        if set(tensors) != set(self.names()):
            missing = sorted(set(self.names()) - set(tensors))
            extra = sorted(set(tensors) - set(self.names()))
            raise AggregationError(
                "FH-TENSOR-001",
                f"tensor names differ from the spec: {len(missing)} missing, {len(extra)} extra.",
                why=f"Missing {missing[:3]}, extra {extra[:3]}.",
                fix="The model and the tensor spec must come from the same study.",
            )
        vector = np.empty(self.num_elements, dtype=np.float32)
        for entry in self.entries:
            tensor = tensors[entry.name]
            if tuple(tensor.shape) != entry.shape:
                raise AggregationError(
                    "FH-TENSOR-002",
                    f"tensor {entry.name!r} has shape {tuple(tensor.shape)}, spec {entry.shape}.",
                    fix="The model and the tensor spec must come from the same study.",
                )
            vector[entry.offset : entry.offset + entry.num_elements] = np.ravel(tensor)
        return vector

    def unflatten(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Named views into the vector, without copying.

        Raises:
            AggregationError: FH-TENSOR-003 the vector has another length.
        """
        return dict(self.views(vector))

    def views(self, vector: NDArray[np.float32]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Name and view of each tensor, in order. Raises as `unflatten`."""
        if vector.shape != (self.num_elements,):
            raise AggregationError(
                "FH-TENSOR-003",
                f"a vector of shape {vector.shape} does not hold {self.num_elements} elements.",
                fix="The vector and the tensor spec must come from the same study.",
            )
        for entry in self.entries:
            flat = vector[entry.offset : entry.offset + entry.num_elements]
            yield entry.name, flat.reshape(entry.shape)


def vector_bytes(vector: NDArray[np.float32]) -> memoryview:
    """The little-endian bytes of a vector: what is hashed and what travels."""
    return np.ascontiguousarray(vector, dtype="<f4").data.cast("B")


def vector_from_bytes(payload: bytes | bytearray | memoryview) -> NDArray[np.float32]:
    """The vector behind little-endian bytes (a view, read-only when the bytes are)."""
    return np.frombuffer(payload, dtype="<f4")


def vector_digest(vector: NDArray[np.float32]) -> str:
    """SHA-256 of the vector's bytes, in hex: the model digest of manifests and reports."""
    return hashlib.sha256(vector_bytes(vector)).hexdigest()
