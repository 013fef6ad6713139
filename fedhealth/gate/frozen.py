"""Tensors that a round does not train at this site: the gate lets them leave as they came, or nothing at all."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """Tensors that leave bit for bit as they came: `ranges` of the vector are those of `origin`, the incoming one."""

    names: frozenset[str]
    origin: NDArray[np.float32] = field(repr=False)
    ranges: Sequence[slice]

    def is_kept_by(self, vector: NDArray[np.float32]) -> bool:
        """By the bits: what has not moved says nothing about a patient, and adds an exact zero to a masked sum."""
        return all(vector[part].tobytes() == self.origin[part].tobytes() for part in self.ranges)

    def put_back(self, vector: NDArray[np.float32]) -> None:
        """The incoming bits in place of equal values."""
        for part in self.ranges:
            vector[part] = self.origin[part]
