"""Charts as inline SVG: bars of one round, curves of a run. Pure functions; colours come from the page's style."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

NUM_COLOURS = 8  # classes s0 to s7 in templates/style.css; each has its own marker too

_WIDTH = 460
_ROW = 26
_LABEL = 128
_LABEL_CHARS = 18  # what fits into _LABEL at the style's font size
_VALUE = 52


class Series(NamedTuple):
    """One curve: name, colour index (None: the mean) and points (x, y) in x order."""

    name: str
    colour: int | None
    points: Sequence[tuple[int, float]]


def bars(
    title: str,
    values: Mapping[str, float],
    *,
    colours: Mapping[str, int],
    mean: float | None,
    top: float | None,
) -> Markup:
    """Horizontal bars, one a site, with the mean as a line.

    Args:
        title: accessible name.
        values: value of each site, not negative.
        colours: colour index of each site, the same in every chart.
        mean: the aggregate, None without one.
        top: end of the scale; None fits it to the values.
    """
    end = top or nice_top([*values.values(), mean or 0.0])
    plot = _WIDTH - _LABEL - _VALUE
    height = _ROW * len(values) + 6
    parts = [open_svg(title, _bars_text(values, mean), _WIDTH, height)]
    for row, (site, value) in enumerate(values.items()):
        y = row * _ROW + 4
        length = max(plot * min(value / end, 1.0), 1.0)
        parts.append(
            Markup(
                '<text class="lab" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="track" x="{}" y="{}" width="{}" height="14" rx="3"/>'
                '<rect class="bar s{}" x="{}" y="{}" width="{}" height="14" rx="3"/>'
                '<text class="val" x="{}" y="{}">{}</text>'
            ).format(
                *(_LABEL - 8, y + 12, shorten(site)),
                *(_LABEL, y, plot),
                *(colours[site] % NUM_COLOURS, _LABEL, y, fixed(length)),
                *(_WIDTH - _VALUE + 8, y + 12, number(value)),
            )
        )
    if mean is not None:
        x = fixed(_LABEL + plot * min(mean / end, 1.0))
        parts.append(
            Markup('<line class="mean" x1="{}" y1="0" x2="{}" y2="{}"/>').format(x, x, height)
        )
    return Markup("").join([*parts, Markup("</svg>")])


def curves(
    title: str,
    series: Sequence[Series],
    *,
    top: float | None,
    level: float | None = None,
    include: Sequence[float] = (),
    unit: str = "rounds",
) -> Markup:
    """Line chart over rounds; the mean is drawn last and thick. The caller gives the legend and the table.

    Args:
        title: accessible name.
        series: the curves.
        top: end of the scale, None fits it to the values.
        level: where a dashed line across the chart is, such as a target.
        include: values that the scale must hold, beside the points and the level.
        unit: what the horizontal axis counts.
    """
    points = [point for one in series for point in one.points]
    held = [*include, *([level] if level is not None else [])]
    frame = _Frame.around([*points, *((points[0][0], value) for value in held)], top)
    text = f"{len(series)} lines over {unit} {frame.first} to {frame.last}; the table below has the values."
    parts = [
        open_svg(title, text, 460, 250),
        *_grid(frame),
        Markup('<text class="tick" x="246" y="244" text-anchor="middle">{}</text>').format(unit),
    ]
    if level is not None:
        y = fixed(frame.y(level))
        parts.append(Markup('<line class="mean" x1="48" y1="{}" x2="444" y2="{}"/>').format(y, y))
    parts += [_curve(one, frame) for one in sorted(series, key=lambda s: s.colour is None)]
    return Markup("").join([*parts, Markup("</svg>")])


def number(value: float) -> str:
    """Four significant digits, without an exponent for everyday values."""
    return f"{value:.4g}"


class _Frame(NamedTuple):
    first: int
    last: int
    low: float
    high: float
    step: float

    @classmethod
    def around(cls, points: Sequence[tuple[int, float]], top: float | None) -> "_Frame":
        """The least frame on round steps that holds all points, within 0 and `top`."""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        step = nice_top([(max(ys) - min(ys)) / 3, max(ys) / 100])
        low = max(math.floor(min(ys) / step - 0.1) * step, 0.0)
        high = math.ceil(max(ys) / step + 0.1) * step
        return cls(min(xs), max(xs), low, high if top is None else min(high, top), step)

    def x(self, value: float) -> float:
        span = max(self.last - self.first, 1)
        return 48 + 396 * (value - self.first) / span

    def y(self, value: float) -> float:
        return 204 - 192 * (value - self.low) / (self.high - self.low)


def _grid(frame: _Frame) -> list[Markup]:
    parts = []
    for tick in range(round((frame.high - frame.low) / frame.step) + 1):
        value = frame.low + tick * frame.step
        y = fixed(frame.y(value))
        parts.append(
            Markup(
                '<line class="grid" x1="48" y1="{}" x2="444" y2="{}"/>'
                '<text class="tick" x="42" y="{}" text-anchor="end">{}</text>'
            ).format(y, y, fixed(frame.y(value) + 4), number(value))
        )
    stride = max(math.ceil((frame.last - frame.first) / 10), 1)
    parts += [
        Markup('<text class="tick" x="{}" y="222" text-anchor="middle">{}</text>').format(
            fixed(frame.x(x)), x
        )
        for x in range(frame.first, frame.last + 1, stride)
    ]
    return parts


def _curve(one: Series, frame: _Frame) -> Markup:
    style = "all" if one.colour is None else f"s{one.colour % NUM_COLOURS}"
    where = [(frame.x(x), frame.y(y)) for x, y in one.points]
    path = " ".join(f"{fixed(x)},{fixed(y)}" for x, y in where)
    radius = 3.5 if one.colour is None else 2.5
    marks = "".join(
        f'<circle class="dot {style}" cx="{fixed(x)}" cy="{fixed(y)}" r="{radius}"/>'
        for x, y in where
    )
    line = Markup('<polyline class="curve {}" points="{}"/>').format(style, path)
    dots = Markup(marks)  # noqa: S704 - a class of ours and numbers
    return Markup("<g><title>{}</title>{}{}</g>").format(one.name, line, dots)


def open_svg(title: str, description: str, width: int, height: int) -> Markup:
    """The opening tag of a drawing with its accessible name and description."""
    return Markup(
        '<svg role="img" viewBox="0 0 {} {}" xmlns="http://www.w3.org/2000/svg">'
        "<title>{}</title><desc>{}</desc>"
    ).format(width, height, title, description)


def _bars_text(values: Mapping[str, float], mean: float | None) -> str:
    said = [f"{site} {number(value)}" for site, value in values.items()]
    return "; ".join([*said, *([f"mean {number(mean)}"] if mean is not None else [])])


def nice_top(values: Sequence[float]) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that holds all values."""
    largest = max([*values, 0.0])
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= largest)


def shorten(text: str, limit: int = _LABEL_CHARS) -> str:
    """A label, cut to what fits beside a drawing."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def fixed(value: float) -> str:
    """A coordinate with one decimal."""
    return f"{value:.1f}"
