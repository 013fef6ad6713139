"""A server optimiser's step from the weighted mean: what FedAdam, FedYogi and FedAdagrad share.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021
(arXiv 2003.00295), algorithm 2.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedhealth_strategies.mean_step import MeanStep, State, refuse_state
from fedhealth_strategies.server_optimizer import ServerOptimizer

_MOMENTS = ("first_moment:", "second_moment:")


class OptimizedMean(MeanStep):
    """``x <- x + step(mean of replies - x)`` with a step that keeps moments; subclasses say which.

    The paper averages updates without weights (algorithm 2, line 11); here the mean is FedAvg's, weighted by size
    unless `weighting` says ``uniform``. Memory beyond FedAvg's: two float32 models of moments.

    Args:
        optimizer: the step, with its moments.
        weighting: as in `FedAvg`.
    """

    def __init__(self, optimizer: ServerOptimizer, weighting: Literal["size", "uniform"]) -> None:
        super().__init__(weighting)
        self._optimizer = optimizer

    def state_dict(self) -> State:
        """The moments; arrays are not copied."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what `state_dict` gave; an empty state is the beginning of a run.

        Raises:
            AggregationError: FH-STRATEGY-045 the state is not a server optimiser's.
        """
        refuse_state(sorted(name for name in state if not name.startswith(_MOMENTS)))
        self._optimizer.load_state_dict(state)
        self._origin = None

    def _step(
        self, name: str, size: int, start: int, update: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return self._optimizer.step(name, size, start, update)
