"""What draws shared parameters to where they should stay near, in every local step. Called by both kinds of steps.

FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", equation 2) adds mu/2 ||w - w_t||^2 over
the shared parameters to the loss. MR-MTL (Liu et al. 2022, algorithm 1) and Ditto (Li et al. 2021, algorithm 1) add
strength/2 ||w - anchor||^2, and their papers take plain gradient steps:

    w <- w - eta (g + strength (w - anchor))

For FedProx, and for MR-MTL and Ditto with plain SGD, the pull's gradient is added to g, which is that rule. A step then
ends beyond the anchor only where eta x strength is above 1, which the study refuses. An optimiser with a memory, or one
that normalises its steps, does not take that step: momentum goes on with old pulls when the anchor is reached, and
Adam moves by about eta whatever the strength is, so both go past it for any strength. With these MR-MTL and Ditto leave
g alone, and the pull follows the optimiser's step as a step of its own:

    w <- (w + tau strength anchor) / (1 + tau strength)

the exact minimum of strength/2 ||v - anchor||^2 + 1/(2 tau) ||v - w||^2 over v (a proximal step: Parikh and Boyd 2014,
"Proximal Algorithms", section 4.2). It ends between w and the anchor for every strength. tau is what the optimiser
makes of a constant gradient in the long run: eta / (1 - momentum) for SGD, so that it comes to rest at the minimum of
the same objective; eta for Adam and AdamW, as AdamW does with weight decay (Loshchilov and Hutter 2019, arXiv
1711.05101).

Anchors know no patient but through released or noised models, so neither way costs privacy; under it the pull is after
the noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, no_grad

from fedhealth.training.frozen_tensors import trained
from fedhealth.training.learner import Learner

if TYPE_CHECKING:
    from fedhealth.config.study import OptimizerConfig
    from fedhealth.training.local_steps import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """One way to draw parameters to anchors; see the module.

    Attributes:
        learner: whose shared parameters.
        anchors: by name, on the learner's device; empty: nothing is drawn.
        strength: mu of FedProx, or that of the method.
        share: of the way from a parameter to its anchor that follows each optimiser step; None: the pull is a gradient.
    """

    learner: Learner
    anchors: Mapping[str, Tensor] = field(repr=False)
    strength: float
    share: float | None = None

    def add_gradient(self) -> None:
        """Before an optimiser step: add strength (w - anchor), where the pull is a gradient."""
        if self.share is not None:
            return
        for name, anchor in self.anchors.items():
            parameter = self.learner.shared[name]
            pull = (parameter.detach() - anchor).mul_(self.strength)
            parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)

    def follow_step(self) -> None:
        """After an optimiser step: take the proximal step, where the pull is one."""
        if self.share is None:
            return
        with no_grad():
            for name, anchor in self.anchors.items():
                self.learner.shared[name].lerp_(anchor, self.share)


def pull_of(learner: Learner, plan: "StepPlan") -> Pull:
    """The pull of a plan: to its anchors, or to where the parameters are now (FedProx); of strength 0 none."""
    if plan.proximal_mu == 0:
        return Pull(learner=learner, anchors={}, strength=0.0)
    if plan.anchors is None:
        begin = {name: p.detach().clone() for name, p in trained(learner.shared).items()}
        return Pull(learner=learner, anchors=begin, strength=plan.proximal_mu)
    return Pull(
        learner=learner,
        anchors=plan.anchors,
        strength=plan.proximal_mu,
        share=followed_share(plan.config.optimizer, plan.proximal_mu),
    )


def followed_share(optimizer: "OptimizerConfig", strength: float) -> float | None:
    """The share, tau strength / (1 + tau strength), below 1; None for plain SGD, which takes the papers' steps."""
    momentum = optimizer.momentum if optimizer.name == "sgd" else 0.0
    if optimizer.name == "sgd" and momentum == 0:
        return None
    pulled = optimizer.learning_rate / (1 - momentum) * strength
    return pulled / (1 + pulled)
