"""No personalisation, and methods that only keep tensors at home: one joint training.

FedPer (``private_head``): Arivazhagan, Aggarwal, Singh, Choudhary 2019, "Federated Learning with Personalization
Layers" (arXiv 1912.00818), algorithm 1. ``local_norm`` keeps the affine parameters of normalisation layers, as FedBN
does (Li, Jiang, Zhang, Kamp, Dou 2021, arXiv 2102.07623), with group instead of batch normalisation: statistics
over a batch would mix patients, and running ones would leave unclipped. ``fine_tune`` trains like no personalisation:
its own model is made afterwards (`fine_tune`).
"""

from fedhealth.training.learner import dump
from fedhealth.training.personalisation.work import Phase, RoundResult, RoundWork


class JointTraining:
    """All tensors are trained together, shared and private ones.

    Under patient-level privacy all are clipped and noised together: private ones trained without noise would carry
    every patient in full, and the gradients of the shared ones with them.
    """

    def train(self, work: RoundWork) -> RoundResult:
        """One phase with all steps."""
        loss = work.take_steps(Phase(num_steps=work.num_steps))
        own = dump(work.learner.private) if work.learner.private else None
        return RoundResult(outgoing=dump(work.learner.shared), own=own, train_loss=loss)
