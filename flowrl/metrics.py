"""What a run measures: the glossary of its numbers, how several become one, and the log that keeps them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    import torch

    from flowrl.types import Metric

Direction = Literal["up", "down", ""]


@dataclass(frozen=True)
class Entry:
    """What one number means, its unit, and which direction is good, if any."""

    meaning: str
    unit: str
    good: Direction = ""
    nullable: bool = False  # may be undefined, for example the mean of a step whose every score failed


# Keys as they are logged; <name> stands for a reward or a measure, <i> for a sampler step.
GLOSSARY: dict[str, Entry] = {
    "reward/<name>/mean": Entry(
        "Mean score of the step's training images; every step draws other prompts, so judge learning by eval/ instead.",
        "score",
        "up",
        nullable=True,
    ),
    "reward/<name>/std": Entry(
        "Spread of the scores of the step's training images; without spread there is nothing to learn from.",
        "score",
        nullable=True,
    ),
    "reward/<name>/invalid": Entry(
        "Share of the step's images without a finite score; they are left out of the update, never counted as zero.",
        "share",
        "down",
    ),
    "reward/total/mean": Entry(
        "Mean of the weighted sum of all trained rewards, which is what the update pushes up.", "score", "up"
    ),
    "eval/<name>/mean": Entry(
        "Mean score on held-out prompts with the same noise every time: the number that shows whether it learns.",
        "score",
        "up",
        nullable=True,
    ),
    "eval/<name>/std": Entry("Spread of the scores over the held-out images.", "score", nullable=True),
    "eval/<name>/sem": Entry(
        "Standard error of the held-out mean: how far it would move with other prompts and noise.",
        "score",
        nullable=True,
    ),
    "eval/<name>/gain": Entry(
        "How far the held-out mean has moved since the first evaluation, on the same prompts and noise.",
        "score",
        "up",
        nullable=True,
    ),
    "eval/<name>/gain_sem": Entry(
        "Standard error of that gain, from the differences prompt by prompt: a gain beyond two of it is clear.",
        "score",
        nullable=True,
    ),
    "eval/diversity/mean": Entry(
        "How far apart the held-out images of one prompt are (mean pairwise RMS distance of their latents); "
        "a steady fall means that the policy draws the same image again and again.",
        "latent units",
        "up",
    ),
    "policy/loss": Entry("Whole loss of the update: policy loss plus the weighted KL.", "loss"),
    "policy/policy_loss": Entry("Clipped policy-gradient part of the loss; hovers around zero by design.", "loss"),
    "policy/kl": Entry(
        "How far the policy has moved from the model it started from; a fast rise warns of over-optimisation.", "nats"
    ),
    "policy/ratio_absdev_max": Entry(
        "Largest distance from 1 of the ratio between replayed and sampled probability, before the first optimizer "
        "step; both come from the same weights, so it must be 0 on the CPU and tiny on a GPU.",
        "ratio",
        "down",
    ),
    "policy/ratio_absdev_step_<i>": Entry(
        "The same deviation at sampler step <i> alone; shows where in the denoising the replay drifts.",
        "ratio",
        "down",
    ),
    "policy/logp_absdiff_max": Entry(
        "Largest difference between the replayed and the sampled log-probability before the first optimizer step.",
        "nats",
        "down",
    ),
    "policy/ratio_mean": Entry("Mean probability ratio of new to old policy over the whole update; near 1.", "ratio"),
    "policy/clip_fraction": Entry(
        "Share of samples whose ratio left the clip range and gave no gradient; near 1 means the steps are too big.",
        "share",
    ),
    "policy/grad_norm": Entry("Length of the gradient before it is clipped, mean over the inner steps.", "norm"),
    "policy/advantage_absmean": Entry(
        "Mean size of the advantages: how strongly samples are told apart; 0 means no learning signal.", "advantage"
    ),
    "policy/zero_variance_groups": Entry(
        "Groups whose samples all got the same score, which therefore teach nothing.", "groups", "down"
    ),
    "policy/version": Entry("Optimizer steps taken so far; names the weights that sampled the next images.", "count"),
    "time/encode_s": Entry("Encoding the prompts that are not in the cache yet.", "s", "down"),
    "time/rollout_s": Entry("Sampling, from the first order until the last group is sampled.", "s", "down"),
    "time/score_s": Entry(
        "Waiting for scores after the last group is sampled; most scoring hides behind the sampling.", "s", "down"
    ),
    "time/advantages_s": Entry("Turning scores into advantages.", "s", "down"),
    "time/update_s": Entry("Replaying the stored sampler steps and taking the optimizer steps.", "s", "down"),
    "time/sync_s": Entry("Bringing the new weights to the actors that sample.", "s", "down"),
    "time/eval_s": Entry("The held-out evaluation that followed the step.", "s", "down"),
    "time/checkpoint_s": Entry("Writing the checkpoint that followed the step.", "s", "down"),
    "time/step_s": Entry(
        "The training step as a whole, encode to sync; evaluation and checkpoint come on top.", "s", "down"
    ),
    "time/rollout_busy_s": Entry("Seconds that the rollout actors computed, added over actors.", "s"),
    "time/score_busy_s": Entry("Seconds that the scorers computed, added over actors.", "s"),
    "time/decode_busy_s": Entry(
        "Seconds spent decoding latents to pixels for rewards that need pixels; a latent reward needs none.",
        "s",
        "down",
    ),
    "bytes/trajectories": Entry("Size of the sampled groups that moved between actors.", "bytes", "down"),
    "bytes/weights": Entry("Size of the adapter weights sent to the actors that sample.", "bytes", "down"),
    "bytes/conditions": Entry("Size of the text conditions that were encoded and stored.", "bytes", "down"),
    "memory/driver_gib": Entry("Memory of the driver process.", "GiB", "down"),
    "memory/actors_gib": Entry("Memory of all actors together.", "GiB", "down"),
    "memory/peak_gib": Entry("Highest memory of driver and actors together so far.", "GiB", "down"),
    "count/images": Entry("Training images sampled in the step.", "images"),
    "speed/images_per_s": Entry("Training images per second of the whole step.", "images/s", "up"),
}
_PATTERNS = [
    (re.compile("[^/]+".join(re.escape(part) for part in re.split(r"<name>|<i>", key))), entry)
    for key, entry in GLOSSARY.items()
    if "<" in key
]
_DIRECTION_WORDS = {"up": "; higher is better", "down": "; lower is better", "": ""}


def entry(key: str) -> Entry:
    """The glossary entry of a key, an exact one before a pattern; raises KeyError where there is none."""
    if key in GLOSSARY and "<" not in key:
        return GLOSSARY[key]
    for pattern, found in _PATTERNS:
        if pattern.fullmatch(key):
            return found
    raise KeyError(f"metric {key!r} is not in the glossary; every logged key must be explained in flowrl.metrics")


def describe(key: str) -> str:
    """What a key means, its unit and which direction is good, in one line; raises KeyError where it is unknown."""
    found = entry(key)
    return f"{found.meaning} [{found.unit}{_DIRECTION_WORDS[found.good]}]"


def reduce(metrics: Iterable[Metric]) -> dict[str, float]:
    """One number per key from many, each as its Metric says; raises ValueError when one key mixes reductions."""
    values: dict[str, list[float]] = {}
    how: dict[str, str] = {}
    for metric in metrics:
        if how.setdefault(metric.key, metric.reduce) != metric.reduce:
            raise ValueError(
                f"metric {metric.key!r} must be reduced in one way, got {how[metric.key]!r} and {metric.reduce!r}"
            )
        values.setdefault(metric.key, []).append(float(metric.value))
    reduced = {}
    for key, found in values.items():
        if how[key] == "mean":
            reduced[key] = math.fsum(found) / len(found)
        elif how[key] == "sum":
            reduced[key] = math.fsum(found)
        else:
            reduced[key] = max(found) if how[key] == "max" else found[-1]
    return reduced


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, each with its `step`; undefined values are absent, a torn last line is dropped.

    A file that does not exist has no lines. Raises ValueError for a broken line that is not the last.
    """
    return [row for _, row in _read(path)]


