"""SCAFFOLD at a site: what corrects its steps, and its own control variate. Called by `supervised`.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020 (arXiv 1910.06378), algorithm 1 with option II: ``y <- y - eta (g - c_i + c)`` and, after K steps,
``c_i+ = c_i - c + (x - y) / (K eta)``.

The site sends y and ``c + (c_i+ - c_i)``, which is ``(x - y) / (K eta)``: a function of what came in and of the trained
tensors alone. So under patient-level privacy it is post-processing of the noised steps and costs nothing more; c_i,
which stays here, is a function of such values of this and earlier rounds.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.contracts.control_variates import CONTROL_PREFIX, with_controls
from fedhealth.contracts.local_training import SiteContext
from fedhealth.errors import ConfigError, TrainingError
from fedhealth.training.frozen_tensors import trained as trained_of
from fedhealth.training.learner import Learner, dump, spec_of
from fedhealth.training.personalisation.places import control_folder
from fedhealth.training.private_head import HeadStore

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What a round with control variates gives: tensors that leave, and the site's next own variate."""

    outgoing: Tensors
    own: Tensors


class OwnControls:
    """The site's own control variate c_i of one run, durable, and that of the round before when a round is repeated.

    Args:
        store: its files.
        shared: the model's shared tensors; c_i begins as zeros of their shapes (as in the paper).
    """

    def __init__(self, store: HeadStore, shared: Mapping[str, NDArray[np.float32]]) -> None:
        self._store = store
        self._first: Tensors = {name: np.zeros_like(tensor) for name, tensor in shared.items()}
        self._round, self._own = store.newest() or (0, self._first)

    def before(self, round_number: int) -> Tensors:
        """c_i as it was before that round: a round that did not count leaves no trace.

        Raises:
            TrainingError: FH-TRAIN-006 the file is damaged or belongs to another model.
        """
        if self._round >= round_number:
            older = self._store.newest(before_round=round_number)
            self._round, self._own = older or (0, self._first)
        return self._own

    def save(self, round_number: int, own: Tensors) -> None:
        """Make the next c_i durable, as that of `round_number`."""
        self._store.save(round_number, own)
        self._round, self._own = round_number, own


def corrections(
    learner: Learner, incoming: Mapping[str, NDArray[np.float32]], own: Tensors
) -> dict[str, Tensor]:
    """``c - c_i`` by shared tensor that is trained, on the learner's device: added to every step's gradient.

    Args:
        learner: whose shared tensors are corrected.
        incoming: the round's tensors, c among them under its control names.
        own: c_i.
    """
    return {
        name: torch.from_numpy(incoming[CONTROL_PREFIX + name] - own[name]).to(learner.device)
        for name in trained_of(learner.shared)
    }


def finish(
    incoming: Mapping[str, NDArray[np.float32]],
    trained: Tensors,
    own: Tensors,
    *,
    learning_rate: float,
    num_steps: int,
    frozen: Collection[str] = (),
) -> Corrected:
    """Option II, worked out in float64. Of a frozen tensor c leaves as it came, and c_i stays.

    Args:
        incoming: x under the model's names, c under its control names.
        trained: y, after `num_steps` plain steps of size `learning_rate`.
        own: c_i.
        learning_rate: eta.
        num_steps: K, at least 1.
        frozen: model tensors that took no step.
    """
    outgoing, following = dict(trained), {}
    for name, y in trained.items():
        if name in frozen:
            outgoing[CONTROL_PREFIX + name] = incoming[CONTROL_PREFIX + name]
            following[name] = own[name]
            continue
        x = incoming[name].astype(np.float64)
        with np.errstate(over="ignore"):  # an overflow becomes inf, which the gate refuses
            gone = ((x - y) / (num_steps * learning_rate)).astype(np.float32)
            following[name] = (own[name] - incoming[CONTROL_PREFIX + name] + gone).astype(
                np.float32
            )
        outgoing[CONTROL_PREFIX + name] = gone
    return Corrected(outgoing=outgoing, own=following)


def control_store(site: SiteContext, run: "RunPlan", learner: Learner) -> HeadStore:
    """Where a run's own control variates are kept at this site; empty for a run without them."""
    return HeadStore(
        control_folder(site.state_dir, run),
        spec_of(learner.shared),
        holds="control variate",
        study_sha256=learner.study_sha256,
    )


def tensors_of(run: "RunPlan", learner: Learner) -> Tensors:
    """What travels in that run: the shared tensors, and their control variates at zero where the run has them.

    Raises:
        ConfigError: FH-TRAIN-052 a tensor's own name looks like a control variate's.
    """
    shared = dump(learner.shared)
    if not run.control_variates:
        return shared
    try:
        return with_controls(shared)
    except ValueError as error:
        raise ConfigError(
            "FH-TRAIN-052",
            f"run {run.name!r} cannot have control variates: {error}.",
            why="Its name would stand for two tensors.",
            fix="Rename that layer of the model, or choose another strategy.",
        ) from None


def wishes_with_controls() -> TrainingError:
    """The error for a strategy that asks for something beside control variates."""
    return TrainingError(
        "FH-TRAIN-007",
        "the strategy asks for a proximal term or for effective steps in a run with control variates.",
        why="A control variate is made from plain steps.",
        fix="Use strategy scaffold for that run.",
    )
