"""What a method keeps at the site between rounds, one file a round. Called by `supervised` and `evaluation`."""

from typing import TYPE_CHECKING

from fedhealth.config.personalisation import KEEPS_MODEL, KEEPS_TENSORS
from fedhealth.contracts.local_training import SiteContext
from fedhealth.training.learner import Learner, spec_of
from fedhealth.training.personalisation.places import held_by, state_folder
from fedhealth.training.personalisation.work import Tensors
from fedhealth.training.private_head import HeadStore

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan


class PersonalState:
    """The newest state of one run at one site, durable; goes back when a round is repeated.

    Args:
        store: its files; None for a method that keeps nothing between rounds.

    Raises:
        TrainingError: FH-TRAIN-006 the newest file is damaged or belongs to another model.
    """

    def __init__(self, store: HeadStore | None) -> None:
        self._store = store
        self._round, self._own = _or_none(None if store is None else store.newest())

    @property
    def own(self) -> Tensors | None:
        """The newest state; None before the first."""
        return self._own

    def before(self, round_number: int) -> Tensors | None:
        """The newest state of an earlier round: a round that did not count leaves no trace.

        Raises:
            TrainingError: FH-TRAIN-006 its file is damaged or belongs to another model.
        """
        if self._store is not None and self._round >= round_number:
            self._round, self._own = _or_none(self._store.newest(before_round=round_number))
        return self._own

    def save(self, round_number: int, own: Tensors, *, model_sha256: str) -> None:
        """Make a state durable, as that of `round_number`, trained with the global model of that digest."""
        if self._store is None:  # not reachable: such a method gives no state
            raise PermissionError("this method keeps nothing between rounds")
        self._store.save(round_number, own, model_sha256=model_sha256)
        self._round, self._own = round_number, own


def open_state(site: SiteContext, run: "RunPlan", learner: Learner) -> PersonalState:
    """The state of a run at this site. Raises as `PersonalState`."""
    if run.personalisation in KEEPS_TENSORS or (
        run.personalisation in KEEPS_MODEL and run.personalisation != "fine_tune"
    ):
        return PersonalState(state_store(site, run, learner))
    return PersonalState(None)


def state_store(site: SiteContext, run: "RunPlan", learner: Learner) -> HeadStore:
    """Where it is kept."""
    is_model = run.personalisation in KEEPS_MODEL
    return HeadStore(
        state_folder(site.state_dir, run),
        spec_of(learner.shared if is_model else learner.private),
        holds=held_by(run),
        study_sha256=learner.study_sha256,
    )


def _or_none(found: tuple[int, Tensors] | None) -> tuple[int, Tensors | None]:
    return (0, None) if found is None else found
