"""Line charts as inline SVG that keep their text size at every width: lines stretch, labels are placed by share."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.report.axes import Axes, Interval, Point, beyond, kept_points, tick_labels, ticks, x_labels, x_scale
from flowrl.report.page import Html, joined, tag
from flowrl.report.wording import significant

POINT_STYLES = ("marked", "hollow", "square", "frame")  # dots, rings, squares, empty squares: arms without colour
LINE_STYLES = ("line", "dashed", "dotted")  # of curves with too many points for marks
_MOST_POINTS = 600  # of one line; more cannot be told apart on a screen
_LABEL_SHARE = 0.3  # of the width, that the label of a mark may take


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart; its style is one of POINT_STYLES, one of LINE_STYLES or "faint" (behind, without a name).

    Raises ValueError for another style, and where errors or band are given but not for every point.

    Example: ``Series(name="oracle", points=[(0, 0.58), (20, 0.61)], band=[(0.58, 0.58), (0.59, 0.64)], slot=3)``
    """

    name: str
    points: Sequence[Point]
    errors: Sequence[float] = ()  # half the length of the error bar of each point, or none
    band: Sequence[Interval] = ()  # low and high around each point, such as the lowest and highest seed, or none
    slot: int = 1  # colour, 1 to 6 of the palette; 0 is grey
    style: str = "line"

    def __post_init__(self) -> None:
        if self.style not in (*POINT_STYLES, *LINE_STYLES, "faint"):
            raise ValueError(f"{self.name}: no style {self.style!r} among {(*POINT_STYLES, *LINE_STYLES, 'faint')}")
        for what, given in (("errors", len(self.errors)), ("intervals", len(self.band))):
            if given not in (0, len(self.points)):
                raise ValueError(f"{self.name}: {given} {what} for {len(self.points)} points; give one each, or none")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An x that deserves a name: a dashed line in the colour of a slot, such as where over-optimisation begins.

    Example: ``Mark(x=20, slot=1, text="turns")``
    """

    x: float
    slot: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of one or more lines over the same axes."""

    title: str
    series: Sequence[Series]
    note: str = ""
    x_name: str = "step"
    from_zero: bool = False  # the axis of a size or rate starts at zero; that of a score fits its values
    zero_line: bool = False  # the axis of a difference holds zero, drawn as a strong rule
    above: str = ""  # what it means to stand above the zero line, and
    below: str = ""  # below it; both are read with zero_line alone
    marks: Sequence[Mark] = ()
    large: bool = False


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Each point replaced by the mean of itself and up to `window` - 1 before it."""
    values = [value for _, value in points]
    return [
        (x, math.fsum(values[max(0, i - window + 1) : i + 1]) / (i + 1 - max(0, i - window + 1)))
        for i, (x, _) in enumerate(points)
    ]


def drawn_series(chart: Chart) -> list[Series]:
    """The series that have points, each with no more of them than a drawing can show."""
    found = []
    for one in chart.series:
        if one.points:
            kept = kept_points(one.points, _MOST_POINTS)
            errors = [one.errors[i] for i in kept] if one.errors else []
            band = [one.band[i] for i in kept] if one.band else []
            found.append(dataclasses.replace(one, points=[one.points[i] for i in kept], errors=errors, band=band))
    return found


def axes_of(chart: Chart) -> Axes:
    """Axes that enclose all points, error bars, bands and marks; raises ValueError where no series has a point."""
    shown = [one for one in chart.series if one.points]
    if not shown:
        raise ValueError(f"the chart {chart.title!r} has no points")
    values = [end for one in shown for interval in _extents(one) for end in interval]
    low, high = min(values), max(values)
    if chart.from_zero or chart.zero_line:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-300):  # a constant
        spread = abs(high) * 0.1 or 1.0
        low, high = low - (0.0 if chart.from_zero else spread), high + spread
    y_ticks = ticks(low, high)
    if chart.zero_line:
        y_ticks = beyond(y_ticks, above=bool(chart.above), below=bool(chart.below))
    x_low, x_high, x_ticks = x_scale([x for one in shown for x, _ in one.points] + [mark.x for mark in chart.marks])
    return Axes(
        x_low=x_low, x_high=x_high, y_low=y_ticks[0], y_high=y_ticks[-1], x_ticks=x_ticks, y_ticks=tuple(y_ticks)
    )


def _extents(series: Series) -> list[Interval]:
    errors = series.errors or [0.0] * len(series.points)
    bars = [(y - error, y + error) for (_, y), error in zip(series.points, errors, strict=True)]
    return [*bars, *series.band]


def mark_rows(chart: Chart, axes: Axes) -> list[int]:
    """In which row above the plot the label of each mark stands, so that neighbours do not cover one another."""
    rows: list[int] = []
    for index, mark in enumerate(chart.marks):
        near = {
            row
            for row, other in zip(rows, chart.marks[:index], strict=True)
            if abs(mark.x - other.x) < _LABEL_SHARE * (axes.x_high - axes.x_low)
        }
        rows.append(next(row for row in range(len(rows) + 1) if row not in near))
    return rows


def spoken(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    lines = []
    for one in chart.series:
        if one.points and one.style != "faint":
            (first, before), (last, after) = one.points[0], one.points[-1]
            begin, end = f"{significant(before)} at {first:,.10g}", f"{significant(after)} at {last:,.10g}"
            lines.append(f"{one.name} from {begin} to {end}")
    lines += [f"{mark.text} at {mark.x:,.10g}" for mark in chart.marks]
    return f"{chart.title}: {'; '.join(lines)}"


def render(chart: Chart) -> Html:
    """The chart as a figure; nothing at all where no series has a point."""
    series = drawn_series(chart)
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
    if all(end == 0 for one in series for interval in _extents(one) for end in interval):
        last = max(x for one in series for x, _ in one.points)
        flat = tag("p", tag("strong", "0"), f" at every {chart.x_name} up to {last:,.6g}", classes="flat")
        return tag("figure", caption, flat, classes=classes, attributes={"data-chart": json.dumps(data)})
    axes = axes_of(chart)
    data["domain"] = [axes.x_low, axes.x_high]
    rows = mark_rows(chart, axes)
    plot = [_y_ticks(axes), _svg(chart, series, axes), _x_ticks(chart, axes), *_sides(chart)]
    plot += [_mark_label(mark, row, axes) for mark, row in zip(chart.marks, rows, strict=True)]
    space = {"style": f"--rows:{max(rows) + 1}"} if rows else {}
    return tag(
        "figure",
        caption,
        tag("div", *plot, classes="plot", attributes=space),
        classes=classes,
        attributes={"data-chart": json.dumps(data)},
    )


def _data(series: Series) -> dict[str, object]:
    points = [[x, y] for x, y in series.points]
    if series.errors:
        points = [[x, y, error] for (x, y), error in zip(series.points, series.errors, strict=True)]
    data: dict[str, object] = {"name": series.name, "slot": series.slot, "style": series.style, "points": points}
    return data | ({"band": [list(interval) for interval in series.band]} if series.band else {})


def _svg(chart: Chart, series: Sequence[Series], axes: Axes) -> Html:
    shapes = []
    for value in axes.y_ticks:
        strength = "strong" if chart.zero_line else "zero"
        edge = value == axes.y_low and not chart.zero_line
        shapes.append(_path(axes.level(value), strength if value == 0 else "zero" if edge else "rule"))
    shapes += [_path(axes.area(one.points, one.band), f"band {one.style} c{one.slot}") for one in series if one.band]
    for index, mark in enumerate(chart.marks):
        # Every other mark begins its dashes where the one before has its gaps: both show where they share an x.
        shapes.append(_path(axes.upright(mark.x), f"mark c{mark.slot}" + (" odd" if index % 2 else "")))
    shapes += [_draw(one, axes) for one in series]
    box = {"viewBox": f"0 0 {axes.width:g} {axes.height:g}", "preserveAspectRatio": "none"}
    return tag("svg", *shapes, attributes=box | {"role": "img", "aria-label": spoken(chart)})


def _path(commands: str, classes: str) -> Html:
    return tag("path", classes=classes, attributes={"d": commands, "vector-effect": "non-scaling-stroke"})


def _draw(series: Series, axes: Axes) -> Html:
    shapes = [_path(axes.line(series.points), f"{series.style} c{series.slot}")]
    if series.errors:
        shapes.insert(0, _path(axes.bars(series.points, series.errors), f"error c{series.slot}"))
    # A line of no length is all end: a dot that stays round, or square, however the drawing is stretched.
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in axes.places(series.points))
    corners = " square" if series.style in ("square", "frame") else ""
    if series.style in POINT_STYLES or len(series.points) == 1:
        shapes.append(_path(dots, f"dot{corners} c{series.slot}"))
    if series.style in ("hollow", "frame"):
        shapes.append(_path(dots, f"hole{corners}"))
    return joined(shapes)


def _y_ticks(axes: Axes) -> Html:
    labels = []
    for value, text in zip(axes.y_ticks, tick_labels(axes.y_ticks), strict=True):
        _, y = axes.place(axes.x_low, value)
        labels.append(tag("span", text, attributes={"style": f"top:{y / axes.height:.2%}"}))
    return tag("div", *labels, classes="y")


def _x_ticks(chart: Chart, axes: Axes) -> Html:
    labels = []
    for index, (value, text) in enumerate(zip(axes.x_ticks, x_labels(axes.x_ticks), strict=True)):
        style = {"style": f"left:{axes.place(value, axes.y_low)[0] / axes.width:.2%}"}
        labels.append(tag("span", f"{chart.x_name} {text}" if index == 0 else text, attributes=style))
    return tag("div", *labels, classes="x")


def _sides(chart: Chart) -> list[Html]:
    named = [("above", chart.above), ("below", chart.below)] if chart.zero_line else []
    return [tag("span", text, classes=f"side {side}") for side, text in named if text]


def _mark_label(mark: Mark, row: int, axes: Axes) -> Html:
    share = axes.place(mark.x, axes.y_low)[0] / axes.width
    classes = f"mark-label c{mark.slot}" + (" leftwards" if share > 0.5 else "")
    return tag("span", mark.text, classes=classes, attributes={"style": f"left:{share:.2%};--row:{row}"})


def sparkline(points: Sequence[Point], slot: int = 1) -> Html:
    """A small line without axes for a table cell."""
    if len(points) < 2:
        return Html("")
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = 0.12 * ((high - low) or 1.0)
    axes = Axes(x_low=points[0][0], x_high=points[-1][0], y_low=low - room, y_high=high + room)
    kept = [points[i] for i in kept_points(points, _MOST_POINTS)]
    drawn = _draw(Series(name="", points=kept, slot=slot), axes)
    attributes = {"viewBox": "0 0 1000 1000", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return tag("svg", drawn, classes="spark", attributes=attributes)
