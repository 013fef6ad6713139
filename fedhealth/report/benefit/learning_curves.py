"""Learning curves: of runs from their round records, where hospitals released metrics; of training alone."""

from collections.abc import Sequence

from fedhealth.report.benefit.record import LOCAL, CurveFact, CurvePoint
from fedhealth.report.record import RoundRecord


def curves_alone(points: Sequence[tuple[int, float]]) -> list[CurveFact]:
    """The cross-validated loss of training alone over epochs; none without a point."""
    found = tuple(CurvePoint(at=at, value=value) for at, value in points)
    return (
        [CurveFact(method=LOCAL, metric="cross_validated_loss", unit="epoch", points=found)]
        if found
        else []
    )


def curves_of_run(
    records: Sequence[RoundRecord], *, metric: str, method: str
) -> dict[str, list[CurveFact]]:
    """One curve a site, of the rounds in which it released the metric; a site without any is left out.

    An evaluation is of the incoming model, so it belongs to the round before; round 0 is the initial model.

    Args:
        records: rounds of one run, in order.
        metric: name of an evaluation metric.
        method: key of the run in the record.
    """
    points: dict[str, list[CurvePoint]] = {}
    for record in records:
        if record.status != "complete":
            continue
        for site in record.sites:
            value = {str(n): v for n, v in site.evaluate_metrics.items()}.get(metric)
            if value is not None:
                points.setdefault(site.site_id, []).append(
                    CurvePoint(at=record.round_number - 1, value=value)
                )
    return {
        site_id: [CurveFact(method=method, metric=metric, unit="round", points=tuple(found))]
        for site_id, found in points.items()
    }


def mean_curve(
    records: Sequence[RoundRecord], *, metric: str, method: str
) -> tuple[CurveFact, ...]:
    """The mean over hospitals in each round, which masks let through; none where no round has it.

    Args:
        records: rounds of one run, in order.
        metric: name of an evaluation metric.
        method: key of the run in the record.
    """
    points = tuple(
        CurvePoint(at=record.round_number - 1, value=means[metric])
        for record in records
        if record.status == "complete"
        and metric in (means := {str(n): v for n, v in record.aggregate_evaluate_metrics.items()})
    )
    return (CurveFact(method=method, metric=metric, unit="round", points=points),) if points else ()


def told_metric(primary: str, listed: Sequence[str]) -> str:
    """Which metric curves are drawn of: the primary one where the study releases it, else the log loss."""
    return primary if primary in listed else "log_loss"
