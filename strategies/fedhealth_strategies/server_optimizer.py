"""FedAdam, FedYogi and FedAdagrad as a step from a mean update: post-processing, so after noise it costs no privacy.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021
(arXiv 2003.00295), algorithm 2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import ConfigError

Kind = Literal["none", "adam", "yogi", "adagrad"]
State = dict[str, NDArray[np.generic]]

DEFAULT_RATE: Mapping[Kind, float] = {"none": 1.0, "adam": 0.01, "yogi": 0.01, "adagrad": 0.1}
"""A plain step is the mean itself. 0.01 lies in the middle of the paper's grid (section 5.2); the second moment of
Adagrad only grows, so its steps start larger."""


@dataclass(slots=True, kw_only=True)
class ServerOptimizer:
    """``none`` scales the update; ``adam``, ``yogi`` and ``adagrad`` keep two float32 models of moments.

    Raises:
        ConfigError: FH-STRATEGY-042 a value out of its range.
    """

    kind: Kind = "none"
    learning_rate: float | None = None
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    """Adaptivity: the paper's default, and the square root of the first second moment."""
    _first: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    _second: dict[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._check()

    def step(
        self, name: str, size: int, start: int, update: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What to add to elements ``start`` and following of tensor `name` (of `size` elements)."""
        rate = DEFAULT_RATE[self.kind] if self.learning_rate is None else self.learning_rate
        if self.kind == "none":
            return rate * update
        if name not in self._first:
            self._first[name] = np.zeros(size, dtype=np.float32)
            self._second[name] = np.full(size, self.tau**2, dtype=np.float32)
        part = slice(start, start + update.size)
        first, second = self._first[name][part], self._second[name][part]
        first[:] = self.beta_1 * first + (1.0 - self.beta_1) * update
        squared = np.square(update)
        if self.kind == "adam":
            second[:] = self.beta_2 * second + (1.0 - self.beta_2) * squared
        elif self.kind == "adagrad":
            second[:] = second + squared
        else:
            second[:] = second - (1.0 - self.beta_2) * squared * np.sign(second - squared)
        return rate * first / (np.sqrt(second, dtype=np.float64) + self.tau)

    def state_dict(self) -> State:
        """The moments by tensor; arrays are not copied."""
        state: State = {f"first_moment:{name}": array for name, array in self._first.items()}
        return state | {f"second_moment:{name}": array for name, array in self._second.items()}

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back the moments of `state_dict`; without any, begin anew."""
        self._first, self._second = {}, {}
        for full_name, array in state.items():
            kind, _, name = full_name.partition(":")
            moments = self._first if kind == "first_moment" else self._second
            moments[name] = array.astype(np.float32)

    def _check(self) -> None:
        if self.kind not in DEFAULT_RATE:
            raise _wrong("server_optimizer", "none, adam, yogi or adagrad")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise _wrong("server_learning_rate", "a positive number")
        if not (0 <= self.beta_1 < 1 and 0 <= self.beta_2 < 1):
            raise _wrong("beta_1 and beta_2", "at least 0 and below 1")
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise _wrong("tau", "a positive number")


def _wrong(option: str, expected: str) -> ConfigError:
    return ConfigError(
        "FH-STRATEGY-042",
        f"option `{option}` must be {expected}.",
        why="With anything else the server's step has no meaning or never settles.",
        fix="Correct it in the study's strategy options, or leave it out.",
    )
