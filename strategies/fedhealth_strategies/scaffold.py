"""SCAFFOLD: control variates take the drift out of local steps.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020 (arXiv 1910.06378), algorithm 1 with option II. The server: ``x <- x + eta_g mean(y_i - x)`` and
``c <- c + |S| / N mean(c_i+ - c_i)``; sites send ``y_i`` and ``c + (c_i+ - c_i)``, so both are steps from a mean.
"""

import math
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedhealth.config.study import RunPlan, Study
from fedhealth.contracts.control_variates import CONTROL_PREFIX
from fedhealth.errors import ConfigError
from fedhealth_strategies.mean_step import MeanStep

MOST_RATE = 10.0
MIN_SITES, MAX_SITES = 2, 1000


class Scaffold(MeanStep):
    """Works on a run with ``control_variates: true``, whose tensors come twice: the model's, and ``control.`` ones.

    c is among the tensors that travel, so the server keeps nothing else. The paper's mean over sites is uniform;
    weighted by size, c is the gradient of the size-weighted objective, which FedAvg minimises too.

    Args:
        learning_rate: eta_g, the server's.
        num_sites: N, sites of the study; a round of |S| of them moves c by |S| / N of the mean change. Left out, the
            sites that reply are taken for all.
        weighting: as in `FedAvg`.

    Raises:
        ConfigError: FH-STRATEGY-007 an option out of its range.
    """

    sum_based: ClassVar[bool] = True
    control_variates: ClassVar[bool] = True

    def __init__(
        self,
        learning_rate: float = 1.0,
        num_sites: int | None = None,
        weighting: Literal["size", "uniform"] = "size",
    ) -> None:
        super().__init__(weighting)
        if not math.isfinite(learning_rate) or not 0 < learning_rate <= MOST_RATE:
            raise _wrong("learning_rate", f"above 0 and at most {MOST_RATE:g}")
        if num_sites is not None and not MIN_SITES <= num_sites <= MAX_SITES:
            raise _wrong("num_sites", f"between {MIN_SITES} and {MAX_SITES}")
        self.learning_rate = float(learning_rate)
        self.num_sites = num_sites
        self._num_replies = 0
        self._num_summed: int | None = None

    def check_study(self, study: Study, run: RunPlan) -> None:  # noqa: ARG002 - the hook's shape
        """Refuse masks that let only some coordinates travel.

        Raises:
            ConfigError: FH-STRATEGY-008.
        """
        masks = study.secure_aggregation
        if masks is not None and masks.kept_share < 1:
            raise ConfigError(
                "FH-STRATEGY-008",
                "scaffold does not go with secure_aggregation.kept_share below 1.",
                why="A site's control variate would move in coordinates that the server's does not hear of.",
                fix="Write `kept_share: 1`, or choose another strategy.",
            )

    def note_sum_of(self, num_sites: int) -> None:
        """Before `aggregate_train`, under masks: how many sites the one reply stands for."""
        self._num_summed = num_sites

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """FedAvg's messages.

        Raises:
            ConfigError: FH-STRATEGY-006 the tensors are not a model and its control variates, FH-STRATEGY-044 the
                cohort is larger than `num_sites`.
        """
        _check_pairs(arrays)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.num_sites is not None and len(messages) > self.num_sites:
            raise ConfigError(
                "FH-STRATEGY-044",
                f"option `num_sites` is {self.num_sites}, but {len(messages)} take part.",
                why="A round would move the control variate by more than all sites together.",
                fix="Set `num_sites` to the number of sites that the consortium admits.",
            )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Both steps, float32. Raises as `MeanStep`."""
        self._num_replies = 0
        try:
            return super().aggregate_train(server_round, self._counted(replies))
        finally:
            self._num_replies, self._num_summed = 0, None

    def _counted(self, replies: Iterable[Message]) -> Iterator[Message]:
        for reply in replies:
            self._num_replies += not reply.has_error()
            yield reply
            # The name would keep this reply's tensors alive while the next reply is loaded.
            del reply

    def _step(
        self,
        name: str,
        size: int,  # noqa: ARG002 - a plain step needs no moments
        start: int,  # noqa: ARG002
        update: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        if not name.startswith(CONTROL_PREFIX):
            return self.learning_rate * update
        present = self._num_replies if self._num_summed is None else self._num_summed
        share = 1.0 if self.num_sites is None else min(1.0, present / self.num_sites)
        return share * update


def _check_pairs(arrays: ArrayRecord) -> None:
    model = {n: tuple(a.shape) for n, a in arrays.items() if not n.startswith(CONTROL_PREFIX)}
    controls = {
        n.removeprefix(CONTROL_PREFIX): tuple(a.shape)
        for n, a in arrays.items()
        if n.startswith(CONTROL_PREFIX)
    }
    if not model or model != controls:
        raise ConfigError(
            "FH-STRATEGY-006",
            "scaffold needs a control variate of the same shape beside each of the model's tensors.",
            why=f"There are {len(model)} tensors of the model and {len(controls)} control variates.",
            fix="Use a training method that knows `control_variates: true`, such as supervised.",
        )


def _wrong(option: str, expected: str) -> ConfigError:
    return ConfigError(
        "FH-STRATEGY-007",
        f"option `{option}` must be {expected}.",
        fix="Correct it in the study's strategy options, or leave it out.",
    )
