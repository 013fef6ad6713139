"""Numbers of a record as people read them, and which charts a page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from fedhealth.contracts.metrics import METRIC_RANGES
from fedhealth.report.charts import NUM_COLOURS, Series, bars, curves, number
from fedhealth.report.record import RoundRecord
from fedhealth.report.schema import MetricName
from fedhealth.report.wording import METRIC

NONE = "\u2013"
"""What a table shows where there is no value: an en dash."""

_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_SHORT, _MINUTE = 10, 60  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One metric on a page: the drawing, and the values for the table that goes with it."""

    label: str
    hint: str
    svg: Markup
    mean_cell: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    def cell(self, site_id: str) -> str:
        """The site's value, a dash where it has none."""
        return number(self.values[site_id]) if site_id in self.values else NONE


def heading(record: RoundRecord) -> str:
    """Name of a round: ``Round 3``, ``Round 3, attempt 2``, ``Closing evaluation``."""
    name = "Closing evaluation" if record.kind == "evaluate" else f"Round {record.round_number}"
    return name if record.attempt == 1 else f"{name}, attempt {record.attempt}"


def mean_rows(record: RoundRecord) -> list[tuple[str, str, str]]:
    """Label, value and hint of each mean of the round: what a masked round shows instead of charts per hospital."""
    means = _means(record)
    return [(label, number(means[n]), hint) for n, (label, hint) in METRIC.items() if n in means]


def round_charts(record: RoundRecord, previous: RoundRecord | None) -> list[Chart]:
    """Bars per site for each metric that anybody released in the round."""
    charts = []
    colours = {site.site_id: index for index, site in enumerate(record.sites)}
    for name in METRIC:
        values = {
            site.site_id: found[name]
            for site in record.sites
            if name in (found := _site_metrics(site.train_metrics, site.evaluate_metrics))
        }
        if not values:
            continue
        mean = _means(record).get(name)
        before = _means(previous).get(name) if previous else None
        label, hint = METRIC[name]
        svg = bars(f"{label} per hospital", values, colours=colours, mean=mean, top=_top(name))
        charts.append(
            Chart(
                label=label, hint=hint, svg=svg, values=values, mean_cell=_mean_cell(mean, before)
            )
        )
    return charts


def run_charts(
    records: Sequence[RoundRecord],
) -> tuple[list[Chart], list[tuple[int, list[str]]], list[tuple[str, str]]]:
    """Learning curves of ordered rounds: charts, rows of means by round, and the legend (name, style)."""
    done = [record for record in records if record.status == "complete"]
    site_ids = list(dict.fromkeys(site.site_id for record in records for site in record.sites))
    charts, tables = [], []
    for name, (label, hint) in METRIC.items():
        points = _points_by_site(done, name)
        series = [
            Series(site_id, index, points.get(site_id, ()))
            for index, site_id in enumerate(site_ids)
        ]
        mean = [(_x(r, name), value) for r in done if (value := _means(r).get(name)) is not None]
        lines = [one for one in [*series, Series("Mean", None, mean)] if one.points]
        if lines:
            svg = curves(f"{label} over rounds", lines, top=_top(name))
            charts.append(Chart(label=label, hint=hint, svg=svg))
            tables.append(dict(mean))
    xs = sorted({x for table in tables for x in table})
    rows = [(x, [number(t[x]) if x in t else NONE for t in tables]) for x in xs]
    legend = [(site_id, f"s{index % NUM_COLOURS}") for index, site_id in enumerate(site_ids)]
    return charts, rows, [*legend, ("Mean", "all")]


def grouped(value: int) -> str:
    """An integer in groups of three, with thin spaces that do not break."""
    return f"{value:,}".replace(",", "\u202f")


def bytes_short(value: int) -> str:
    """Bytes in decimal units: ``93.4 kB``."""
    unit, size = next(
        ((unit, value / factor) for unit, factor in _UNITS if value >= factor), ("B", float(value))
    )
    return f"{size:.3g} {unit}" if size < _UNITS[-1][1] else f"{size:.0f} {unit}"


def bytes_long(value: int | None) -> str:
    """Exact bytes; says so when nothing measured them."""
    return "not measured" if value is None else f"{grouped(value)} B"


def seconds(value: float) -> str:
    """A duration: ``0.42 s``, ``12.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if value < _MINUTE:
        return f"{value:.2f} s" if value < _SHORT else f"{value:.1f} s"
    minutes, rest = divmod(round(value), _MINUTE)
    if minutes < _MINUTE:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, _MINUTE)
    return f"{hours} h {minutes:02d} min"


def moment(value: str) -> str:
    """An RFC 3339 UTC time for people, to the second."""
    return f"{value[:10]} {value[11:19]} UTC"


def _site_metrics(
    train: Mapping[MetricName, float], evaluate: Mapping[MetricName, float]
) -> dict[str, float]:
    return dict([*train.items(), *evaluate.items()])


def _means(record: RoundRecord) -> dict[str, float]:
    return _site_metrics(record.aggregate_train_metrics, record.aggregate_evaluate_metrics)


def _x(record: RoundRecord, name: str) -> int:
    """Evaluation is of the incoming model, so it belongs to the round before; training loss to this one."""
    return record.round_number if name == "train_loss" else record.round_number - 1


def _points_by_site(
    records: Sequence[RoundRecord], name: str
) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for site in record.sites:
            found = _site_metrics(site.train_metrics, site.evaluate_metrics)
            if name in found:
                points.setdefault(site.site_id, []).append((_x(record, name), found[name]))
    return points


def _mean_cell(mean: float | None, before: float | None) -> str:
    if mean is None:
        return NONE
    return number(mean) if before is None else f"{number(mean)} ({mean - before:+.3g})"


def _top(name: str) -> float | None:
    low, high = METRIC_RANGES[name]
    return high if (low, high) == (0.0, 1.0) else None
