"""The page of a comparison, a pure function of its record: self-contained HTML in the style of the reports."""

from collections.abc import Sequence
from typing import Final

from fedhealth.report.benefit import wording
from fedhealth.report.benefit.drawings import (
    CalibrationDot,
    CalibrationLine,
    ForestGroup,
    ForestRow,
    calibration,
    forest,
)
from fedhealth.report.benefit.record import (
    LOCAL,
    BenefitRecord,
    CurveFact,
    GainFact,
    MethodFact,
    SiteBenefit,
    benefit_digest,
)
from fedhealth.report.charts import NUM_COLOURS, Series, curves
from fedhealth.report.figures import NONE
from fedhealth.report.record import NotEvidenced
from fedhealth.report.render import page
from fedhealth.statistics.bootstrap import LEVEL, NUM_RESAMPLES

UNSAID: Final = (
    NotEvidenced.DATA_QUALITY,
    NotEvidenced.LABEL_TRUTH,
    NotEvidenced.CLINICAL_SAFETY,
    NotEvidenced.ABSENCE_OF_BIAS,
    NotEvidenced.LAWFULNESS_OF_PROCESSING,
    NotEvidenced.CONSENT,
)
COLUMNS: Final = (
    "auc",
    "average_precision",
    "accuracy",
    "sensitivity_at_90_specificity",
    "log_loss",
    "brier",
)


def render_benefit(record: BenefitRecord, *, title: str, record_file: str) -> str:
    """The page of a comparison.

    Args:
        record: of one simulation, one site, or released rows.
        title: heading; escaped.
        record_file: name of the JSON file that lies beside the page.
    """
    colours = {method.key: index for index, method in enumerate(record.methods)}
    runs = record.runs
    names = {method.key: wording.method_name(method) for method in record.methods}
    return page(
        "benefit.html.j2",
        UNSAID,
        is_simulation=record.is_simulation,
        b=record,
        title=title,
        record_file=record_file,
        digest=benefit_digest(record),
        origin=wording.BANNER[record.origin],
        advice=wording.advice(record),
        headlines=[(wording.method_name(run), wording.headline(record, run)) for run in runs],
        verdicts=[verdict for run in runs for verdict in _verdicts(record, run)],
        forest=_forest(record, colours),
        legend=_legend(record, colours),
        primary=wording.metric_name(record.primary),
        margin=wording.amount(record.margin, record.primary, signed=False),
        columns=_columns(record),
        sites=[_site(record, site, colours) for site in record.sites],
        gains=_gain_rows(record),
        level=f"{LEVEL:.0%}".replace("%", "\u202f%"),
        num_resamples=NUM_RESAMPLES,
        has_calibration=any(r.calibration for site in record.sites for r in site.results),
        curves=_curves(record.curves, "mean over hospitals", names, colours),
    )


def _verdicts(record: BenefitRecord, run: MethodFact) -> list[dict[str, str]]:
    rows = []
    for site_id, gain in record.gains(run.key, LOCAL).items():
        verdict = wording.verdict_of(gain)
        rows.append(
            {
                "style": verdict.value,
                "word": wording.verdict_word(record, gain),
                "sentence": wording.site_sentence(record, site_id, run),
            }
        )
    return rows


def _forest(record: BenefitRecord, colours: dict[str, int]) -> object:
    methods = [m for m in record.methods if m.key != LOCAL]
    groups = []
    for site in record.sites:
        rows = []
        for method in methods:
            gain = site.gain(method.key, LOCAL, record.primary)
            name = wording.method_name(method)
            if gain is None:
                nothing = wording.verdict_word(record, None).lower()
                rows.append(ForestRow(name, colours[method.key], None, 0, 0, nothing))
            else:
                text = wording.interval(gain).replace(" points", "", 1)
                rows.append(
                    ForestRow(name, colours[method.key], gain.value, gain.low, gain.high, text)
                )
        groups.append(ForestGroup(site.site_id, rows))
    metric = wording.metric_name(record.primary)
    return forest(
        f"{metric} minus training alone",
        groups,
        margin=record.margin,
        unit=wording.unit_of_difference(record.primary),
        scale=wording.scale(record.primary),
    )


def _legend(record: BenefitRecord, colours: dict[str, int]) -> list[tuple[str, str]]:
    return [(wording.method_name(m), f"s{colours[m.key] % NUM_COLOURS}") for m in record.methods]


