"""What a strategy may ask of local training: FedProx's pull, FedNova's common number of steps. Used by `supervised`.

Both come through the manifest, from keys on `STRATEGY_CONFIG_ALLOWED`, so every site of a round gets the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedhealth.errors import TrainingError

if TYPE_CHECKING:
    from fedhealth.config.study import OptimizerConfig

Tensors = dict[str, NDArray[np.float32]]

PROXIMAL_MU, EFFECTIVE_STEPS = "proximal_mu", "effective_steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyWishes:
    """What the strategy of a round asks for.

    Attributes:
        proximal_mu: strength of the FedProx term, 0 for none.
        effective_steps: FedNova's tau_eff, the number of steps that every site's update is brought to; None: each
            site's update goes out as it is.
    """

    proximal_mu: float = 0.0
    effective_steps: float | None = None

    @classmethod
    def of(cls, strategy_config: Mapping[str, float | int | bool]) -> "StrategyWishes":
        """Read a strategy's configuration.

        Raises:
            TrainingError: FH-TRAIN-007 it asks for something else, or for a value out of range.
        """
        unknown = sorted(set(strategy_config) - {PROXIMAL_MU, EFFECTIVE_STEPS})
        if unknown:
            raise _refused(f"the strategy asks for {unknown}.")
        mu = _number(strategy_config.get(PROXIMAL_MU, 0.0))
        if mu is None or mu < 0:
            raise _refused("the strategy's proximal_mu is not a finite number of at least 0.")
        if EFFECTIVE_STEPS not in strategy_config:
            return cls(proximal_mu=mu)
        steps = _number(strategy_config[EFFECTIVE_STEPS])
        if steps is None or steps <= 0:
            raise _refused("the strategy's effective_steps is not a finite number above 0.")
        return cls(proximal_mu=mu, effective_steps=steps)

    def outgoing(
        self,
        incoming: Mapping[str, NDArray[np.float32]],
        trained: Tensors,
        *,
        optimizer: "OptimizerConfig",
        num_steps: int,
    ) -> Tensors:
        """The tensors that leave: ``w + (w_i - w) * tau_eff / a_i`` where the strategy asks for it, else as trained.

        Wang, Liu, Liang, Joshi, Poor 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
        Optimization" (arXiv 2007.07481), equation 8 with the normalised gradient of equation 6: the mean over sites
        is then ``w - tau_eff * sum p_i d_i``, and no site says how many steps it took.

        Args:
            incoming: the shared tensors w of the round.
            trained: w_i, after `num_steps` steps from `incoming`.
            optimizer: of these steps.
            num_steps: at least 1.

        Raises:
            TrainingError: FH-TRAIN-050 the steps of this round cancel each other.
        """
        if self.effective_steps is None:
            return trained
        weight = accumulated_gradients(optimizer, proximal_mu=self.proximal_mu, num_steps=num_steps)
        if not (math.isfinite(weight) and weight > 0):
            raise TrainingError(
                "FH-TRAIN-050",
                "local steps do not add up: the proximal pull is longer than what it pulls back.",
                why="The update cannot be brought to another number of steps then.",
                fix="Lower proximal_mu or training.optimizer.learning_rate, so that their product is below 1.",
            )
        factor = self.effective_steps / weight
        return {name: _stretched(incoming[name], after, factor) for name, after in trained.items()}


def accumulated_gradients(
    optimizer: "OptimizerConfig", *, proximal_mu: float, num_steps: int
) -> float:
    """``||a_i||_1``: how many gradients, by their weights, are in the model after local training.

    Wang et al. 2020, section 4.1: plain SGD: the number of steps; momentum rho:
    ``(tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)``; proximal term: ``(1 - (1 - eta mu)^tau) / (eta mu)``.
    All three are how far the steps get with a gradient of 1 everywhere, over the learning rate, which is what is
    worked out here (so that momentum and pull together are right too). Adam and AdamW normalise each step by itself:
    their weights depend on the data, so the number of steps stands for them. Weight decay is part of the gradient.
    """
    if optimizer.name != "sgd":
        return float(num_steps)
    moved, velocity, pull = 0.0, 0.0, optimizer.learning_rate * proximal_mu
    for _ in range(num_steps):
        velocity = optimizer.momentum * velocity + 1.0 - pull * moved
        moved += velocity
    return moved


def _stretched(
    start: NDArray[np.float32], end: NDArray[np.float32], factor: float
) -> NDArray[np.float32]:
    """``start + (end - start) * factor``, worked out in float64."""
    origin = start.astype(np.float64)
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the gate refuses
        return np.asarray(origin + (end - origin) * factor, dtype=np.float32)


def _number(value: float | bool) -> float | None:  # noqa: FBT001 - a value of a configuration
    is_number = not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _refused(what: str) -> TrainingError:
    return TrainingError(
        "FH-TRAIN-007",
        what,
        why="Local training knows proximal_mu and effective_steps only; ignoring the rest would not be what the study "
        "says.",
        fix="Choose another strategy, or a training method that knows this setting.",
    )


def wishes_with_own_way(personalisation: str) -> TrainingError:
    """The error for a strategy that asks something of a run whose rounds are not simply steps from the shared model."""
    return TrainingError(
        "FH-TRAIN-061",
        f"the strategy asks for a proximal term or for effective steps, and personalisation is {personalisation}.",
        why="That method has steps, or a pull, of its own; both together would be neither method.",
        fix="Use strategy fedavg, or another that only averages, for that run.",
    )
