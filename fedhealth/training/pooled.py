"""What all data in one place would have brought: a simulation's upper line. Never called for real hospitals' data."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fedhealth.contracts.cohort import Patient
from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import SiteContext
from fedhealth.data.split import split_patients
from fedhealth.training.held_out import HeldOutScores
from fedhealth.training.tuned_alone import train_tuned

if TYPE_CHECKING:
    from fedhealth.config.study import RunPlan, Study

POOL: Final = "pool"


def train_pooled_tuned(
    study: "Study", run: "RunPlan", sites: Mapping[str, SiteContext]
) -> dict[str, HeldOutScores]:
    """One model from all sites' training and validation patients, tuned on the grid of training alone, without noise.

    The same features and normalisation as at the sites: the study's public ranges.

    Args:
        study: model, task, data contract and seed.
        run: its personalisation is left out.
        sites: contexts by site id; the first one's device, threads and cache are used.

    Returns:
        Scores on each site's test patients.

    Raises:
        TrainingError, ConfigError, SiteDataError: as `train_alone_tuned`.
    """
    sides = {site_id: split_patients(site.load_cohort()) for site_id, site in sites.items()}
    known: list[Patient] = [
        # Two hospitals may give two people the same id.
        replace(patient, patient_id=f"{site_id}/{patient.patient_id}")
        for site_id, groups in sides.items()
        for side in (SplitName.TRAIN, SplitName.VALIDATION)
        for patient in groups[side]
    ]
    first = next(iter(sites.values()))
    tests = [groups[SplitName.TEST] for groups in sides.values()]
    tuned = train_tuned(study, run, known, tests, site=replace(first, site_id=POOL))
    return {site_id: one.scores for site_id, one in zip(sides, tuned, strict=True)}