def _read(path: Path) -> list[tuple[str, dict[str, float]]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = {key: float(value) for key, value in json.loads(line).items() if value is not None}
            rows.append((line, row | {"step": int(row["step"])}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if any(rest.strip() for rest in lines[number:]):
                raise ValueError(f"{path}: line {number} must be a JSON object with a step: {error}") from None
    return rows


# Charts that belong together in TensorBoard's "Custom Scalars" tab; the values are regular expressions on tags.
_LAYOUT = {
    "is it learning?": {
        "held-out scores": ["Multiline", [r"eval/(?!oracle|diversity)[^/]+/mean"]],
        "oracle": ["Multiline", [r"eval/oracle/mean"]],
        "oracle, part by part": ["Multiline", [r"eval/oracle_[^/]+/mean"]],
        "KL to the start": ["Multiline", [r"policy/kl"]],
        "reward while training": ["Multiline", [r"reward/[^/]+/mean"]],
        "diversity": ["Multiline", [r"eval/diversity/mean"]],
    },
    "can it be trusted?": {
        "ratio deviation": ["Multiline", [r"policy/ratio_absdev_max"]],
        "clip fraction": ["Multiline", [r"policy/clip_fraction"]],
        "gradient norm": ["Multiline", [r"policy/grad_norm"]],
        "invalid scores": ["Multiline", [r"reward/[^/]+/invalid"]],
    },
    "where does the time go?": {"phases": ["Multiline", [r"time/(?!.*busy)[^/]+_s"]]},
}


class MetricLog:
    """Appends one line per step to metrics.jsonl and the same numbers to TensorBoard.

    With `resumed_step`, lines after that step are removed first, in both. A crash loses at most the line being
    written: lines are flushed one by one but not forced to the disk.
    """

    def __init__(self, run_dir: Path, *, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,  # slow to import, and needed here alone
        )

        self._path = run_dir / "metrics.jsonl"
        self._last_step = -1
        if resumed_step is not None:
            self._truncate(resumed_step)
        self._file = self._path.open("a", encoding="utf-8")
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(run_dir / "tb"), purge_step=purge)
        if resumed_step is None:
            self._writer.add_custom_scalars(_LAYOUT)

    def _truncate(self, resumed_step: int) -> None:
        kept = [(line, int(row["step"])) for line, row in _read(self._path) if row["step"] <= resumed_step]
        self._last_step = kept[-1][1] if kept else -1
        aside = self._path.with_name(".metrics.jsonl.new")
        aside.write_text("".join(line + "\n" for line, _ in kept), encoding="utf-8")
        aside.replace(self._path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one step; an undefined (NaN) one becomes null where the glossary allows it.

        Raises KeyError for a key without explanation, ValueError for other values that are not finite and for a
        step that is not after the last one.
        """
        if step <= self._last_step:
            raise ValueError(f"steps must be logged once and in order, got step {step} after step {self._last_step}")
        row: dict[str, float | None] = {"step": step}
        for key, value in values.items():
            known = entry(key)
            number = float(value)
            if math.isnan(number) and known.nullable:
                row[key] = None
            elif not math.isfinite(number):
                raise ValueError(f"metric {key} of step {step} must be finite, got {number}")
            else:
                row[key] = number
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._last_step = step
        for key, logged in row.items():
            if key != "step" and logged is not None:
                self._writer.add_scalar(key, logged, step)
        self._writer.flush()

    def images(self, tag: str, step: int, grid: torch.Tensor) -> None:
        """Show an image grid, [3, H, W] uint8, in TensorBoard."""
        self._writer.add_image(tag, grid, step)

    def text(self, tag: str, step: int, text: str) -> None:
        """Show a text (Markdown) in TensorBoard."""
        self._writer.add_text(tag, text, step)

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
