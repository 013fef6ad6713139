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
"""Ten patients of the rarest label for each of two fitted numbers (Peduzzi et al. 1996, J Clin Epidemiol 49:1373)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """Log odds become `intercept + slope * log odds`.

    With more than two classes log probabilities are multiplied by `slope`, the inverse temperature, and made to sum to
    1 again.

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
        """Recalibrated probabilities: (N,) of label 1, or (N, K) of the classes."""
        from fedhealth.statistics.calibration import log_odds, softened

        if probabilities.ndim > 1:
            return softened(probabilities, self.slope)
        found: NDArray[np.float64] = 1 / (
            1 + np.exp(-(self.intercept + self.slope * log_odds(probabilities)))
        )
        return found


def recalibrate(own: "OwnModel", *, made_at: str) -> Recalibration:
    """Fit on the validation side, and keep the result in this site's home.

    Raises:
        UsageError: FH-USAGE-087 the task does not predict classes.
        SiteDataError: FH-DATA-042 too few validation patients of a label; FH-DATA-041 nothing can be fitted to them;
            or the cohort does not keep the data contract.
        TrainingError: FH-TRAIN-004 the model's output is not finite.
    """
    from fedhealth.data.batch import PatientDataset
    from fedhealth.data.targets import class_sizes

    opened = own.opened()
    if opened.contract.target is not None:
        raise UsageError(
            "FH-USAGE-087",
            f"task {own.pinned.study.task.name!r} is not recalibrated.",
            why="Recalibration is fitted to the probabilities of classes.",
            fix="Use the scores as the model gives them.",
        )
    site = own.sessions.context(own.run.name)
    patients = split_patients(site.load_cohort())[SplitName.VALIDATION]
    dataset = PatientDataset(patients, own.learner.contract, memory_limit_bytes=0)
    labels = dataset.labels.numpy()
    owners = np.array([patient.patient_id for patient in patients])
    rarest = min(class_sizes(labels, owners, own.learner.contract))
    if rarest < MIN_OF_EACH_LABEL:
        raise SiteDataError(
            "FH-DATA-042",
            f"the validation side has {rarest} patients of the rarest label; recalibration wants {MIN_OF_EACH_LABEL}.",
            why="Fitted on fewer, the probabilities would be worse than the model's own more often than not.",
            fix="Use the scores as the model gives them: they are marked as not calibrated.",
        )
    found = opened.predict(dataset, device=own.learner.device).astype(np.float64)
    fitted = _fit(found, labels)
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


def _fit(found: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float] | None:
    """Intercept and slope; of more than two classes the inverse temperature, without an intercept."""
    from fedhealth.statistics.calibration import fit_platt, fit_temperature

    if found.ndim == 1:
        return fit_platt(found, labels)
    inverse = fit_temperature(found, labels)
    return None if inverse is None else (0.0, inverse)


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
