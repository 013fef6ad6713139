"""What each validation patient adds to a metric. Called by `supervised`; a noised mean is made of it elsewhere."""

import numpy as np
from numpy.typing import NDArray

from fedhealth.data.batch import PatientDataset
from fedhealth.models.judgement import record_values
from fedhealth.training.learner import Learner

Values = NDArray[np.float64]


def patient_values(
    learner: Learner, dataset: PatientDataset, *, batch_size: int
) -> dict[str, Values]:
    """The task's metrics that are means over records, for each patient: (num_patients,) float64, all finite.

    For a binary task `accuracy`, `brier` and `log_loss`. A patient's value is the mean over its records. A record
    whose prediction is not finite counts as wrong with certainty.

    Raises:
        SiteDataError: a volume cannot be read.
    """
    predictions = learner.predict_unchecked(dataset, batch_size=batch_size)
    values = record_values(learner.task, predictions, dataset.labels.numpy())
    rows, owners = dataset.records_of(range(dataset.num_patients))
    return {name: _means(record[rows.numpy()], owners.numpy()) for name, record in values.items()}


def _means(values: Values, owners: NDArray[np.int64]) -> Values:
    counts = np.bincount(owners)
    means: Values = np.bincount(owners, weights=values) / counts
    return means
