"""Ditto: FedAvg for all, and at each site a model of its own that is drawn to the shared one.

Li, Hu, Beirami, Smith 2021, "Ditto: Fair and Robust Federated Learning Through Personalization" (arXiv 2012.04221),
algorithm 1.
"""

import torch

from fedhealth.config.personalisation import DittoOptions
from fedhealth.training.frozen_tensors import trained
from fedhealth.training.learner import dump, load
from fedhealth.training.personalisation.work import Phase, RoundResult, RoundWork


class Ditto:
    """Two trainings a round: the shared model as ever, and v_k on F_k(v) + strength / 2 ||v - w||^2.

    The site's patients are used twice. Under patient-level privacy both trainings are DP-SGD and the plan reserves
    twice the steps (`privacy.accounting.plan`): v_k stays at the site, but its metrics may be released, and a hospital
    may hand it on.
    """

    def __init__(self, options: DittoOptions) -> None:
        self._strength = options.strength

    def train(self, work: RoundWork) -> RoundResult:
        """The shared model's steps, then the site's own."""
        learner = work.learner
        num_steps = work.num_steps // 2 if work.is_private else work.num_steps
        loss = work.take_steps(Phase(num_steps=num_steps))
        outgoing = dump(learner.shared)
        load(learner.shared, work.own or work.incoming)
        anchors = {
            name: torch.from_numpy(work.incoming[name].copy()).to(learner.device)
            for name in trained(learner.shared)
        }
        work.take_steps(
            Phase(name="own", num_steps=num_steps, anchors=anchors, strength=self._strength)
        )
        return RoundResult(outgoing=outgoing, own=dump(learner.shared), train_loss=loss)
