"""The page about two runs that should differ in their reward alone: what each reward bought, and at what price."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from flowrl.base.amounts import size
from flowrl.base.atomic_file import write_atomically
from flowrl.config import ConfigError, diff
from flowrl.report.charts import Chart, Series
from flowrl.report.costs import BUSY, PHASES, TRAFFIC, mean_bytes, mean_of, peak_memory, phase_rows
from flowrl.report.page import Html, code, facts, folded, joined, page, sample_cards, section, table, tag
from flowrl.report.run_page import (
    charts,
    config_value,
    description,
    evaluation_series,
    footer,
    glossary,
    moved,
    origin_facts,
    score,
    warnings,
)
from flowrl.report.run_record import RunRecord, part_of, read_run
from flowrl.report.verdict import MAY_DIFFER, Change, changes, comparison_verdict, mismatches, violations
from flowrl.report.wording import duration, listed, significant
from flowrl.samples import Sheet

_STYLES = ("marked", "hollow")  # of the two arms, so that they can be told apart without colour


def write_comparison(first: Path, second: Path, out: Path | None = None) -> Path:
    """Write the page that lays two runs side by side and return its path.

    The default place is `compare-FIRST-SECOND.html` beside the second run. Raises ConfigError where one is no run or
    both are the same.
    """
    if first.resolve() == second.resolve():
        raise ConfigError(f"a comparison needs two different runs, got {first} twice")
    arms = (read_run(first), read_run(second))
    out = out or second.parent / f"compare-{first.name}-{second.name}.html"
    write_atomically(out, render_comparison(*arms).encode())
    return out


def render_comparison(first: RunRecord, second: RunRecord) -> Html:
    """The page as text."""
    arms = _labelled(first, second)
    return page(
        f"{arms[0].name} and {arms[1].name} - flowrl comparison",
        _head(arms),
        warnings(mismatches(*arms) + [f"In the {arm.name}: {text}" for arm in arms for text in violations(arm)]),
        section("Held-out scores", _scores(arms), charts(_evaluation_charts(arms)), intro=_SCORES_NOTE),
        _samples(arms),
        section("Training", charts(_training_charts(arms))),
        section("Time and traffic", _costs(arms), intro="Means over the training steps."),
        section("How the two runs differ", _differences(arms), *_origin(arms)),
        glossary(sorted(arms[0].keys() | arms[1].keys())),
        footer(),
    )


_SCORES_NOTE = (
    "Both runs are judged by the same prompts and the same noise. After each \u00b1 stands one standard error; "
)
_SCORES_NOTE += "a change counts as clear beyond two."


def _labelled(first: RunRecord, second: RunRecord) -> tuple[RunRecord, RunRecord]:
    """The same records, named by what sets them apart: their reward or, where that is the same, their directory."""
    labels = [" + ".join(arm.trained_rewards) for arm in (first, second)]
    if labels[0] == labels[1] or not all(labels):
        labels = [arm.directory.name for arm in (first, second)]
    if labels[0] == labels[1]:
        labels = [str(arm.directory) for arm in (first, second)]
    one, two = (f"{label} run" for label in labels)
    return dataclasses.replace(first, name=one), dataclasses.replace(second, name=two)


def _head(arms: tuple[RunRecord, RunRecord]) -> Html:
    leads = []
    for slot, arm in enumerate(arms, start=1):
        mark = tag("i", classes=f"c{slot} {_STYLES[slot - 1]}")
        leads.append(tag("li", mark, tag("span", tag("strong", arm.directory.name), description(arm))))
    headline, *rest = comparison_verdict(*arms)
    return tag(
        "header",
        tag("p", "flowrl comparison", classes="over"),
        tag("h1", " against ".join(arm.name.removesuffix(" run") for arm in arms)),
        tag("ul", *leads, classes="arms"),
        tag("p", headline.text, classes=f"verdict {headline.tone}"),
        *(tag("p", sentence.text, classes=f"support {sentence.tone}") for sentence in rest),
    )


def _measures(arms: tuple[RunRecord, RunRecord]) -> list[str]:
    """Trained rewards of both, then everything else, in the order of the first run."""
    trained = [name for arm in arms for name in arm.trained_rewards if any(name in other.measures for other in arms)]
    return list(dict.fromkeys([*trained, *arms[0].measures, *arms[1].measures]))


def _scores(arms: tuple[RunRecord, RunRecord]) -> Html:
    found = [{change.name: change for change in changes(arm)} for arm in arms]
    names = _measures(arms)
    rows = []
    for name in names:
        whole = part_of(name, names)
        roles = [
            tag("span", "trained", classes=f"role c{slot}", attributes={"title": f"by the {arm.name}"})
            for slot, arm in enumerate(arms, start=1)
            if name in arm.trained_rewards
        ]
        label = tag("span", name.removeprefix(f"{whole}_") if whole else name, *roles, classes="part" if whole else "")
        known = [measured.get(name) for measured in found]
        start = next(change for change in known if change is not None)
        before = score(start.before, start.before_sem, start.decimals)
        rows.append([label, before, *(_outcome(change) for change in known)])
    return table(["", "Before", *(f"After the {arm.name}" for arm in arms)], rows, classes="scores arms-table")


def _outcome(change: Change | None) -> Html:
    if change is None:
        return tag("span", "not evaluated", classes="part")
    return joined([score(change.after, change.after_sem, change.decimals), moved(change)])


def _overlay(arms: tuple[RunRecord, RunRecord], line: Callable[[RunRecord, int], Series]) -> list[Series]:
    return [line(arm, slot) for slot, arm in enumerate(arms, start=1)]


def _evaluation_charts(arms: tuple[RunRecord, RunRecord]) -> list[Chart]:
    names = _measures(arms)
    found = []
    for name in names:
        trained = [arm.name for arm in arms if name in arm.trained_rewards]
        whole = part_of(name, names)
        note = f"Trained on by the {listed(trained)}." if trained else "" if whole else "Watched, not trained on."
        title = f"{whole}: {name.removeprefix(f'{whole}_')}" if whole else name

        def line(arm: RunRecord, slot: int, name: str = name) -> Series:
            return evaluation_series(arm, name, name=arm.name, slot=slot, style=_STYLES[slot - 1])

        found.append(Chart(title=title, note=note, series=_overlay(arms, line)))

    def diversity(arm: RunRecord, slot: int) -> Series:
        return Series(name=arm.name, points=arm.series("eval/diversity/mean"), slot=slot, style=_STYLES[slot - 1])

    note = "Distance between images of one prompt."
    found.append(Chart(title="Diversity", note=note, series=_overlay(arms, diversity)))
    return found


def _training_charts(arms: tuple[RunRecord, RunRecord]) -> list[Chart]:
    titles = {
        "policy/kl": ("KL to the start", "How far each policy has moved."),
        "policy/clip_fraction": ("Clip fraction", "Share of ratios outside the clip range."),
        "policy/grad_norm": ("Gradient norm", "Before clipping."),
    }
    found = []
    for key, (title, note) in titles.items():

        def line(arm: RunRecord, slot: int, key: str = key) -> Series:
            return Series(name=arm.name, points=arm.series(key), slot=slot)

        found.append(Chart(title=title, note=note, series=_overlay(arms, line), from_zero=True))
    return found


def _samples(arms: tuple[RunRecord, RunRecord]) -> Html:
    both = [arm.sheets() for arm in arms]
    if not all(both):
        return Html("")
    shown = [name for name in ["oracle"] if all(name in sheets[-1].scores for sheets in both)]
    rows: list[tuple[str, Sheet]] = [("before", both[0][0])] if both[0][0].step == 0 else []
    rows += [(arm.name, sheets[-1]) for arm, sheets in zip(arms, both, strict=True)]
    under = f" Under each image: {', then '.join(shown)}." if shown else ""
    steps = listed(
        [
            *(["before training"] if len(rows) > len(arms) else []),
            *(f"after step {sheets[-1].step} of the {arm.name}" for arm, sheets in zip(arms, both, strict=True)),
        ]
    )
    intro = f"The same held-out prompts {steps}. All images in a column start from the same noise.{under}"
    return section("Samples", sample_cards(rows, shown), intro=intro)


def _costs(arms: tuple[RunRecord, RunRecord]) -> Html:
    phases = [{row.name: row.mean for row in phase_rows(arm)} for arm in arms]
    names = [arm.name for arm in arms]
    time = []
    for name in [*PHASES, "everything else"]:
        if any(name in arm for arm in phases):
            time += _cost_row(name, [arm.get(name, 0.0) for arm in phases], duration)
    time += _cost_row("whole step", [mean_of(arm, "time/step_s") for arm in arms], duration)
    time += _cost_row("one evaluation", [arm.get("eval") for arm in phases], duration)
    moved_bytes = []
    for kind in TRAFFIC:
        moved_bytes += _cost_row(kind, [mean_bytes(arm, kind) for arm in arms], size)
    rest = _cost_row("images per second", [mean_of(arm, "speed/images_per_s") for arm in arms], significant)
    for name, words in BUSY.items():
        rest += _cost_row(f"busy: {words}", [mean_of(arm, f"time/{name}_busy_s") for arm in arms], duration)
    rest += _cost_row("peak memory", [peak_memory(arm) for arm in arms], lambda gib: f"{gib:.3g} GiB")
    right = [table(["Bytes per step", *names], moved_bytes), table(["Speed and memory", *names], rest)]
    return tag("div", table(["Time per step", *names], time), tag("div", *right, classes="stack"), classes="columns")


def _cost_row(label: str, values: Sequence[float | None], words: Callable[[float], str]) -> list[list[str]]:
    if all(value is None for value in values):
        return []
    return [[label, *("" if value is None else words(value) for value in values)]]


def _differences(arms: tuple[RunRecord, RunRecord]) -> Html:
    if arms[0].config is None or arms[1].config is None:
        return Html("")
    rows = []
    for key, (one, two) in diff(arms[0].config, arms[1].config).items():
        label = key if key in MAY_DIFFER else joined([key, tag("span", " not matched", classes="bad")])
        rows.append([label, config_value(one), config_value(two)])
    return table(["Key", *(arm.name for arm in arms)], rows, classes="keys")


def _origin(arms: tuple[RunRecord, RunRecord]) -> list[Html]:
    found = [code("\n".join(arm.starts[0].command for arm in arms if arm.starts))]
    for arm in arms:
        where = facts([("Directory", str(arm.directory)), *origin_facts(arm)])
        found.append(
            folded(f"Where the {arm.name} was made, and its whole configuration", where, code(arm.config_text))
        )
    return found
