"""FedRep: first the head with the body frozen, then the body with the head frozen.

Collins, Hassani, Mokhtari, Shakkottai 2021, "Exploiting Shared Representations for Personalized Federated Learning"
(arXiv 2102.07078), algorithm 1.
"""

from fedhealth.config.personalisation import FedRepOptions
from fedhealth.errors import TrainingError
from fedhealth.training.learner import dump
from fedhealth.training.personalisation.work import Phase, RoundResult, RoundWork


class FedRep:
    """Two phases that together take the round's steps.

    Under patient-level privacy both are DP-SGD, the head's too: the body's gradients depend on the head, so a head
    that was trained without noise would carry every patient into them.
    """

    def __init__(self, options: FedRepOptions) -> None:
        self._head_share = options.head_share

    def train(self, work: RoundWork) -> RoundResult:
        """Head, then body.

        Raises:
            TrainingError: FH-TRAIN-060 the round has one step only.
        """
        if work.num_steps < 2:  # noqa: PLR2004 - one for each phase
            raise TrainingError(
                "FH-TRAIN-060",
                "a round of one step cannot train the head and then the body.",
                why="FedRep takes steps of both.",
                fix="Raise training.local_steps or local_epochs, or choose personalisation private_head.",
            )
        learner = work.learner
        num_head = min(max(round(self._head_share * work.num_steps), 1), work.num_steps - 1)
        work.take_steps(Phase(name="head", num_steps=num_head, frozen=frozenset(learner.shared)))
        loss = work.take_steps(
            Phase(name="", num_steps=work.num_steps - num_head, frozen=frozenset(learner.private))
        )
        return RoundResult(
            outgoing=dump(learner.shared), own=dump(learner.private), train_loss=loss
        )
