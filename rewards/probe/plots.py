"""The plots of a probe, as PNG, with matplotlib, which only the extra `plots` installs."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from flowrl.base.errors import UserError
from rewards.probe.result import ProbeResult, layer_label
from rewards.probe.similarity import Similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE, _MARK, _GREY = "#0072b2", "#d55e00", "#777777"
_MOST_WRITTEN = 12  # layers up to which every cell of a matrix has its number written in it
_DPI = 120


def require_matplotlib() -> None:
    """Raise UserError when matplotlib is not installed, before the work that it would draw."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError('the plots need matplotlib, which is not installed: pip install "flowrl[plots]"') from None


def draw_depth(result: ProbeResult) -> bytes:
    """Accuracy against depth: the mean over seeds with its 95 % interval, the best layer and the best pair marked."""
    figure = _figure(max(5.0, 0.3 * len(result.singles)), 3.6)
    axis = figure.subplots()
    places = range(len(result.singles))
    means = [100 * one.accuracy for one in result.singles]
    below = [100 * (one.accuracy - one.interval.low) for one in result.singles]
    above = [100 * (one.interval.high - one.accuracy) for one in result.singles]
    axis.errorbar(
        places, means, yerr=[below, above], fmt="o-", color=_LINE, capsize=3, label="one layer, 95 % interval"
    )
    best = result.singles.index(result.best_single)
    axis.plot(
        best, means[best], "o", color=_MARK, markersize=9, zorder=3, label=f"best layer: {result.best_single.label}"
    )
    if result.best_pair is not None:
        label = f"best pair: {result.best_pair.label}"
        axis.axhline(100 * result.best_pair.accuracy, linestyle="--", linewidth=1, color=_GREY, label=label)
    axis.set_xticks(places, [one.label for one in result.singles])
    axis.set_xlabel("layer (image tokens after this block)")
    axis.set_ylabel("accuracy on validation pairs, %")
    axis.grid(axis="y", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    return _png(figure)


def draw_pairs(result: ProbeResult) -> bytes:
    """Accuracy of pairs of layers as a lower triangle, single layers on its diagonal.

    The colours begin at the worst pair: a layer that is worse alone would leave one colour for all that are good.
    """
    layers = [one.layers[0] for one in result.singles]
    matrix = [[float("nan")] * len(layers) for _ in layers]
    for one in (*result.singles, *result.pairs):
        matrix[layers.index(one.layers[-1])][layers.index(one.layers[0])] = 100 * one.accuracy
    figure = _figure(*_square(len(layers)))
    axis = figure.subplots()
    lowest = min(100 * one.accuracy for one in result.pairs)
    _matrix(figure, axis, matrix, layers, title="accuracy, %", digits=1, lowest=lowest)
    axis.spines[:].set_visible(False)
    return _png(figure)


def draw_similarity(similarity: Similarity) -> bytes:
    """The similarity of layers, its mean over prompts and its standard deviation, side by side."""
    width, height = _square(len(similarity.layers))
    figure = _figure(2 * width, height)
    left, right = figure.subplots(1, 2)
    _matrix(figure, left, similarity.mean, similarity.layers, title="cosine of centred features, mean", digits=2)
    _matrix(figure, right, similarity.std, similarity.layers, title="standard deviation over prompts", digits=3)
    return _png(figure)


def _matrix(
    figure: Figure,
    axis: Axes,
    matrix: Sequence[Sequence[float]],
    layers: Sequence[int],
    *,
    title: str,
    digits: int,
    lowest: float | None = None,
) -> None:
    """A heat map over layers, its colours from `lowest` on; the numbers are written in it where there are few."""
    image = axis.imshow(matrix, cmap="viridis", vmin=lowest)
    figure.colorbar(image, ax=axis, shrink=0.85, extend="neither" if lowest is None else "min")
    every = 1 if len(layers) <= 2 * _MOST_WRITTEN else 5
    places = range(0, len(layers), every)
    labels = [layer_label(layers[place]) for place in places]
    axis.set_xticks(places, labels)
    axis.set_yticks(places, labels)
    axis.set_xlabel("layer")
    axis.set_ylabel("layer")
    axis.set_title(title, fontsize=10)
    if len(layers) > _MOST_WRITTEN:
        return
    low, high = image.get_clim()
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            if value == value:  # an empty cell is NaN
                colour = "black" if value > (low + high) / 2 else "white"
                axis.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=8, color=colour)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _square(count: int) -> tuple[float, float]:
    """The size of a heat map of so many layers, in inches."""
    side = min(9.0, 2.2 + 0.42 * count)
    return side + 0.8, side
