"""Charts: axes with round numbers, and lines that stand where the axes say."""

from __future__ import annotations

import re

import pytest
from page_reader import Page

from flowrl.report import charts


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
    assert charts.ticks(low, high) == expected
    assert charts.tick_labels(expected) == labels


def test_thinning_keeps_every_spike() -> None:
    points = [(float(step), 0.0) for step in range(10_000)]
    points[7_777] = (7_777.0, 5.0)
    points[3] = (3.0, -5.0)
    kept = charts.thinned(points, 600)
    assert len(kept) <= 600
    assert {(7_777.0, 5.0), (3.0, -5.0)} <= set(kept)
    assert kept == sorted(kept)
    assert charts.thinned(points[:600], 600) == points[:600]


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
