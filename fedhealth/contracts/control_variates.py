"""Names of control variates among the tensors that travel: server, sites and the scaffold strategy agree on them here.

A run with ``control_variates: true`` has each shared tensor twice in its spec: the model's first, then one of the
same shape under ``control.`` (Karimireddy et al. 2020, arXiv 1910.06378). Both halves travel both ways.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

CONTROL_PREFIX: Final = "control."


def with_controls(tensors: Mapping[str, Vector]) -> dict[str, Vector]:
    """The tensors, and zeros of the same shapes under their control names behind them.

    Raises:
        ValueError: a tensor's own name begins with the prefix.
    """
    if any(name.startswith(CONTROL_PREFIX) for name in tensors):
        raise ValueError(f"a tensor's name begins with {CONTROL_PREFIX!r}")
    controls = {f"{CONTROL_PREFIX}{name}": np.zeros_like(t) for name, t in tensors.items()}
    return {**tensors, **controls}


def model_part(vector: Vector, *, has_controls: bool) -> Vector:
    """(n,) the model's half of a run's flat vector (a view); all of it where the run has no control variates."""
    return vector[: vector.size // 2] if has_controls else vector
