"""From predictions to the record: metrics, differences, Holm over sites, verdicts. Called by sites and simulations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedhealth.report.benefit.record import (
    LEFT_OUT,
    LOCAL,
    POOLED,
    BenefitRecord,
    CalibrationFact,
    CurveFact,
    GainFact,
    MethodFact,
    PointFact,
    ResultFact,
    SiteBenefit,
)
from fedhealth.statistics.bootstrap import compare
from fedhealth.statistics.calibration import (
    NUM_DRAWS,
    calibration_null,
    calibration_points,
    fit_calibration,
)
from fedhealth.statistics.delong import delong
from fedhealth.statistics.discrimination import average_precision, sensitivity_at_specificity
from fedhealth.statistics.judged import Judged, MeanOf, Statistic, Weighted
from fedhealth.statistics.measure import Measure
from fedhealth.statistics.verdicts import FEWEST_PER_CLASS, gain_of, judge_sites

LOG_LOSS: Final = "log_loss"
FEWEST_DRAWS: Final = 200
"""Of the calibration null in one resplit: its mean over resplits is then known as well as with one split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePredictions:
    """Everything that was predicted for one site's test patients.

    Attributes:
        site_id: public id.
        judged: by method, one entry a seed; all methods on the same records.
        missing: share of the site's test patients without a modality, by its name.
        curves: learning curves at this site.
    """

    site_id: str
    judged: Mapping[str, Sequence[Judged]] = field(repr=False)
    missing: Mapping[str, float] = field(default_factory=dict)
    curves: Sequence[CurveFact] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a record says about the study besides the numbers."""

    study_id: str
    study_sha256: str
    has_patient_privacy: bool
    pooling_allowed: bool
    methods: Sequence[MethodFact]
    seed: int
    curves: Sequence[CurveFact] = ()
    is_simulation: bool = False


def analyse_simulation(
    setting: Setting, measure: Measure, sites: Sequence[SitePredictions]
) -> BenefitRecord:
    """The record of all sites on one machine, with verdicts after Holm over the sites.

    Raises:
        ValueError: two methods of a site were not judged on the same records.
    """
    rows = [site_benefit(setting, measure, site) for site in sites]
    return BenefitRecord(
        **_head(setting, measure),
        origin="simulation",
        is_simulation=True,
        num_seeds=max(len(judged) for site in sites for judged in site.judged.values()),
        sites=with_verdicts(rows, margin=measure.margin, primary=measure.primary),
    )


def analyse_site(setting: Setting, measure: Measure, site: SitePredictions) -> BenefitRecord:
    """The record that one site makes of itself: no other site's result is known here, so Holm is over one.

    Raises:
        ValueError: two methods were not judged on the same records.
    """
    row = site_benefit(setting, measure, site)
    return BenefitRecord(
        **_head(setting, measure),
        origin="site",
        is_simulation=setting.is_simulation,
        num_seeds=max(len(judged) for judged in site.judged.values()),
        sites=with_verdicts([row], margin=measure.margin, primary=measure.primary),
    )


def site_benefit(setting: Setting, measure: Measure, site: SitePredictions) -> SiteBenefit:
    """Results and differences of one site, without verdicts."""
    any_method = next(iter(site.judged.values()))
    return SiteBenefit(
        site_id=site.site_id,
        num_patients=len(np.unique(np.concatenate([j.patients for j in any_method]))),
        prevalence=_prevalence(any_method),
        missing=dict(site.missing),
        results=tuple(
            _result(measure, method.key, site.judged[method.key], setting.seed)
            for method in setting.methods
            if method.key in site.judged
        ),
        gains=tuple(_gains(setting, measure, site)),
        curves=tuple(site.curves),
    )


def with_verdicts(
    rows: Sequence[SiteBenefit], *, margin: float, primary: str
) -> tuple[SiteBenefit, ...]:
    """The rows with p-values adjusted over the sites, for each pair of methods, and verdicts in the primary metric."""
    judged: dict[tuple[str, str, str, str], GainFact] = {}
    for method, over in {(g.method, g.over) for row in rows for g in row.gains}:
        found = {row.site_id: row.gain(method, over, primary) for row in rows}
        verdicts = judge_sites({s: g.gain if g else None for s, g in found.items()}, margin=margin)
        for site_id, fact in found.items():
            if fact is not None:
                said = verdicts[site_id]
                judged[site_id, method, over, primary] = fact.model_copy(
                    update={"adjusted_p": said.adjusted_p, "verdict": said.verdict}
                )
    return tuple(
        row.model_copy(
            update={
                "gains": tuple(
                    judged.get((row.site_id, g.method, g.over, g.metric), g) for g in row.gains
                )
            }
        )
        for row in rows
    )


def pairs(methods: Iterable[MethodFact]) -> list[tuple[str, str]]:
    """What is compared with what: everything with training alone; runs with pooling and with staying out."""
    keys = [method.key for method in methods]
    runs = [key for key in keys if key.startswith("run:")]
    others = [(key, LOCAL) for key in (*runs, POOLED, LEFT_OUT) if key in keys and LOCAL in keys]
    return others + [(run, over) for run in runs for over in (POOLED, LEFT_OUT) if over in keys]


def _head(setting: Setting, measure: Measure) -> dict[str, object]:
    return {
        "study_id": setting.study_id,
        "study_sha256": setting.study_sha256,
        "primary": measure.primary,
        "larger_is_better": measure.larger_is_better,
        "margin": measure.margin,
        "fewest": FEWEST_PER_CLASS,
        "has_patient_privacy": setting.has_patient_privacy,
        "pooling_allowed": setting.pooling_allowed,
        "methods": tuple(setting.methods),
        "curves": tuple(setting.curves),
    }


def _gains(setting: Setting, measure: Measure, site: SitePredictions) -> Iterable[GainFact]:
    for method, over in pairs(setting.methods):
        if method not in site.judged or over not in site.judged:
            continue
        one, other = site.judged[method], site.judged[over]
        for metric, statistic, larger_is_better in _statistics(measure, one):
            found = compare(one, other, statistic, seed=setting.seed)
            if found is None or (metric == measure.primary and not has_enough(measure, one)):
                continue
            gain = gain_of(found, larger_is_better=larger_is_better)
            yield GainFact(
                method=method,
                over=over,
                metric=metric,
                value=gain.value,
                low=gain.low,
                high=gain.high,
                p_value=gain.p_value,
                standard_error=gain.standard_error,
                delong_p=_delong_p(one, other) if metric == "auc" else None,
            )


def _delong_p(one: Sequence[Judged], other: Sequence[Judged]) -> float | None:
    """The closed form knows neither several splits nor several records of a patient."""
    if len(one) > 1 or np.unique(one[0].patients).size != one[0].patients.size:
        return None
    found = delong(one[0].predictions, other[0].predictions, one[0].labels)
    return None if found is None else found.p_value


def has_enough(measure: Measure, judged: Sequence[Judged]) -> bool:
    """Whether each class, also one that nobody has, is of so many patients that resampling them means something."""
    labels = np.concatenate([j.labels for j in judged])
    patients = np.concatenate([j.patients for j in judged])
    return min(measure.class_sizes(labels, patients)) >= FEWEST_PER_CLASS


def _statistics(measure: Measure, judged: Sequence[Judged]) -> list[tuple[str, Statistic, bool]]:
    """The primary metric, and the log loss where the task has one."""
    found: list[tuple[str, Statistic, bool]] = [
        (measure.primary, Weighted(measure.resampled), measure.larger_is_better)
    ]
    there = [j for j in judged if j.patients.size]
    if there and LOG_LOSS in measure.record_values(there[0].predictions, there[0].labels):
        losses = MeanOf(lambda p, y: measure.record_values(p, y)[LOG_LOSS])
        found.append((LOG_LOSS, losses, False))
    return found


def is_binary(judged: Sequence[Judged]) -> bool:
    """Whether predictions are probabilities of label 1 and labels are 0 and 1."""
    return all(
        j.predictions.ndim == 1
        and j.labels.ndim == 1
        and np.isin(j.labels, (0, 1)).all()
        and ((j.predictions >= 0) & (j.predictions <= 1)).all()
        for j in judged
    )


def _result(measure: Measure, method: str, judged: Sequence[Judged], seed: int) -> ResultFact:
    binary = is_binary(judged)
    by_seed = [_metrics(measure, one, binary=binary) for one in judged]
    names = dict.fromkeys(name for found in by_seed for name in found)
    return ResultFact(
        method=method,
        metrics={
            name: float(np.mean([found[name] for found in by_seed if name in found]))
            for name in names
        },
        calibration=_calibration(judged, seed) if binary else None,
    )


def _metrics(measure: Measure, judged: Judged, *, binary: bool) -> dict[str, float]:
    if judged.patients.size == 0:
        return {}
    found: dict[str, float | None] = dict(measure.metrics(judged.predictions, judged.labels))
    if binary:
        found["average_precision"] = average_precision(judged.predictions, judged.labels)
        found["sensitivity_at_90_specificity"] = sensitivity_at_specificity(
            judged.predictions, judged.labels
        )
    found.pop("calibration_error", None)  # it is shown with its null
    return {name: value for name, value in found.items() if value is not None}


def _calibration(judged: Sequence[Judged], seed: int) -> CalibrationFact | None:
    there = [j for j in judged if j.patients.size]
    if not there:
        return None
    draws = max(NUM_DRAWS // len(there), FEWEST_DRAWS)
    nulls = [calibration_null(j.predictions, j.labels, seed=seed, num_draws=draws) for j in there]
    fits = [fit_calibration(j.predictions, j.labels) for j in there]
    known = [null for null in nulls if null is not None]
    found = [fit for fit in fits if fit is not None]
    points = calibration_points(
        np.concatenate([j.predictions for j in there]),
        np.concatenate([j.labels for j in there]),
        num_repeats=len(there),
    )
    return CalibrationFact(
        error=float(np.mean([null.error for null in known])),
        error_expected=float(np.mean([null.expected for null in known])),
        error_high=float(np.mean([null.high for null in known])),
        slope=float(np.mean([fit.slope for fit in found])) if found else None,
        intercept=float(np.mean([fit.intercept for fit in found])) if found else None,
        points=tuple(
            PointFact(predicted=p.predicted, observed=p.observed, low=p.low, high=p.high)
            for p in points
        ),
    )


def _prevalence(judged: Sequence[Judged]) -> float | None:
    if not is_binary(judged):
        return None
    labels = np.concatenate([j.labels for j in judged])
    return float(labels.mean()) if labels.size else None
