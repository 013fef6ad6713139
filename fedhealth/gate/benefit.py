"""The door for a site's row of `fedhealth benefit`: listed metrics, rounded, of enough patients; or a refusal.

A row is computed from test patients and no noise covers it. So it leaves only where the study says so, where no
epsilon is promised to anybody, and where the study does not keep each site's metrics under masks. `site/benefit.py`
charges the ledger before the row is written to a file, as for every release without noise.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from fedhealth.contracts.benefit import MethodGain, MethodMetrics
from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.errors import GateRefusedError
from fedhealth.gate.outbound import _GATE_TOKEN, OutboundBenefit

FEWEST_PER_CLASS: Final = 10
"""Statistics of fewer patients are not released: the usual threshold for small cells in health statistics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenefitTerms:
    """What the study says about rows of `fedhealth benefit`.

    Attributes:
        is_agreed: release.benefit of the study.
        metrics: names of metrics that may leave.
        metric_digits: significant digits after rounding.
        has_patient_privacy: an epsilon is promised, by noise at the site or under masks.
        is_masked: metrics leave under masks only.
    """

    is_agreed: bool
    metrics: Collection[str]
    metric_digits: int
    has_patient_privacy: bool
    is_masked: bool


def release_benefit(
    results: Sequence[MethodMetrics],
    gains: Sequence[MethodGain],
    *,
    patients_per_class: Sequence[int],
    terms: BenefitTerms,
) -> OutboundBenefit:
    """Release the listed metrics of a row, rounded.

    Args:
        results: metrics by method; those that the study does not list stay.
        gains: differences; those in a metric that the study does not list stay.
        patients_per_class: different test patients of each class. They never leave.
        terms: of the study.

    Raises:
        GateRefusedError: FH-GATE-020 the study does not let rows out, FH-GATE-021 it promises patients an epsilon,
            FH-GATE-022 it masks metrics, FH-GATE-023 too few patients, FH-GATE-024 nothing is left that may leave,
            FH-GATE-025 a value is outside of its range.
    """
    check_terms(terms)
    _check_counts(patients_per_class)
    digits = terms.metric_digits
    kept = tuple(
        MethodMetrics(
            method=result.method,
            metrics={
                name: _rounded(value, METRIC_RANGES[name], digits)
                for name, value in result.metrics.items()
                if _is_listed(name, terms)
            },
        )
        for result in results
    )
    told = tuple(_gain(gain, digits) for gain in gains if _is_listed(gain.metric, terms))
    if not told:
        raise GateRefusedError(
            "FH-GATE-024",
            "no difference is in a metric that the study releases.",
            why="Only the metrics of release.metrics may leave, and a row without a difference says nothing.",
            fix="Keep the page of `fedhealth benefit --home`; or agree on a study that lists the metric.",
        )
    return OutboundBenefit(kind="benefit", results=kept, gains=told, token=_GATE_TOKEN)


def check_terms(terms: BenefitTerms) -> None:
    """Whether the study lets any row out, whatever its numbers. Raises as `release_benefit`, FH-GATE-020 to 022."""
    if not terms.is_agreed:
        raise GateRefusedError(
            "FH-GATE-020",
            "this study does not let rows of `fedhealth benefit` out (release.benefit).",
            why="Hospitals agreed on what leaves when they joined. Nothing was written.",
            fix="Keep the page at the site; or agree on a study with release.benefit: true.",
        )
    if terms.has_patient_privacy:
        raise GateRefusedError(
            "FH-GATE-021",
            "this study promises its patients an epsilon, and no noise covers this row.",
            why="A difference on test patients is computed from each of them; released, it would be outside of the "
            "account. Nothing was written.",
            fix="Keep the page at the site. What the account covers is in the round records.",
        )
    if terms.is_masked:
        raise GateRefusedError(
            "FH-GATE-022",
            "in this study metrics leave under masks only, and a row would show this site's own.",
            why="The study hides what a single site's model is worth. Nothing was written.",
            fix="Keep the page at the site.",
        )


def _check_counts(patients_per_class: Sequence[int]) -> None:
    if min(patients_per_class, default=0) < FEWEST_PER_CLASS:
        raise GateRefusedError(
            "FH-GATE-023",
            f"a class of what is predicted has fewer than {FEWEST_PER_CLASS} test patients here.",
            why="Statistics of so few can tell single patients. Nothing was written.",
            fix="Keep the page at the site.",
        )


def _is_listed(name: str, terms: BenefitTerms) -> bool:
    return name in terms.metrics and name in METRIC_RANGES


def _gain(gain: MethodGain, digits: int) -> MethodGain:
    low, high = METRIC_RANGES[gain.metric]
    span = (low - high, high - low)
    return MethodGain(
        method=gain.method,
        over=gain.over,
        metric=gain.metric,
        value=_rounded(gain.value, span, digits),
        low=_rounded(gain.low, span, digits),
        high=_rounded(gain.high, span, digits),
        p_value=_rounded(gain.p_value, (0.0, 1.0), digits),
        standard_error=_rounded(gain.standard_error, (0.0, high - low), digits),
    )


def _rounded(value: float, limits: tuple[float, float], digits: int) -> float:
    """Rounded: a float64 could otherwise carry eight bytes of anything."""
    if not math.isfinite(value) or not limits[0] <= value <= limits[1]:
        raise GateRefusedError(
            "FH-GATE-025",
            f"a value of the row is outside {limits[0]:g} to {limits[1]:g}.",
            why="No metric has such a value, so it is not what it says. Nothing was written.",
            fix="Report this with the version of fedhealth; remove data before you do (SECURITY.md).",
        )
    return float(f"{value:.{digits}g}")
