"""Charts: axes with round numbers, and lines that stand where the axes say."""

from __future__ import annotations

import re

import pytest
from page_reader import Page

from flowrl.report import axes, charts


def test_drawn_points_stand_where_the_axes_say() -> None:
    series = charts.Series(name="a", points=[(0, 1.0), (10, 1.5), (20, 2.0)], style="marked")
    page = Page(charts.render(charts.Chart(title="A", series=[series])))
    line = next(attributes["d"] for tag, attributes in page.tags if attributes.get("class") == "marked c1")
    assert line == "M0.0 1000.0L500.0 500.0L1000.0 0.0"
    ticks = [words for words in page.words if re.fullmatch(r"[\d.]+", words)]
    assert ticks == ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0", "5", "10", "15", "20"]


@pytest.mark.parametrize(
    ("low", "high", "expected", "labels"),
    [
        (1.16, 1.97, [1.0, 1.2, 1.4, 1.6, 1.8, 2.0], ["1.0", "1.2", "1.4", "1.6", "1.8", "2.0"]),
        (0.0, 0.0197, [0.0, 0.005, 0.01, 0.015, 0.02], ["0.000", "0.005", "0.010", "0.015", "0.020"]),
        (-3.0, 9.0, [-5.0, 0.0, 5.0, 10.0], ["\u22125", "0", "5", "10"]),
        (0.0, 4e-6, [0.0, 1e-6, 2e-6, 3e-6, 4e-6], ["0", "1e\u22126", "2e\u22126", "3e\u22126", "4e\u22126"]),
        (0.0, 60000.0, [0.0, 20000.0, 40000.0, 60000.0], ["0", "20,000", "40,000", "60,000"]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float], labels: list[str]) -> None:
    assert axes.ticks(low, high) == expected
    assert axes.tick_labels(expected) == labels


def test_thinning_keeps_every_spike() -> None:
    points = [(float(step), 0.0) for step in range(10_000)]
    points[7_777] = (7_777.0, 5.0)
    points[3] = (3.0, -5.0)
    kept = [points[i] for i in axes.kept_points(points, 600)]
    assert len(kept) <= 600
    assert {(7_777.0, 5.0), (3.0, -5.0)} <= set(kept)
    assert kept == sorted(kept)
    assert axes.kept_points(points[:600], 600) == list(range(600))


def test_running_mean_looks_back_only() -> None:
    points = [(1, 2.0), (2, 4.0), (3, 9.0), (4, 2.0)]
    assert charts.running_mean(points, 3) == [(1, 2.0), (2, 3.0), (3, 5.0), (4, 5.0)]


def test_constant_curves_have_axes() -> None:
    for value in (3.0, -2.0, 1e-12):
        series = charts.Series(name="a", points=[(1, value), (2, value)])
        assert 'class="plot"' in charts.render(charts.Chart(title="A", series=[series]))
    zero = charts.Series(name="a", points=[(1, 0.0), (7, 0.0)])
    assert "at every step up to 7" in Page(charts.render(charts.Chart(title="A", series=[zero]))).text
    assert charts.render(charts.Chart(title="A", series=[])) == ""


def paths(html: str, classes: str) -> list[str]:
    """The commands of the paths of a class, in order."""
    return [attributes["d"] for tag, attributes in Page(html).tags if tag == "path" and attributes["class"] == classes]


def test_a_band_is_a_polygon_that_the_axis_encloses() -> None:
    band = [(1.0, 1.0), (0.5, 2.0), (1.5, 3.0)]
    series = charts.Series(name="a", points=[(0, 1.0), (10, 1.5), (20, 2.0)], band=band, slot=2, style="hollow")
    html = charts.render(charts.Chart(title="A", series=[series]))
    assert charts.axes_of(charts.Chart(title="A", series=[series])).y_ticks == (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    upper, lower = "M0.0 800.0L500.0 400.0L1000.0 0.0", "L1000.0 600.0L500.0 1000.0L0.0 800.0Z"
    assert paths(html, "band hollow c2") == [upper + lower]
    assert paths(html, "hollow c2") == ["M0.0 800.0L500.0 600.0L1000.0 400.0"]
    (data,) = Page(html).charts().values()
    assert data["series"] == [
        {
            "name": "a",
            "slot": 2,
            "style": "hollow",
            "points": [[0, 1.0], [10, 1.5], [20, 2.0]],
            "band": [[1.0, 1.0], [0.5, 2.0], [1.5, 3.0]],
        }
    ]


def test_bands_lie_under_every_line() -> None:
    series = [
        charts.Series(name=str(slot), points=[(0, 1.0), (1, 2.0)], band=[(0.5, 1.5), (1.5, 2.5)], slot=slot)
        for slot in (1, 2)
    ]
    tags = Page(charts.render(charts.Chart(title="A", series=series))).tags
    order = [attributes["class"] for tag, attributes in tags if tag == "path"]
    assert [name for name in order if " c" in name] == ["band line c1", "band line c2", "line c1", "line c2"]


def test_a_long_band_is_thinned_with_its_line() -> None:
    points = [(float(step), float(step % 7)) for step in range(2000)]
    series = charts.Series(name="a", points=points, band=[(y - 1, y + 1) for _, y in points])
    (shown,) = charts.drawn_series(charts.Chart(title="A", series=[series]))
    assert len(shown.points) <= 600
    assert list(shown.band) == [(y - 1, y + 1) for _, y in shown.points]


def test_an_interval_is_given_for_each_point_or_none() -> None:
    with pytest.raises(ValueError, match=r"a: 1 intervals for 2 points"):
        charts.Series(name="a", points=[(0, 1.0), (1, 2.0)], band=[(0.5, 1.5)])
    with pytest.raises(ValueError, match=r"a: no style 'thick'"):
        charts.Series(name="a", points=[], style="thick")


@pytest.mark.parametrize(
    ("xs", "expected", "labels"),
    [
        ([0.0, 0.09, 0.27], [0.0, 0.05, 0.1, 0.15, 0.2, 0.25], ["0", "0.05", "0.10", "0.15", "0.20", "0.25"]),
        ([0.0, 1.5, 5.2], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], ["0", "1", "2", "3", "4", "5"]),
        ([0, 2], [0.0, 1.0, 2.0], ["0", "1", "2"]),
        ([0, 7680], [0.0, 2000.0, 4000.0, 6000.0], ["0", "2,000", "4,000", "6,000"]),
        ([0, 400_000], [0.0, 100_000.0, 200_000.0, 300_000.0, 400_000.0], ["0", "100k", "200k", "300k", "400k"]),
        ([0, 2_000_000], [0.0, 500_000.0, 1e6, 1.5e6, 2e6], ["0", "0.5M", "1.0M", "1.5M", "2.0M"]),
    ],
)
def test_the_axis_of_hours_has_fractions_and_that_of_steps_has_not(
    xs: list[float], expected: list[float], labels: list[str]
) -> None:
    _, high, values = axes.x_scale(xs)
    assert high == xs[-1]
    assert list(values) == pytest.approx(expected)
    assert axes.x_labels(values) == labels


def test_the_first_label_of_an_axis_has_the_unit() -> None:
    series = charts.Series(name="a", points=[(0.0, 1.0), (0.21, 2.0)])
    page = Page(charts.render(charts.Chart(title="A", series=[series], x_name="hours")))
    assert [words for words in page.words if words.startswith(("hours", "0."))] == [
        "hours 0",
        "0.05",
        "0.10",
        "0.15",
        "0.20",
    ]


def test_a_difference_has_a_zero_line_and_room_on_both_sides() -> None:
    series = [charts.Series(name="difference", points=[(0, 0.1), (10, 0.4)])]
    chart = charts.Chart(title="A", series=series, zero_line=True, above="a ahead", below="b ahead")
    assert charts.axes_of(chart).y_ticks == (-0.1, 0.0, 0.1, 0.2, 0.3, 0.4)
    html = charts.render(chart)
    assert paths(html, "strong") == ["M0 800.0H1000"]
    assert {"a ahead", "b ahead"} <= set(Page(html).words)
    plain = charts.Chart(title="A", series=series, zero_line=True)
    assert charts.axes_of(plain).y_ticks == (0.0, 0.1, 0.2, 0.3, 0.4)


def test_marks_stand_at_their_x_and_their_labels_do_not_meet() -> None:
    marks = [
        charts.Mark(x=20, slot=1, text="turns"),
        charts.Mark(x=20, slot=2, text="falls"),
        charts.Mark(x=50, slot=2, text="ends"),
    ]
    chart = charts.Chart(title="A", series=[charts.Series(name="a", points=[(0, 1.0), (40, 2.0)])], marks=marks)
    html = charts.render(chart)
    assert charts.axes_of(chart).x_high == 50
    assert paths(html, "mark c1") + paths(html, "mark c2 odd") == ["M400.0 0V1000", "M400.0 0V1000"]
    assert charts.mark_rows(chart, charts.axes_of(chart)) == [0, 1, 0]
    spans = {
        attributes["class"]: attributes["style"]
        for tag, attributes in Page(html).tags
        if "mark-label" in attributes.get("class", "")
    }
    assert spans == {
        "mark-label c1": "left:40.00%;--row:0",
        "mark-label c2": "left:40.00%;--row:1",
        "mark-label c2 leftwards": "left:100.00%;--row:0",
    }
    assert "turns at 20" in html


def test_a_difference_of_zero_with_a_band_is_not_called_flat() -> None:
    flat = charts.Series(name="a", points=[(0, 0.0), (0.5, 0.0)])
    assert (
        "at every hours up to 0.5" in Page(charts.render(charts.Chart(title="A", series=[flat], x_name="hours"))).text
    )
    banded = charts.Series(name="a", points=[(0, 0.0), (0.5, 0.0)], band=[(0.0, 0.0), (-0.1, 0.1)])
    assert 'class="plot"' in charts.render(charts.Chart(title="A", series=[banded]))
