"""FedProx: FedAvg whose sites pull their weights back towards the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020
(arXiv 1812.06127), algorithm 2. The local loss gains ``mu / 2 * ||w - w_global||^2``; the server averages.
"""

import math
from collections.abc import Iterable
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedhealth.config.personalisation import TRAINS_IN_ITS_OWN_WAY
from fedhealth.config.study import RunPlan, Study
from fedhealth.errors import ConfigError
from fedhealth_strategies.fedavg import FedAvg


class FedProx(FedAvg):
    """FedAvg that sends ``proximal_mu`` to every site.

    Args:
        proximal_mu: weight of the proximal term, not negative; 0 is FedAvg. The paper tries 0.001 to 1.
        weighting: as in `FedAvg`.

    Raises:
        ConfigError: FH-STRATEGY-002 `proximal_mu` is negative or not finite.
    """

    def __init__(
        self, proximal_mu: float = 0.01, weighting: Literal["size", "uniform"] = "size"
    ) -> None:
        super().__init__(weighting)
        if not math.isfinite(proximal_mu) or proximal_mu < 0:
            raise ConfigError(
                "FH-STRATEGY-002",
                "option `proximal_mu` must be a finite number, not below 0.",
                fix="Write for example `proximal_mu: 0.01` in the study's strategy options.",
            )
        self.proximal_mu = float(proximal_mu)

    def check_study(self, study: Study, run: RunPlan) -> None:  # noqa: ARG002 - the hook's shape
        """Refuse a run whose sites already pull, or step, in a way of their own.

        Raises:
            ConfigError: FH-STRATEGY-009 the run's personalisation takes steps of its own.
        """
        if self.proximal_mu > 0 and run.personalisation in TRAINS_IN_ITS_OWN_WAY:
            raise ConfigError(
                "FH-STRATEGY-009",
                f"fedprox does not go with `personalisation: {run.personalisation}`.",
                why="That method has steps, or a pull, of its own; both together would be neither method.",
                fix="Use strategy fedavg for that run.",
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages with ``proximal_mu`` in the configuration."""
        config["proximal_mu"] = self.proximal_mu
        return super().configure_train(server_round, arrays, config, grid)
