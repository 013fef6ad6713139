"""Forest plot and calibration plot as inline SVG. Pure functions; colours come from the page's style."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from fedhealth.report.charts import NUM_COLOURS, fixed, nice_top, open_svg, shorten

_WIDTH, _LABEL, _VALUE = 820, 230, 170
_LABEL_CHARS = 34  # what fits into _LABEL
_ROW, _GROUP, _TOP, _AXIS = 20, 12, 24, 48
_SIDE, _LEFT, _BOTTOM = 240, 58, 34
Scale = Callable[[float], float]


class ForestRow(NamedTuple):
    """One interval: colour index, value, limits, and the text beside it. Values are None where there is none."""

    name: str
    colour: int
    value: float | None
    low: float
    high: float
    text: str


class ForestGroup(NamedTuple):
    """The rows of one site."""

    site_id: str
    rows: Sequence[ForestRow]


class CalibrationDot(NamedTuple):
    """A bin: mean probability, share of cases, and its interval."""

    predicted: float
    observed: float
    low: float
    high: float


class CalibrationLine(NamedTuple):
    """One model's bins."""

    name: str
    colour: int
    dots: Sequence[CalibrationDot]


def forest(
    title: str, groups: Sequence[ForestGroup], *, margin: float, unit: str, scale: float = 1.0
) -> Markup:
    """Intervals of differences, each named, grouped by site; a line at zero and a dashed one at minus the margin.

    Ticks are labelled in units of 1 / `scale`: 100 makes points of a share. `unit` is written below them.
    """
    rows = [row for group in groups for row in group.rows]
    ends = [abs(v) for row in rows if row.value is not None for v in (row.low, row.high)]
    end = nice_top([*ends, margin * 1.5])
    height = _TOP + sum(_ROW * (1 + len(group.rows)) + _GROUP for group in groups) + _AXIS
    plot = _WIDTH - _LABEL - _VALUE

    def x(value: float) -> float:
        return _LABEL + plot * (min(max(value, -end), end) + end) / (2 * end)

    text = "; ".join(f"{g.site_id}, {row.name}: {row.text}" for g in groups for row in g.rows)
    bottom = height - _AXIS
    parts = [open_svg(title, text, _WIDTH, height)]
    parts.append(_words(x(0) - 8, 12, "\u2190 worse than alone", "end"))
    parts.append(_words(x(0) + 8, 12, "better than alone \u2192", "start"))
    for tick in (-end, -end / 2, 0.0, end / 2, end):
        parts.append(_vertical("grid", x(tick), _TOP - 6, bottom))
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                fixed(x(tick)), bottom + 16, f"{tick * scale:+.3g}" if tick else "0"
            )
        )
    parts.append(_words(x(0), bottom + 36, unit, "middle"))
    parts.append(_vertical("zero", x(0), _TOP - 6, bottom))
    parts.append(_vertical("mean", x(-margin), _TOP - 6, bottom))
    y = float(_TOP)
    for group in groups:
        parts.append(
            Markup('<text class="lab group" x="0" y="{}">{}</text>').format(
                fixed(y + _ROW / 2 + 4), group.site_id
            )
        )
        y += _ROW
        for row in group.rows:
            parts.append(
                Markup('<text class="lab" x="{}" y="{}" text-anchor="end">{}</text>').format(
                    _LABEL - 10, fixed(y + _ROW / 2 + 4), shorten(row.name, _LABEL_CHARS)
                )
            )
            parts.append(_interval(row, x, y + _ROW / 2))
            y += _ROW
        y += _GROUP
    return Markup("").join([*parts, Markup("</svg>")])


def calibration(title: str, lines: Sequence[CalibrationLine]) -> Markup:
    """Share of cases against mean probability, with the diagonal of a model that is right."""
    text = "; ".join(
        f"{line.name}: " + ", ".join(f"{d.predicted:.2f} to {d.observed:.2f}" for d in line.dots)
        for line in lines
    )
    width, height = _LEFT + _SIDE + 12, _SIDE + _BOTTOM + 8

    def x(share: float) -> float:
        return _LEFT + _SIDE * share

    def y(share: float) -> float:
        return 8 + _SIDE * (1 - share)

    parts = [open_svg(title, text, width, height)]
    parts += [_calibration_tick(share, x(share), y(share)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts.append(
        Markup('<line class="mean" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            fixed(x(0)), fixed(y(0)), fixed(x(1)), fixed(y(1))
        )
    )
    parts.append(_words(x(0.5), y(0) + 31, "predicted risk", "middle"))
    parts.append(
        Markup(
            '<text class="tick" transform="translate(12 {}) rotate(-90)" text-anchor="middle">share of cases</text>'
        ).format(fixed(y(0.5)))
    )
    parts += [_dots(line, x, y) for line in lines]
    return Markup("").join([*parts, Markup("</svg>")])


def _calibration_tick(share: float, x: float, y: float) -> Markup:
    return Markup(
        '<line class="grid" x1="{0}" y1="{1}" x2="{2}" y2="{1}"/>'
        '<text class="tick" x="{3}" y="{4}" text-anchor="end">{5}</text>'
        '<text class="tick" x="{6}" y="{7}" text-anchor="middle">{5}</text>'
    ).format(
        *(_LEFT, fixed(y), _LEFT + _SIDE, _LEFT - 6, fixed(y + 4)),
        *(f"{share:g}", fixed(x), 8 + _SIDE + 16),
    )


def _dots(line: CalibrationLine, x: Scale, y: Scale) -> Markup:
    style = f"s{line.colour % NUM_COLOURS}"
    path = " ".join(f"{fixed(x(d.predicted))},{fixed(y(d.observed))}" for d in line.dots)
    marks = [
        Markup(
            '<line class="whisker {0}" x1="{1}" y1="{2}" x2="{1}" y2="{3}"/>'
            '<circle class="dot {0}" cx="{1}" cy="{4}" r="3"/>'
        ).format(
            style, fixed(x(d.predicted)), fixed(y(d.low)), fixed(y(d.high)), fixed(y(d.observed))
        )
        for d in line.dots
    ]
    curve = Markup('<polyline class="curve {}" points="{}"/>').format(style, path)
    return Markup("<g><title>{}</title>{}{}</g>").format(line.name, curve, Markup("").join(marks))


def _interval(row: ForestRow, x: Scale, y: float) -> Markup:
    style = f"s{row.colour % NUM_COLOURS}"
    words = Markup('<text class="val" x="{}" y="{}">{}</text>').format(
        _WIDTH - _VALUE + 12, fixed(y + 4), row.text
    )
    if row.value is None:
        return words
    drawn = Markup(
        '<g><title>{name}</title><line class="whisker wide {style}" x1="{low}" y1="{y}" x2="{high}" y2="{y}"/>'
        '<rect class="dot {style}" x="{left}" y="{top}" width="8" height="8"/></g>'
    ).format(
        name=row.name,
        style=style,
        low=fixed(x(row.low)),
        high=fixed(x(row.high)),
        y=fixed(y),
        left=fixed(x(row.value) - 4),
        top=fixed(y - 4),
    )
    return drawn + words


def _vertical(style: str, x: float, top: float, bottom: float) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        style, fixed(x), fixed(top), fixed(x), fixed(bottom)
    )


def _words(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        fixed(x), fixed(y), anchor, text
    )