def _columns(record: BenefitRecord) -> list[tuple[str, str]]:
    there = {name for site in record.sites for result in site.results for name in result.metrics}
    known = [name for name in COLUMNS if name in there]
    return [(name, wording.metric_name(name)) for name in (*known, *sorted(there - set(known)))]


def _site(record: BenefitRecord, site: SiteBenefit, colours: dict[str, int]) -> dict[str, object]:
    names = {method.key: wording.method_name(method) for method in record.methods}
    rows = []
    for result in site.results:
        found = result.calibration
        rows.append(
            {
                "name": names[result.method],
                "cells": [_cell(result.metrics.get(name)) for name, _ in _columns(record)],
                "error": _cell(found.error if found else None),
                "null": f"{found.error_expected:.3f}, up to {found.error_high:.3f}"
                if found
                else NONE,
                "slope": _cell(found.slope if found else None),
                "intercept": _cell(found.intercept if found else None),
            }
        )
    return {
        "site_id": site.site_id,
        "facts": _facts(site),
        "rows": rows,
        "calibration": _calibration(site, names, colours),
        "curves": _curves(site.curves, site.site_id, names, colours),
    }


def _facts(site: SiteBenefit) -> str:
    if site.num_patients is None:
        return "Counts of patients were not released."
    said = [f"{site.num_patients} held-out patients"]
    if site.prevalence is not None:
        said.append(f"prevalence {site.prevalence:.0%}")
    said += [f"{name} missing {share:.0%}" for name, share in site.missing.items()]
    return ", ".join(said).replace("%", "\u202f%") + "."


def _calibration(site: SiteBenefit, names: dict[str, str], colours: dict[str, int]) -> object:
    lines = [
        CalibrationLine(
            names[r.method],
            colours[r.method],
            [CalibrationDot(p.predicted, p.observed, p.low, p.high) for p in r.calibration.points],
        )
        for r in site.results
        if r.calibration is not None and r.calibration.points and _is_drawn(r.method)
    ]
    return calibration(f"Calibration at {site.site_id}", lines) if lines else None


def _is_drawn(method: str) -> bool:
    """The plot holds what a hospital can have: its own model, and the runs."""
    return method == LOCAL or method.startswith("run:")


def _curves(
    found: Sequence[CurveFact], where: str, names: dict[str, str], colours: dict[str, int]
) -> list[dict[str, object]]:
    """One chart for each metric and unit: rounds of a federation and epochs of training alone do not share an axis."""
    groups: dict[tuple[str, str], list[CurveFact]] = {}
    for curve in found:
        groups.setdefault((curve.metric, curve.unit), []).append(curve)
    drawn: list[dict[str, object]] = []
    for (metric, unit), members in groups.items():
        series = [
            Series(names[c.method], colours[c.method], [(p.at, p.value) for p in c.points])
            for c in members
        ]
        label = f"{wording.metric_name(metric)} over {unit}s"
        svg = curves(f"{label}, {where}", series, top=None, unit=f"{unit}s")
        drawn.append(
            {"label": label, "hint": ", ".join(names[c.method] for c in members), "svg": svg}
        )
    return drawn


def _gain_rows(record: BenefitRecord) -> list[dict[str, str]]:
    names = {method.key: wording.method_name(method) for method in record.methods}
    return [
        {
            "site_id": site.site_id,
            "what": f"{names[gain.method]} over {names[gain.over].lower()}",
            "metric": wording.metric_name(gain.metric),
            "interval": wording.interval(gain),
            "p": _p_value(gain.p_value),
            "adjusted": NONE if gain.adjusted_p is None else _p_value(gain.adjusted_p),
            "delong": NONE if gain.delong_p is None else _p_value(gain.delong_p),
            "least": wording.amount(gain.gain.detectable, gain.metric, signed=False),
            "verdict": _verdict_word(gain),
        }
        for site in record.sites
        for gain in site.gains
    ]


def _verdict_word(gain: GainFact) -> str:
    return NONE if gain.verdict is None else wording.COMPARED[gain.verdict]


def _p_value(value: float) -> str:
    least = 0.001
    return f"{value:.3f}" if value >= least else "< 0.001"


def _cell(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
