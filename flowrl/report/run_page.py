"""What the pages about runs have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from flowrl import __version__
from flowrl.config import RewardSpec
from flowrl.glossary import describe
from flowrl.report.charts import Chart, Series, render
from flowrl.report.costs import phase_rows
from flowrl.report.page import Html, facts, folded, joined, section, tag
from flowrl.report.run_record import RunRecord
from flowrl.report.verdict import Change, with_error
from flowrl.report.wording import TIMES, duration, listed


def description(record: RunRecord) -> str:
    """What a run was, in a sentence or two."""
    words = []
    if (config := record.config) is not None:
        specs = config.rewards.train
        rewards = [_term(spec) for spec in specs] if len(specs) > 1 else [spec.metric_name for spec in specs]
        policy = f"the {config.model.path} {config.model.family} policy"
        if config.run.steps and rewards:
            words.append(f"Flow-GRPO trained {policy} on {listed(rewards)}: {config.run.steps} steps of ")
            words.append(f"{config.rollout.prompts_per_step} prompts {TIMES} {config.rollout.group_size} images.")
        else:
            words.append(f"An evaluation of {policy} without training.")
    if record.starts:
        started = datetime.fromisoformat(record.starts[0].started)
        words.append(f" Started on {started.day} {started:%B %Y at %H:%M} UTC")
        spent = sum(row.total for row in phase_rows(record))
        words.append(f", {duration(spent)} of work." if spent else ".")
    return "".join(words)


def _term(spec: RewardSpec) -> str:
    """What a reward adds to the sum that is trained on, but for a constant."""
    if spec.normalise == "group":
        sign = math.copysign(1, spec.scale)
        return f"{spec.metric_name} {TIMES} {sign * spec.weight:g} (z-scores of the prompt)"
    return f"{spec.metric_name} {TIMES} {spec.scale * spec.weight:g}"


def warnings(found: Sequence[str]) -> Html:
    """A box with what speaks against trusting the page; nothing where there is nothing."""
    if not found:
        return Html("")
    title = tag("h2", "Read this first")
    return tag("aside", title, tag("ul", *(tag("li", text) for text in found)), classes="warnings")


def score(value: float, sem: float, decimals: int) -> Html:
    """A score with its standard error, which a narrow screen leaves out."""
    number, _, error = with_error(value, sem, decimals).partition(" ")
    return joined([number, tag("span", f" {error}", classes="sem") if error else ""])


def moved(change: Change) -> Html:
    """How much a score changed, coloured where that is clear."""
    tone = {"rose": "good", "fell": "bad", "held": "neutral"}[change.movement]
    number, _, error = change.words().partition(" ")
    return tag("span", number, tag("span", f" {error}", classes="margin") if error else "", classes=tone)


def evaluation_series(record: RunRecord, measure: str, *, name: str, slot: int, style: str = "marked") -> Series:
    """The curve of one measure with its standard errors."""
    points = record.series(f"eval/{measure}/mean")
    errors = dict(record.series(f"eval/{measure}/sem"))
    return Series(
        name=name, points=points, errors=[errors.get(step, 0.0) for step, _ in points], slot=slot, style=style
    )


def charts(found: Sequence[Chart]) -> Html:
    """Charts side by side, as many as fit; nothing where none has data."""
    drawn = [figure for chart in found if (figure := render(chart))]
    return tag("div", *drawn, classes="charts") if drawn else Html("")


def origin_facts(record: RunRecord) -> list[tuple[str, str]]:
    """When, where and from which code a run was started; empty where that is not on record."""
    if not record.starts:
        return []
    start = record.starts[0]
    machine = f"{start.cpus} CPUs, {start.memory_gib} GiB" + (f", {listed(start.gpus)}" if start.gpus else "")
    commit = (start.git_commit or "unknown")[:12] + (" with uncommitted changes" if start.git_dirty else "")
    rows = [("Started", f"{start.started}, process {start.pid}"), ("Machine", machine), ("System", start.platform)]
    rows += [("Resumed", resume.started) for resume in record.starts[1:]]
    return [*rows, ("Python", start.python), ("Code", commit)]


def config_value(value: object) -> str:
    """A value of the configuration in one line; rewards by name, with what is not the default."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return ", ".join(_reward(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _reward(spec: Mapping[str, object]) -> str:
    weight = f" {TIMES} {spec['weight']}" if spec.get("weight", 1.0) != 1.0 else ""
    return f"{spec['name']}{weight}" + (f" {json.dumps(spec['options'], default=str)}" if spec.get("options") else "")


def glossary(keys: Sequence[str]) -> Html:
    """What each of the metrics means."""
    known = []
    for key in keys:
        try:
            known.append((key, describe(key)))
        except KeyError:
            known.append((key, "Not in the glossary of this version."))
    return section("Glossary", folded(f"What the {len(known)} metrics mean", facts(known))) if known else Html("")


def footer() -> Html:
    """Which version wrote the page."""
    return tag(
        "footer", tag("p", f"Written by flowrl {__version__}. The page is complete in itself: keep it, send it.")
    )
