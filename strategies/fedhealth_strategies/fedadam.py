"""FedAdam: FedAvg's mean, then an Adam step at the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021
(arXiv 2003.00295), algorithm 2, option ``adam``.
"""

from typing import Literal

from fedhealth_strategies.optimized_mean import OptimizedMean
from fedhealth_strategies.server_optimizer import ServerOptimizer


class FedAdam(OptimizedMean):
    """``m <- b1 m + (1 - b1) D; v <- b2 v + (1 - b2) D^2; x <- x + rate m / (sqrt(v) + tau)``.

    D is the mean update. m starts at 0 and v at tau squared, as in the paper; there is no correction of the first
    rounds' bias. Flower's FedAdam starts v at 0 and does correct it.

    Args:
        learning_rate: of the server.
        beta_1: decay of the first moment, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).
        tau: adaptivity: the smaller, the more a coordinate's step depends on its own history.
        weighting: as in `FedAvg`.

    Raises:
        ConfigError: FH-STRATEGY-042 an option out of its range, FH-STRATEGY-001 another weighting.
    """

    def __init__(
        self,
        learning_rate: float = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        weighting: Literal["size", "uniform"] = "size",
    ) -> None:
        super().__init__(
            ServerOptimizer(
                kind="adam", learning_rate=learning_rate, beta_1=beta_1, beta_2=beta_2, tau=tau
            ),
            weighting,
        )
