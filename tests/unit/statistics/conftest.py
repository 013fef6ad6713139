"""Made-up predictions of a known quality."""

from collections.abc import Callable

import numpy as np
import pytest

from fedhealth.statistics.judged import Judged

Maker = Callable[..., Judged]


def make_judged(
    count: int, *, seed: int, shift: float = 1.0, noise: float = 0.0, first_patient: int = 0
) -> Judged:
    """Binary labels; scores are `shift` apart between the classes, plus a model's own noise.

    Patients and labels depend on `seed` only, so that two models with one seed are paired.
    """
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int64)
    hidden = rng.normal(size=count)
    scores = shift * labels + hidden + noise * rng.normal(size=count)
    return Judged(
        predictions=1 / (1 + np.exp(shift / 2 - scores)),
        labels=labels,
        patients=np.arange(first_patient, first_patient + count),
        strata=labels,
    )


@pytest.fixture
def judged() -> Maker:
    return make_judged
