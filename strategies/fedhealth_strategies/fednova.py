"""FedNova: sites that take unequal numbers of local steps count by their data, not by their steps.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020 (arXiv 2007.07481), equation 8: ``w <- w - tau_eff * sum_i p_i d_i`` with ``d_i = (w - w_i) / a_i``.
"""

import math
from collections.abc import Iterable
from typing import Literal, get_args

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedhealth.config.personalisation import TRAINS_IN_ITS_OWN_WAY, PersonalisationName
from fedhealth.config.study import RunPlan, Study
from fedhealth.errors import ConfigError
from fedhealth_strategies.fedavg import FedAvg

PLAIN_STEPS = frozenset(get_args(PersonalisationName)) - TRAINS_IN_ITS_OWN_WAY
"""Personalisation under which each local step is one of the optimiser's on all shared tensors."""


class FedNova(FedAvg):
    """FedAvg that sends ``effective_steps`` to every site, which brings its update to that many steps itself.

    A site sends ``w + (w_i - w) * effective_steps / a_i``; a_i comes from its optimiser and its number of steps (see
    `fedhealth.training.strategy_wishes`), and stays there. Their mean is the paper's update, so masks may hide all
    of it. The paper's own choice of tau_eff, the mean of all a_i, would need these numbers: here it is a public
    constant of the study.

    Args:
        effective_steps: tau_eff, above 0. The number of steps that a site of middle size takes in a round is a good
            choice: it only scales the server's step.
        proximal_mu: as in `FedProx`; 0 for none.
        weighting: as in `FedAvg`.

    Raises:
        ConfigError: FH-STRATEGY-004 `effective_steps` is not above 0, FH-STRATEGY-002 `proximal_mu` is negative.
    """

    def __init__(
        self,
        effective_steps: float,
        proximal_mu: float = 0.0,
        weighting: Literal["size", "uniform"] = "size",
    ) -> None:
        super().__init__(weighting)
        if not math.isfinite(effective_steps) or effective_steps <= 0:
            raise ConfigError(
                "FH-STRATEGY-004",
                "option `effective_steps` must be a finite number above 0.",
                fix="Write about how many optimiser steps a site of middle size takes in a round.",
            )
        if not math.isfinite(proximal_mu) or proximal_mu < 0:
            raise ConfigError(
                "FH-STRATEGY-002",
                "option `proximal_mu` must be a finite number, not below 0.",
                fix="Write for example `proximal_mu: 0.01` in the study's strategy options.",
            )
        self.effective_steps = float(effective_steps)
        self.proximal_mu = float(proximal_mu)

    def check_study(self, study: Study, run: RunPlan) -> None:
        """Refuse a study whose sites take no local steps, or other steps than a_i is made for.

        Raises:
            ConfigError: FH-STRATEGY-005 distributed privacy of unit patient takes one global step a round,
                FH-STRATEGY-009 the run's personalisation takes steps of its own.
        """
        if run.personalisation not in PLAIN_STEPS:
            raise ConfigError(
                "FH-STRATEGY-009",
                f"fednova does not go with `personalisation: {run.personalisation}`.",
                why="Such a site takes steps that are not of the shared model alone, and a_i would count them wrongly.",
                fix=f"Choose personalisation {' or '.join(sorted(PLAIN_STEPS))}, or another strategy.",
            )
        masks = study.secure_aggregation
        noise = None if masks is None else masks.distributed_privacy
        if noise is not None and noise.unit == "patient":
            raise ConfigError(
                "FH-STRATEGY-005",
                "fednova does not go with distributed_privacy of unit patient.",
                why="There a round is one global step, and sites have no local steps that could be unequal.",
                fix="Choose `fedavg`, or protect patients with the study's section `privacy`.",
            )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages with ``effective_steps``, and ``proximal_mu`` where there is one."""
        config["effective_steps"] = self.effective_steps
        if self.proximal_mu > 0:
            config["proximal_mu"] = self.proximal_mu
        return super().configure_train(server_round, arrays, config, grid)
