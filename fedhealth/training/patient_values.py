"""What each validation patient adds to a metric. Called by `supervised`; a noised mean is made of it elsewhere."""

import numpy as np
from numpy.typing import NDArray

from fedhealth.data.batch import PatientDataset
from fedhealth.models import metrics
from fedhealth.training.learner import Learner

Values = NDArray[np.float64]


def patient_values(
    learner: Learner, dataset: PatientDataset, *, batch_size: int
) -> dict[str, Values]:
    """`accuracy`, `brier` and `log_loss` of each patient, (num_patients,) float64, all finite.

    A patient's value is the mean over its records. A record whose probability is not finite counts as predicted
    wrongly with certainty: 0, 1 and 36 nats.

    Raises:
        SiteDataError: a volume cannot be read.
    """
    probabilities = learner.predict_unchecked(dataset, batch_size=batch_size)
    labels = dataset.labels.numpy()
    certain_and_wrong = np.where(labels == 1, 0.0, 1.0)
    probabilities = np.where(np.isfinite(probabilities), probabilities, certain_and_wrong)
    rows, owners = dataset.records_of(range(dataset.num_patients))
    values = {
        "accuracy": metrics.hits(probabilities, labels).astype(np.float64),
        "brier": metrics.squared_errors(probabilities, labels),
        "log_loss": metrics.log_losses(probabilities, labels),
    }
    return {name: _means(record[rows.numpy()], owners.numpy()) for name, record in values.items()}


def _means(values: Values, owners: NDArray[np.int64]) -> Values:
    counts = np.bincount(owners)
    means: Values = np.bincount(owners, weights=values) / counts
    return means
