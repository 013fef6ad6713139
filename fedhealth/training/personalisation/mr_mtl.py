"""MR-MTL, mean-regularised multi-task learning: each site trains a model of its own, drawn to the mean of all.

Liu, Hu, Wu, Smith 2022, "On Privacy and Personalization in Cross-Silo Federated Learning" (arXiv 2206.07902),
algorithm 1.
"""

import torch

from fedhealth.config.personalisation import MrMtlOptions
from fedhealth.training.frozen_tensors import trained
from fedhealth.training.learner import dump, load
from fedhealth.training.personalisation.work import Phase, RoundResult, RoundWork


class MrMtl:
    """A round begins at the site's own last w_k and minimises F_k(w) + strength / 2 ||w - w_bar||^2.

    What leaves is w_bar + (w_k new - w_k old), so that the mean moves by the mean change, and what clips or masks an
    update sees a change that is bounded. The pull to w_bar (`training.pulls`) comes after the noise of a private step:
    it knows no patient but through w_k and w_bar, which are made of noised steps, so it costs no privacy.
    """

    def __init__(self, options: MrMtlOptions) -> None:
        self._strength = options.strength

    def train(self, work: RoundWork) -> RoundResult:
        """One phase, from the site's own model."""
        learner = work.learner
        old = work.own or work.incoming
        load(learner.shared, old)
        anchors = {
            name: torch.from_numpy(work.incoming[name].copy()).to(learner.device)
            for name in trained(learner.shared)
        }
        loss = work.take_steps(
            Phase(num_steps=work.num_steps, anchors=anchors, strength=self._strength)
        )
        new = dump(learner.shared)
        outgoing = {name: work.incoming[name] + (new[name] - old[name]) for name in new}
        return RoundResult(outgoing=outgoing, own=new, train_loss=loss)
