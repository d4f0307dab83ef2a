"""The geometry of a chart, on a page or in a file: round ticks, their labels, and where values stand in a rectangle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.report.wording import significant

Point = tuple[float, float]
Interval = tuple[float, float]  # low, high
_X_TICKS = 5  # about so many labels stand side by side on a phone


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
    return [_rounded(index * step, step) for index in range(first, last + 1)]


def _rounded(value: float, step: float) -> float:
    return round(value, 12 - math.floor(math.log10(step)))


def beyond(values: Sequence[float], *, above: bool, below: bool) -> list[float]:
    """Ticks with one more on each side of zero that is asked for and has none."""
    step = values[1] - values[0]
    lower = [_rounded(values[0] - step, step)] if below and values[0] >= 0 else []
    upper = [_rounded(values[-1] + step, step)] if above and values[-1] <= 0 else []
    return [*lower, *values, *upper]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The labels of evenly spaced ticks, all with the same number of decimals."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) or 1.0
    largest = max(abs(value) for value in values)
    if step < 1e-4 or largest >= 1e7:
        return ["0" if value == 0 else significant(value, 2) for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{decimals}f}".replace("-", "\u2212") for value in values]


def x_labels(values: Sequence[float]) -> list[str]:
    """The labels under a chart: as `tick_labels`, but zero is 0, and 200,000 is 200k so that five fit side by side."""
    largest = max(values)
    divisor, unit = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e5 else (1.0, "")
    labels = tick_labels([value / divisor for value in values])
    return ["0" if value == 0 else label + unit for value, label in zip(values, labels, strict=True)]


def x_scale(xs: Sequence[float]) -> tuple[float, float, tuple[float, ...]]:
    """The lowest and highest x of an axis, and its ticks; an axis of whole numbers has ticks at whole numbers alone."""
    whole = all(float(x).is_integer() for x in xs)
    low, high = min(0.0, *xs), max(0.0, *xs)
    if whole or not high > low:
        high = max(1.0, high)
    shown = [
        value
        for value in ticks(low, high, _X_TICKS)
        if max(low, 0.0) <= value <= high + 1e-9 * (high - low) and (value == round(value) or not whole)
    ]
    return low, high, tuple(shown)


def kept_points(points: Sequence[Point], most: int) -> list[int]:
    """The indices of at most about `most` points: lowest and highest of each stretch, so that no spike is lost."""
    if len(points) <= most:
        return list(range(len(points)))
    length = math.ceil(len(points) / (most / 2))
    kept: list[int] = []
    for start in range(0, len(points), length):
        stretch = range(start, min(start + length, len(points)))
        kept += sorted({min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])})
    return kept


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A range of values on a rectangle of `width` x `height`; like in SVG, y grows downwards from the upper edge.

    The default rectangle suits a drawing that is stretched to its place afterwards.
    """

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    x_ticks: tuple[float, ...] = ()
    y_ticks: tuple[float, ...] = ()
    width: float = 1000.0
    height: float = 1000.0

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a value stands, from the upper left corner."""
        return (
            self.width * (x - self.x_low) / (self.x_high - self.x_low),
            self.height * (1 - (y - self.y_low) / (self.y_high - self.y_low)),
        )

    def places(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Where values stand."""
        return [self.place(x, y) for x, y in points]

    def line(self, points: Sequence[Point]) -> str:
        """The SVG path from point to point."""
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.places(points))

    def area(self, points: Sequence[Point], band: Sequence[Interval]) -> str:
        """The closed SVG path along the upper edge of a band and back along the lower one; x from `points`."""
        upper = [(x, high) for (x, _), (_, high) in zip(points, band, strict=True)]
        lower = [(x, low) for (x, _), (low, _) in zip(points, band, strict=True)]
        return self.line([*upper, *reversed(lower)]) + "Z"

    def bars(self, points: Sequence[Point], errors: Sequence[float]) -> str:
        """The SVG path of an upright stroke through each point, `errors` long to each side."""
        ends = [(self.place(x, y - e), self.place(x, y + e)) for (x, y), e in zip(points, errors, strict=True)]
        return "".join(f"M{left:.1f} {low:.1f}V{high:.1f}" for (left, low), (_, high) in ends)

    def level(self, y: float) -> str:
        """The SVG path across the rectangle at a height."""
        return f"M0 {self.place(self.x_low, y)[1]:.1f}H{self.width:g}"

    def upright(self, x: float) -> str:
        """The SVG path from the upper to the lower edge at an x."""
        return f"M{self.place(x, self.y_low)[0]:.1f} 0V{self.height:g}"
