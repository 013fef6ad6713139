"""What a method of personalisation gets for a round, and what it gives back. Read this before the methods.

A method decides what a round begins from, which steps are taken towards what, what leaves, and what the site keeps;
`private_names` says which tensors never travel. It takes its steps through `RoundWork.take_steps`, which is the same
for all: private steps under patient-level privacy, of which a round has exactly as many as were reserved.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedhealth.training.learner import Learner

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Some of a round's steps.

    Attributes:
        num_steps: how many.
        name: of the phase, for the seed of its batches; empty for the only one.
        frozen: tensors that it leaves alone.
        anchors: what shared tensors are pulled to, by name; None: nothing but what the strategy asks for.
        strength: of that pull.
    """

    num_steps: int
    name: str = ""
    frozen: Collection[str] = ()
    anchors: Mapping[str, Tensor] | None = None
    strength: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWork:
    """One round at one site.

    Attributes:
        learner: with the incoming shared tensors, and the site's own private ones, loaded.
        incoming: the shared tensors as they came.
        own: the state that the method kept after an earlier round; None in the first.
        num_steps: steps of the round; under patient-level privacy those that were reserved.
        is_private: whether they are private steps.
        take_steps: trains the learner in place; the mean training loss, None for private steps.
    """

    learner: Learner
    incoming: Tensors = field(repr=False)
    own: Tensors | None = field(repr=False)
    num_steps: int
    is_private: bool
    take_steps: Callable[[Phase], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """What leaves (to the gate), and what the site keeps; None: nothing."""

    outgoing: Tensors = field(repr=False)
    own: Tensors | None = field(repr=False)
    train_loss: float | None


class Personalisation(Protocol):
    """One method."""

    def train(self, work: RoundWork) -> RoundResult:
        """One local round. Raises what `RoundWork.take_steps` raises."""
        ...
