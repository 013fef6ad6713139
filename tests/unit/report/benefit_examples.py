"""Made-up predictions of a few hospitals, from a logistic model of known quality."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedhealth.models import metrics
from fedhealth.report.benefit.analysis import Setting, SitePredictions
from fedhealth.report.benefit.record import CurveFact, CurvePoint, MethodFact
from fedhealth.statistics.judged import Judged
from fedhealth.statistics.measure import Measure

METHODS = (
    MethodFact(key="local", kind="local"),
    MethodFact.of_run("shared", is_personal=False),
    MethodFact.of_run("heads", is_personal=True),
    MethodFact(key="pooled", kind="pooled"),
    MethodFact(key="left-out", kind="left_out"),
)


def binary_metrics(
    predictions: NDArray[np.float64], labels: NDArray[np.int64]
) -> Mapping[str, float]:
    found = {
        "auc": metrics.auc(predictions, labels),
        "accuracy": metrics.accuracy(predictions, labels),
        "log_loss": metrics.log_loss(predictions, labels),
        "brier": metrics.brier(predictions, labels),
        "calibration_error": metrics.calibration_error(predictions, labels),
    }
    return {name: value for name, value in found.items() if value is not None}


MEASURE = Measure(
    primary="auc",
    larger_is_better=True,
    metrics=binary_metrics,
    resampled=metrics.resampled_auc,
    record_values=lambda p, y: {"log_loss": metrics.log_losses(p, y)},
    class_sizes=lambda y, who: tuple(np.unique(who[y == code]).size for code in (0, 1)),
)


def setting(
    methods: Sequence[MethodFact] = METHODS, *, pooling_allowed: bool = False, privacy: bool = False
) -> Setting:
    return Setting(
        study_id="tiny",
        study_sha256="0" * 64,
        has_patient_privacy=privacy,
        pooling_allowed=pooling_allowed,
        methods=methods,
        seed=1,
    )


def site(
    site_id: str,
    noise: Mapping[str, float],
    *,
    count: int = 200,
    seeds: int = 1,
    seed: int = 0,
    one_class: bool = False,
) -> SitePredictions:
    """A site whose models see the true logit with their own noise: more noise, a worse model."""
    return SitePredictions(
        site_id=site_id,
        judged={
            method: [_judged(count, seed + 1000 * k, sd, one_class=one_class) for k in range(seeds)]
            for method, sd in noise.items()
        },
        missing={"mri": 0.25},
        curves=[
            CurveFact(
                method="local",
                metric="log_loss",
                unit="epoch",
                points=tuple(CurvePoint(at=5 * k, value=0.7 - 0.02 * k) for k in range(1, 9)),
            ),
            CurveFact(
                method="run:shared",
                metric="auc",
                unit="round",
                points=tuple(CurvePoint(at=k, value=0.6 + 0.02 * k) for k in range(8)),
            ),
        ],
    )


def _judged(count: int, seed: int, noise: float, *, one_class: bool) -> Judged:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=count)
    labels = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    if one_class:
        labels[:] = 1
    seen = logits + noise * np.random.default_rng(seed + round(noise * 100)).normal(size=count)
    return Judged(
        predictions=1 / (1 + np.exp(-seen)),
        labels=labels,
        patients=np.arange(count),
        strata=labels,
    )
