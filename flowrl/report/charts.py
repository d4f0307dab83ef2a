"""Line charts as inline SVG that keep their text size at every width: lines stretch, labels are placed by share."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.report.page import Html, joined, tag
from flowrl.report.wording import significant

Point = tuple[float, float]
_MOST_POINTS = 600  # of one line; more cannot be told apart on a screen
_GRID = 1000.0  # both sides of the SVG's own coordinates


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    Example: ``Series(name="oracle", points=[(0, 0.58), (20, 0.61)], errors=[0.01, 0.01], slot=3)``
    """

    name: str
    points: Sequence[Point]
    errors: Sequence[float] = ()  # half the length of the error bar of each point, or none
    slot: int = 1  # colour, 1 to 6 of the palette; 0 is grey
    style: str = "line"  # "line", "marked" (with points), "hollow" (with rings) or "faint"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of one or more lines over the same axes."""

    title: str
    series: Sequence[Series]
    note: str = ""
    x_name: str = "step"
    from_zero: bool = False  # the axis of a size or rate starts at zero; that of a score fits its values
    large: bool = False


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, about `count` steps of 1, 2 or 5 times a power of ten, that enclose [low, high]."""
    if not high > low:
        raise ValueError(f"ticks need low < high, got {low} and {high}")
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    ranges = []
    for factor in (1, 2, 5, 10):
        step = power * factor
        ranges.append((math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9), step))
    first, last, step = min(ranges, key=lambda one: abs(one[1] - one[0] - count))
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The labels of evenly spaced ticks, all with the same number of decimals."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) or 1.0
    largest = max(abs(value) for value in values)
    if step < 1e-4 or largest >= 1e7:
        return ["0" if value == 0 else significant(value, 2) for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{decimals}f}".replace("-", "\u2212") for value in values]


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Each point replaced by the mean of itself and up to `window` - 1 before it."""
    values = [value for _, value in points]
    return [
        (x, math.fsum(values[max(0, i - window + 1) : i + 1]) / (i + 1 - max(0, i - window + 1)))
        for i, (x, _) in enumerate(points)
    ]


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about `most` points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        low = min(stretch, key=lambda point: point[1])
        high = max(stretch, key=lambda point: point[1])
        kept += sorted({low, high})
    return kept


@dataclass(frozen=True)
class _Axes:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        return (
            _GRID * (x - self.x_low) / (self.x_high - self.x_low),
            _GRID * (1 - (y - self.y_low) / (self.y_high - self.y_low)),
        )


def render(chart: Chart) -> Html:
    """The chart as a figure; nothing at all where no series has a point."""
    series = [one for one in chart.series if one.points]
    if not series:
        return Html("")
    heading = [tag("h3", chart.title), tag("p", chart.note) if chart.note else ""]
    names = list(dict.fromkeys((one.name, one.slot, one.style) for one in series if one.style != "faint"))
    if len(names) > 1:
        keys = [tag("li", tag("i", classes=f"c{slot} {style}"), name) for name, slot, style in names]
        heading.append(tag("ul", *keys, classes="legend"))
    caption = tag("figcaption", *heading)
    classes = "chart large" if chart.large else "chart"
    data: dict[str, object] = {"x": chart.x_name, "series": [_data(one) for one in series]}
    if all(value == 0 for one in series for _, value in one.points):
        last = max(x for one in series for x, _ in one.points)
        flat = tag("p", tag("strong", "0"), f" at every {chart.x_name} up to {last:,.0f}", classes="flat")
        return tag("figure", caption, flat, classes=classes, attributes={"data-chart": json.dumps(data)})
    axes, y_values = _axes(chart, series)
    data["domain"] = [axes.x_low, axes.x_high]
    plot = [_y_ticks(axes, y_values), _svg(chart, series, axes, y_values), _x_ticks(chart, axes)]
    attributes = {"data-chart": json.dumps(data)}
    return tag("figure", caption, tag("div", *plot, classes="plot"), classes=classes, attributes=attributes)


def _data(series: Series) -> dict[str, object]:
    points = [[x, y] for x, y in thinned(series.points)]
    if series.errors:
        points = [[x, y, error] for (x, y), error in zip(series.points, series.errors, strict=True)]
    return {"name": series.name, "slot": series.slot, "style": series.style, "points": points}


