"""Charts as files: valid SVG 1.1 on its own, with the words, numbers and colours of the page."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from flowrl.report.charts import Chart, Mark, Series, axes_of, render
from flowrl.report.figure import figure, light_palette

_SVG = "{http://www.w3.org/2000/svg}"
_FIRST = Series(
    name="ditreward <run>",
    points=[(0, 0.5), (0.1, 1.0), (0.2, 1.5)],
    band=[(0.5, 0.5), (0.8, 1.2), (1.0, 2.0)],
    slot=1,
    style="marked",
)
_SECOND = Series(name="hpsv3 run", points=[(0, 0.5), (0.2, 0.9)], errors=[0.1, 0.2], slot=2, style="frame")
_CHART = Chart(
    title="HPSv3 & more",
    note="Three seeds.",
    series=[_FIRST, _SECOND],
    x_name="hours",
    marks=[Mark(x=0.1, slot=2, text="turns")],
)


def parsed(chart: Chart) -> ElementTree.Element:
    """The drawing as an XML reader sees it."""
    return ElementTree.fromstring(figure(chart))


def texts(chart: Chart) -> list[str]:
    """All that is written in the drawing, in order."""
    return [element.text or "" for element in parsed(chart).iter(f"{_SVG}text")]


def paths(chart: Chart, colour: str) -> list[dict[str, str]]:
    """The attributes of the paths in a colour of the palette."""
    return [one.attrib for one in parsed(chart).iter(f"{_SVG}path") if one.get("stroke") == light_palette()[colour]]


def test_a_figure_holds_title_names_and_numbers() -> None:
    words = texts(_CHART)
    assert words[:4] == ["HPSv3 & more", "Three seeds.", "ditreward <run>", "hpsv3 run"]
    assert words[4:10] == ["0.0", "0.5", "1.0", "1.5", "2.0", "0"]
    assert words[10:] == ["0.05", "0.10", "0.15", "0.20", "hours", "turns"]


def test_a_figure_stands_alone() -> None:
    text = figure(_CHART)
    root = parsed(_CHART)
    assert (root.tag, root.get("version")) == (f"{_SVG}svg", "1.1")
    assert "sans-serif" in root.attrib["font-family"]
    assert "var(" not in text
    assert "class=" not in text
    assert "style=" not in text
    assert root[2].attrib["fill"] == "#ffffff"
    assert (root[2].get("width"), root[2].get("height")) == (root.get("width"), root.get("height"))
    assert "ditreward <run> from 0.500 at 0 to 1.50 at 0.2" in (root[1].text or "")


def test_curves_bands_bars_and_marks_stand_where_the_axes_say() -> None:
    axes = replace(axes_of(_CHART), width=_plot_width(), height=260.0)
    assert (axes.y_low, axes.y_high, axes.x_high) == (0.0, 2.0, 0.2)
    key, band, line = (one["d"] for one in paths(_CHART, "c1"))
    right = axes.width
    assert key.endswith("h22")
    assert line == f"M0.0 195.0L{right / 2:.1f} 130.0L{right:.1f} 65.0"
    assert band == (
        f"M0.0 195.0L{right / 2:.1f} 104.0L{right:.1f} 0.0L{right:.1f} 130.0L{right / 2:.1f} 156.0L0.0 195.0Z"
    )
    _, mark, bars, _ = (one["d"] for one in paths(_CHART, "c2"))
    assert mark == f"M{right / 2:.1f} 0V260"
    assert bars == f"M0.0 208.0V182.0M{right:.1f} 169.0V117.0"


def _plot_width() -> float:
    level = next(one.attrib["d"] for one in parsed(_CHART).iter(f"{_SVG}path") if "H" in one.attrib["d"])
    return float(level.partition("H")[2])


def test_arms_differ_without_colour() -> None:
    shapes = [element.tag.removeprefix(_SVG) for element in parsed(_CHART).iter()]
    assert shapes.count("circle") == 1 + 3  # in the legend and on the curve
    assert shapes.count("rect") == 1 + 1 + 2  # the paper too
    lines = [replace(_FIRST, style="line"), replace(_SECOND, style="dashed", errors=())]
    dashes = [one.get("stroke-dasharray") for one in paths(replace(_CHART, series=lines, marks=()), "c2")]
    assert dashes == ["7 4", "7 4"]


def test_the_zero_line_is_the_strongest_rule() -> None:
    series = [Series(name="difference", points=[(0, 0.0), (10, 0.3)], slot=0)]
    chart = Chart(title="A", series=series, zero_line=True, above="a ahead", below="b ahead")
    rules = {one["d"].partition(" ")[2].partition("H")[0]: one["stroke-width"] for one in paths(chart, "soft")}
    zero = replace(axes_of(chart), height=260.0).place(0, 0.0)[1]
    assert rules[f"{zero:.1f}"] == "1.5"
    assert {"a ahead", "b ahead"} <= set(texts(chart))


def test_the_palette_is_that_of_the_light_page() -> None:
    palette = light_palette()
    assert (palette["paper"], palette["ink"]) == ("#fdfdfc", "#1b1c1e")
    assert [palette[f"c{slot}"] for slot in range(1, 4)] == ["#0072b2", "#d55e00", "#009e73"]
    assert len({palette[f"c{slot}"] for slot in range(7)}) == 7


def test_page_and_file_draw_the_same_shape() -> None:
    on_page = render(_CHART).partition('class="marked c1" d="')[2].partition('"')[0]
    in_file = paths(_CHART, "c1")[-1]["d"]
    scale = _plot_width() / 1000, 260 / 1000
    for page_point, file_point in zip(on_page[1:].split("L"), in_file[1:].split("L"), strict=True):
        for shown, drawn, factor in zip(page_point.split(), file_point.split(), scale, strict=True):
            assert float(shown) * factor == pytest.approx(float(drawn), abs=0.1)


def test_many_arms_take_several_lines_of_legend() -> None:
    arms = [replace(_FIRST, name=f"a run of a long name {i}", slot=i) for i in range(1, 7)]
    tall, short = (float(parsed(replace(_CHART, series=one)).attrib["height"]) for one in (arms, arms[:2]))
    assert tall == short + 2 * 18


def test_an_empty_chart_has_no_figure_and_control_characters_are_left_out() -> None:
    assert figure(Chart(title="A", series=[Series(name="a", points=[])])) == ""
    assert texts(Chart(title="A\x00\x1bB", series=[_FIRST]))[0] == "AB"
