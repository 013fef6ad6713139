"""Recalibrate a site's own model on its own validation patients. The result stays in the site's home.

Called by `model recalibrate`, read by `predict`. Ranks, and with them the AUC, do not change: only what a probability
means. It is fitted without noise, so it is in no exported model.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from fedhealth.contracts.data import SplitName
from fedhealth.data.split import split_patients
from fedhealth.durable import read_json, write_json
from fedhealth.errors import EvidenceError, SiteDataError, UsageError

if TYPE_CHECKING:
    from fedhealth.site.own_model import OwnModel

MIN_OF_EACH_LABEL: Final = 20
"""Ten patients of the rarer label for each of two fitted numbers (Peduzzi et al. 1996, J Clin Epidemiol 49:1373)."""
NUM_CODES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """Log odds become `intercept + slope * log odds`.

    Attributes:
        weights_sha256: of the model that it was fitted to; it says nothing of another one.
        num_patients: validation patients that it was fitted on.
        made_at: UTC time.
    """

    weights_sha256: str
    intercept: float
    slope: float
    num_patients: int
    made_at: str

    def apply(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) recalibrated probabilities of label 1."""
        from fedhealth.statistics.calibration import log_odds

        found: NDArray[np.float64] = 1 / (
            1 + np.exp(-(self.intercept + self.slope * log_odds(probabilities)))
        )
        return found


def recalibrate(own: "OwnModel", *, made_at: str) -> Recalibration:
    """Fit on the validation side, and keep the result in this site's home.

    Raises:
        UsageError: FH-USAGE-087 the task is not a yes-or-no one.
        SiteDataError: FH-DATA-040 too few validation patients of a label; FH-DATA-041 nothing can be fitted to them;
            or the cohort does not keep the data contract.
        TrainingError: FH-TRAIN-004 the model's output is not finite.
    """
    from fedhealth.data.batch import PatientDataset
    from fedhealth.statistics.calibration import fit_platt

    opened = own.opened()
    if opened.task.num_outputs != 1 or len(opened.contract.label_codes) != NUM_CODES:
        raise UsageError(
            "FH-USAGE-087",
            f"task {own.pinned.study.task.name!r} is not recalibrated.",
            why="Recalibration is fitted to the probability of one outcome of two.",
            fix="Use the scores as the model gives them.",
        )
    site = own.sessions.context(own.run.name)
    patients = split_patients(site.load_cohort())[SplitName.VALIDATION]
    dataset = PatientDataset(patients, own.learner.contract, memory_limit_bytes=0)
    labels = dataset.labels.numpy()
    rarer = int(min((labels == 0).sum(), (labels == 1).sum()))
    if rarer < MIN_OF_EACH_LABEL:
        raise SiteDataError(
            "FH-DATA-040",
            f"the validation side has {rarer} patients of the rarer label; recalibration wants {MIN_OF_EACH_LABEL}.",
            why="Fitted on fewer, the probabilities would be worse than the model's own more often than not.",
            fix="Use the scores as the model gives them: they are marked as not calibrated.",
        )
    found = opened.predict(dataset, device=own.learner.device).astype(np.float64)
    fitted = fit_platt(found, labels)
    if fitted is None or fitted[1] <= 0:
        raise SiteDataError(
            "FH-DATA-041",
            "no increasing curve fits the validation patients.",
            why="The model does not rank them, or makes no mistake: neither says what a probability is worth.",
            fix="Look at `fedhealth site evaluate` before you use this model here.",
        )
    made = Recalibration(
        weights_sha256=opened.weights_sha256,
        intercept=fitted[0],
        slope=fitted[1],
        num_patients=dataset.num_patients,
        made_at=made_at,
    )
    write_json(_path(own), asdict(made))
    return made


def read_recalibration(own: "OwnModel", weights_sha256: str) -> Recalibration | None:
    """What is kept here for this model; None where nothing is.

    Raises:
        EvidenceError: FH-EXPORT-006 it is damaged, or was fitted to another model.
    """
    content = read_json(_path(own))
    if not content:
        return None
    try:
        found = Recalibration(**content)
    except TypeError:
        found = None
    if found is None or found.weights_sha256 != weights_sha256:
        raise EvidenceError(
            "FH-EXPORT-006",
            "the recalibration that is kept here is not of this model.",
            why="Numbers fitted to another model would make this one's probabilities wrong.",
            fix="Run `fedhealth model recalibrate` again, or give --raw for the scores as the model gives them.",
        )
    return found


def _path(own: "OwnModel") -> Path:
    return own.pinned.folder.results / f"{own.run.name}.recalibration.json"