def _axes(chart: Chart, series: Sequence[Series]) -> tuple[_Axes, list[float]]:
    xs = [x for one in series for x, _ in one.points]
    lows, highs = [], []
    for one in series:
        errors = one.errors or [0.0] * len(one.points)
        lows += [y - error for (_, y), error in zip(one.points, errors, strict=True)]
        highs += [y + error for (_, y), error in zip(one.points, errors, strict=True)]
    low, high = min(lows), max(highs)
    if chart.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9 * max(abs(high), 1e-300):  # a constant
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    values = ticks(low, high)
    return _Axes(min(0.0, *xs), max(1.0, *xs), values[0], values[-1]), values


def _svg(chart: Chart, series: Sequence[Series], axes: _Axes, y_values: Sequence[float]) -> Html:
    shapes = []
    for value in y_values:
        _, y = axes.place(axes.x_low, value)
        shapes.append(_path(f"M0 {y:.1f}H1000", "zero" if value == 0 or value == y_values[0] else "rule"))
    for one in series:
        shapes.append(_draw(one, axes))
    label = f"{chart.title}: {'; '.join(_spoken(one) for one in series if one.style != 'faint')}"
    attributes = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none", "role": "img", "aria-label": label}
    return tag("svg", *shapes, attributes=attributes)


def _spoken(series: Series) -> str:
    (first, before), (last, after) = series.points[0], series.points[-1]
    return f"{series.name} from {significant(before)} at {first:g} to {significant(after)} at {last:g}"


def _path(commands: str, classes: str) -> Html:
    return tag("path", classes=classes, attributes={"d": commands, "vector-effect": "non-scaling-stroke"})


def _draw(series: Series, axes: _Axes) -> Html:
    places = [axes.place(x, y) for x, y in thinned(series.points)]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    shapes = [_path(line, f"{series.style} c{series.slot}")]
    if series.errors:
        bars = []
        for (x, y), error in zip(series.points, series.errors, strict=True):
            (left, low), (_, high) = axes.place(x, y - error), axes.place(x, y + error)
            bars.append(f"M{left:.1f} {low:.1f}V{high:.1f}")
        shapes.insert(0, _path("".join(bars), f"error c{series.slot}"))
    # A line of no length with round ends is a dot that stays round however the drawing is stretched.
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
    if series.style in ("marked", "hollow") or len(places) == 1:
        shapes.append(_path(dots, f"dot c{series.slot}"))
    if series.style == "hollow":
        shapes.append(_path(dots, "hole"))
    return joined(shapes)


def _y_ticks(axes: _Axes, values: Sequence[float]) -> Html:
    labels = []
    for value, text in zip(values, tick_labels(values), strict=True):
        _, y = axes.place(axes.x_low, value)
        labels.append(tag("span", text, attributes={"style": f"top:{y / _GRID:.2%}"}))
    return tag("div", *labels, classes="y")


def _x_ticks(chart: Chart, axes: _Axes) -> Html:
    values = [
        value
        for value in ticks(axes.x_low, axes.x_high, 5)
        if axes.x_low <= value <= axes.x_high and value == round(value) and value >= 0
    ]
    labels = []
    for index, value in enumerate(values):
        x, _ = axes.place(value, axes.y_low)
        text = f"{chart.x_name} {value:,.0f}" if index == 0 else f"{value:,.0f}"
        labels.append(tag("span", text, attributes={"style": f"left:{x / _GRID:.2%}"}))
    return tag("div", *labels, classes="x")


def sparkline(points: Sequence[Point], slot: int = 1) -> Html:
    """A small line without axes for a table cell."""
    if len(points) < 2:
        return Html("")
    low, high = min(y for _, y in points), max(y for _, y in points)
    spread = high - low or 1.0
    axes = _Axes(points[0][0], points[-1][0], low - 0.12 * spread, high + 0.12 * spread)
    drawn = _draw(Series(name="", points=points, slot=slot), axes)
    attributes = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return tag("svg", drawn, classes="spark", attributes=attributes)
