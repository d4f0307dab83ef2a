"""What a probe found, as it is written to `result.json`: every accuracy with its interval and its spread over seeds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from rewards.evaluation.bootstrap import Interval
from rewards.evaluation.result import Difference
from rewards.probe.config import INPUT
from rewards.probe.heads import Probe
from rewards.probe.similarity import Similarity


@dataclass(frozen=True, kw_only=True)
class ProbeFigure:
    """How often the heads on one layer, or on two, order validation pairs as labelled.

    Example: ``ProbeFigure(layers=(2, 5), accuracy=0.8, interval=Interval(low=0.78, high=0.82), by_seed=(0.79, 0.81),
    by_source={"policy": 0.8}, best_share=0.6)``
    """

    layers: Probe
    accuracy: float  # mean over the seeds
    interval: Interval  # of that mean, by resampling prompts
    by_seed: tuple[float, ...]
    by_source: dict[str, float]  # means over the seeds, on the pairs of each source
    best_share: float  # of the bootstrap draws in which this one is the best of its kind, layer or pair

    @property
    def label(self) -> str:
        """Such as "3", "input" or "1+4"."""
        return "+".join(map(layer_label, self.layers))


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A whole probe."""

    backbone: str
    init: str
    sigma: float
    head_dims: tuple[int, ...]
    steps: int
    num_train_pairs: int
    num_pairs: int  # of validation, ties left out
    num_prompts: int  # with such a pair
    singles: tuple[ProbeFigure, ...]  # in the order of depth
    pairs: tuple[ProbeFigure, ...]
    differences: tuple[Difference, ...]
    similarity: Similarity
    draws: int  # of the bootstrap

    @property
    def best_single(self) -> ProbeFigure:
        """The layer of the highest accuracy; the first of equals."""
        return max(self.singles, key=lambda one: one.accuracy)

    @property
    def best_pair(self) -> ProbeFigure | None:
        """The pair of the highest accuracy; None where no pair was probed."""
        return max(self.pairs, key=lambda one: one.accuracy, default=None)

    def to_json(self) -> str:
        """Indented JSON; raises ValueError on a number that is not finite."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"


def layer_label(layer: int) -> str:
    """What plots and tables call a layer."""
    return "input" if layer == INPUT else str(layer)
