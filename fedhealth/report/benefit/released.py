"""Rows that hospitals released, put together: Holm over the sites, verdicts, the page. Called by the server's side."""

from collections.abc import Mapping, Sequence

from fedhealth.errors import EvidenceError
from fedhealth.evidence.benefit_row import BenefitRow
from fedhealth.report.benefit.analysis import with_verdicts
from fedhealth.report.benefit.record import (
    LOCAL,
    BenefitRecord,
    CurveFact,
    GainFact,
    MethodFact,
    ResultFact,
    SiteBenefit,
)


def combine_rows(
    rows: Sequence[BenefitRow],
    *,
    is_verified: bool,
    is_simulation: bool = False,
    pooling_allowed: bool = False,
    curves: Mapping[str, Sequence[CurveFact]] | None = None,
    means: Sequence[CurveFact] = (),
) -> BenefitRecord:
    """The record of released rows, sites in order of their ids.

    Args:
        rows: one of each site, at least one.
        is_verified: their signatures were checked against a roster.
        is_simulation: that roster is a simulation's; rows of one say it themselves, too.
        pooling_allowed: of the study's policy.
        curves: learning curves by site, from the round records.
        means: their means over the sites.

    Raises:
        EvidenceError: FH-BENEFIT-010 they are of different studies, or judged otherwise; FH-BENEFIT-011 a site is
            there twice.
    """
    first = rows[0]
    for row in rows:
        if _terms(row) != _terms(first):
            raise EvidenceError(
                "FH-BENEFIT-010",
                f"the rows of {first.site_id} and {row.site_id} do not belong together.",
                why="They are of different studies, or were judged by another metric or margin.",
                fix="Give rows of one study, made with one version of fedhealth.",
            )
    ids = [row.site_id for row in rows]
    if len(set(ids)) != len(ids):
        raise EvidenceError(
            "FH-BENEFIT-011",
            "a site is there twice.",
            why="It would count twice, and which of its rows holds is not clear.",
            fix="Give one row of each site.",
        )
    ordered = sorted(rows, key=lambda row: row.site_id)
    sites = [_site(row, (curves or {}).get(row.site_id, ())) for row in ordered]
    return BenefitRecord(
        study_id=first.study_id,
        study_sha256=first.study_sha256,
        origin="released" if is_verified else "released_unverified",
        is_simulation=is_simulation or first.is_simulation,
        primary=first.primary,
        larger_is_better=first.larger_is_better,
        margin=first.margin,
        fewest=first.fewest,
        num_seeds=1,
        has_patient_privacy=False,
        pooling_allowed=pooling_allowed,
        methods=_methods(ordered),
        sites=with_verdicts(sites, margin=first.margin, primary=first.primary),
        curves=tuple(means),
    )


def _terms(row: BenefitRow) -> tuple[object, ...]:
    return (
        row.study_id,
        row.study_sha256,
        row.primary,
        row.larger_is_better,
        row.margin,
        row.fewest,
        row.is_simulation,
    )


def _methods(rows: Sequence[BenefitRow]) -> tuple[MethodFact, ...]:
    personal = {name for row in rows for name in row.personal_runs}
    named = [key for row in rows for result in row.results for key in (result.method,)]
    named += [key for row in rows for gain in row.gains for key in (gain.method, gain.over)]
    runs = [key.removeprefix("run:") for key in dict.fromkeys(named) if key != LOCAL]
    return (
        MethodFact(key=LOCAL, kind="local"),
        *(MethodFact.of_run(name, is_personal=name in personal) for name in runs),
    )


def _site(row: BenefitRow, curves: Sequence[CurveFact]) -> SiteBenefit:
    return SiteBenefit(
        site_id=row.site_id,
        results=tuple(ResultFact(method=r.method, metrics=dict(r.metrics)) for r in row.results),
        gains=tuple(GainFact(**gain.model_dump()) for gain in row.gains),
        curves=tuple(curves),
    )
