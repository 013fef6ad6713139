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
            value = dict(site.evaluate_metrics.items()).get(metric)  # type: ignore[call-overload]  # any name may be asked for
            if value is not None:
                points.setdefault(site.site_id, []).append(
                    CurvePoint(at=record.round_number - 1, value=value)
                )
    return {
        site_id: [CurveFact(method=method, metric=metric, unit="round", points=tuple(found))]
        for site_id, found in points.items()
    }
