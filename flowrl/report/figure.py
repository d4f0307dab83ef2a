"""Charts as stand-alone SVG 1.1 files in the light palette, to paste into a paper or slides."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from flowrl.report.axes import Axes, tick_labels, x_labels
from flowrl.report.charts import POINT_STYLES, Chart, Mark, Series, axes_of, drawn_series, mark_rows, spoken
from flowrl.report.page import Html, tag

_FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_WIDTH, _LARGE, _HEIGHT = 560.0, 880.0, 260.0  # pixels: whole drawing, that of a large chart, and the plot alone
_TEXT, _TITLE, _SMALL = 13, 16, 12  # pixels, sizes of the text
_EDGE = 18.0  # pixels, around everything
_LETTER = 0.53  # of the size of the text, the width of a letter; on average it is less
_DASHES = {"dashed": "7 4", "dotted": "1 5"}
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


@cache
def light_palette() -> Mapping[str, str]:
    """The colours of the page on light paper by their name in page.css, such as ink or c1: one place for both."""
    style = resources.files("flowrl.report").joinpath("page.css").read_text(encoding="utf-8")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", style.partition("}")[0]))


def figure(chart: Chart) -> str:
    """The chart as the text of an SVG file; an empty text where no series has a point."""
    series = drawn_series(chart)
    if not series:
        return ""
    axes = axes_of(chart)
    labels = tick_labels(axes.y_ticks)
    left = _EDGE + max(_width(label, _SMALL) for label in labels) + 10
    whole = _LARGE if chart.large else _WIDTH
    axes = dataclasses.replace(axes, width=whole - left - _EDGE, height=_HEIGHT)
    heading, top = _heading(chart, series, whole)
    rows = mark_rows(chart, axes)
    top += 16 * (max(rows) + 1) if rows else 0
    height = top + _HEIGHT + 52
    inside = [*_grid(chart, axes, labels), *_bands(series, axes), *_marks(chart.marks, rows, axes)]
    inside += [shape for one in series for shape in _curve(one, axes)] + _sides(chart, axes)
    plot = tag("g", *inside, attributes={"transform": f"translate({left:.1f} {top:.1f})"})
    paper = tag("rect", attributes={"width": f"{whole:g}", "height": f"{height:g}", "fill": "#ffffff"})
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg", "version": "1.1", "width": f"{whole:g}", "height": f"{height:g}",
        "viewBox": f"0 0 {whole:g} {height:g}", "font-family": _FONTS, "font-size": f"{_TEXT}",
    }  # fmt: skip
    words = [tag("title", chart.title), tag("desc", spoken(chart))]
    drawing = tag("svg", *words, paper, *heading, plot, attributes=attributes)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + _NOT_XML.sub("", drawing) + "\n"


def _width(text: str, size: float) -> float:
    return len(text) * size * _LETTER


def _text(words: str, x: float, y: float, *, colour: str = "soft", size: int = _SMALL, anchor: str = "start") -> Html:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "fill": light_palette()[colour], "font-size": f"{size}"}
    attributes |= {"text-anchor": anchor} if anchor != "start" else {}
    return tag("text", words, attributes=attributes | ({"font-weight": "bold"} if size == _TITLE else {}))


def _stroke(commands: str, colour: str, width: float, more: Mapping[str, str] | None = None) -> Html:
    attributes = {"d": commands, "fill": "none", "stroke": light_palette()[colour], "stroke-width": f"{width:g}"}
    return tag("path", attributes=attributes | dict(more or {}))


def _heading(chart: Chart, series: Sequence[Series], whole: float) -> tuple[list[Html], float]:
    """Title, note and legend, and how far down they reach; the legend takes as many lines as it needs."""
    y = _EDGE + _TITLE * 0.8
    shapes = [_text(chart.title, _EDGE, y, colour="ink", size=_TITLE)]
    if chart.note:
        y += 20
        shapes.append(_text(chart.note, _EDGE, y))
    names = list(dict.fromkeys((one.name, one.slot, one.style) for one in series if one.style != "faint"))
    if len(names) > 1:
        x, y = _EDGE, y + 22
        for name, slot, style in names:
            space = 30 + _width(name, _TEXT) + 18
            if x > _EDGE and x + space > whole:
                x, y = _EDGE, y + 18
            shapes += _key(x, y - 4, slot, style)
            shapes.append(_text(name, x + 30, y, colour="ink", size=_TEXT))
            x += space
    return shapes, y + 20


def _key(x: float, y: float, slot: int, style: str) -> list[Html]:
    line = _stroke(f"M{x:.1f} {y:.1f}h22", f"c{slot}", 2, _dashes(style))
    return [line, *([_point(x + 11, y, slot, style)] if style in POINT_STYLES else [])]


def _dashes(style: str) -> dict[str, str]:
    return {"stroke-dasharray": _DASHES[style]} if style in _DASHES else {}


def _point(x: float, y: float, slot: int, style: str) -> Html:
    colour = light_palette()[f"c{slot}"]
    paint = {"fill": "#ffffff" if style in ("hollow", "frame") else colour, "stroke": colour, "stroke-width": "2"}
    if style in ("square", "frame"):
        corner = {"x": f"{x - 3.2:.1f}", "y": f"{y - 3.2:.1f}", "width": "6.4", "height": "6.4"}
        return tag("rect", attributes=corner | paint)
    return tag("circle", attributes={"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3.4"} | paint)


def _grid(chart: Chart, axes: Axes, labels: Sequence[str]) -> list[Html]:
    shapes = []
    for value, label in zip(axes.y_ticks, labels, strict=True):
        _, y = axes.place(axes.x_low, value)
        strong = chart.zero_line and value == 0
        shapes.append(_stroke(axes.level(value), "soft" if strong else "faint", 1.5 if strong else 1))
        shapes.append(_text(label, -10, y + 4, anchor="end"))
    for value, label in zip(axes.x_ticks, x_labels(axes.x_ticks), strict=True):
        x, _ = axes.place(value, axes.y_low)
        shapes.append(_stroke(f"M{x:.1f} {axes.height:g}v5", "soft", 1))
        shapes.append(_text(label, x, axes.height + 19, anchor="middle"))
    return [*shapes, _text(chart.x_name, axes.width / 2, axes.height + 38, anchor="middle")]


def _bands(series: Sequence[Series], axes: Axes) -> list[Html]:
    shapes = []
    for one in series:
        if one.band:
            colour = light_palette()[f"c{one.slot}"]
            soft = {"fill": colour, "fill-opacity": "0.13", "stroke-opacity": "0.45"}
            shapes.append(_stroke(axes.area(one.points, one.band), f"c{one.slot}", 0.8, soft))
    return shapes


def _marks(marks: Sequence[Mark], rows: Sequence[int], axes: Axes) -> list[Html]:
    shapes = []
    for index, (mark, row) in enumerate(zip(marks, rows, strict=True)):
        x, _ = axes.place(mark.x, axes.y_low)
        offset = {"stroke-dasharray": "4 4", "stroke-dashoffset": "4" if index % 2 else "0"}
        shapes.append(_stroke(axes.upright(mark.x), f"c{mark.slot}", 1.2, offset))
        anchor = "end" if x > axes.width / 2 else "start"
        shapes.append(_text(mark.text, x, -8.0 - 16 * row, colour=f"c{mark.slot}", anchor=anchor))
    return shapes


def _curve(series: Series, axes: Axes) -> list[Html]:
    colour, shapes = f"c{series.slot}", []
    if series.errors:
        shapes.append(_stroke(axes.bars(series.points, series.errors), colour, 1.2, {"stroke-opacity": "0.6"}))
    faint = {"stroke-opacity": "0.4"} if series.style == "faint" else {}
    smooth = {"stroke-linejoin": "round", "stroke-linecap": "round"} | faint | _dashes(series.style)
    if len(series.points) > 1:
        shapes.append(_stroke(axes.line(series.points), colour, 2, smooth))
    if series.style in POINT_STYLES or len(series.points) == 1:
        shapes += [_point(x, y, series.slot, series.style) for x, y in axes.places(series.points)]
    return shapes


def _sides(chart: Chart, axes: Axes) -> list[Html]:
    named = [(chart.above, 14.0), (chart.below, axes.height - 7)] if chart.zero_line else []
    return [_text(text, 6, y) for text, y in named if text]
