"""What `fedhealth benefit` needs to know of a study's task and of a site's test patients. Nothing leaves the site."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fedhealth.contracts.data import SplitName
from fedhealth.contracts.local_training import SiteContext
from fedhealth.data.split import split_patients
from fedhealth.data.targets import class_sizes
from fedhealth.models.build import build_task
from fedhealth.models.judgement import primary_metric, record_values, resampled_metric
from fedhealth.statistics.measure import Measure
from fedhealth.training.tuned_alone import GRID, TunedAlone

if TYPE_CHECKING:
    from fedhealth.config.study import Study


def measure_of(study: "Study") -> Measure:
    """The task's first metric, and what else it says about predictions.

    Raises:
        ConfigError: the task is wrong (see `fedhealth.models.build`).
    """
    contract = study.data.to_contract(seed=study.seed)
    task = build_task(study, contract)
    return Measure(
        primary=primary_metric(task),
        larger_is_better=True,  # of every task's first metric
        metrics=task.metrics,
        resampled=partial(resampled_metric, task),
        record_values=partial(record_values, task),
        class_sizes=partial(class_sizes, contract=contract),
    )


def missing_shares(study: "Study", site: SiteContext) -> dict[str, float]:
    """Share of the test records that lack a modality, by its name; empty without a test record."""
    patients = split_patients(site.load_cohort())[SplitName.TEST]
    if not patients:
        return {}
    return {
        modality.name: float(
            np.mean([modality.name not in {*p.tables, *p.volumes} for p in patients])
        )
        for modality in study.data.modalities
    }


def held_out_ids(site: SiteContext) -> list[str]:
    """Ids of the test patients, in the order of `HeldOutScores.owners`."""
    patients = split_patients(site.load_cohort())[SplitName.TEST]
    return list(dict.fromkeys(patient.patient_id for patient in patients))


def learning_curve(tuned: TunedAlone) -> list[tuple[int, float]]:
    """(epochs, cross-validated loss) of training alone with the learning rate that was chosen."""
    return [
        (setting.num_epochs, value)
        for setting, value in zip(GRID, tuned.log_losses, strict=True)
        if setting.learning_rate == tuned.setting.learning_rate and np.isfinite(value)
    ]
