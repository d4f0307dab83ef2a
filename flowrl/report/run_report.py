"""The page about one run: what it was, what it learned, what it cost, and whether its numbers can be trusted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flowrl.base.atomic_file import write_atomically
from flowrl.config import RunConfig, diff
from flowrl.registry import part_of
from flowrl.report.charts import Chart, Series, running_mean, sparkline
from flowrl.report.costs import cost_facts, phase_rows, traffic_rows
from flowrl.report.page import Html, code, facts, folded, joined, page, sample_cards, section, share_bar, table, tag
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
from flowrl.report.run_record import RunRecord, read_run
from flowrl.report.verdict import changes, verdict, violations
from flowrl.report.wording import duration, listed

_CROWDED = 200  # steps, above which a curve of single steps turns into a smear
_WINDOW = 9  # steps of the running mean over the training reward, which jumps with the prompts of each step


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page about a run, finished or not, to `out` (default: report.html in it) and return its path.

    Raises ConfigError where `run_dir` holds no run.
    """
    record = read_run(run_dir)
    out = out or run_dir / "report.html"
    write_atomically(out, render_report(record).encode())
    return out


def render_report(record: RunRecord) -> Html:
    """The page as text."""
    return page(
        f"{record.name} - flowrl run report",
        _head(record),
        warnings(violations(record)),
        section(
            "Held-out evaluation", scores_table(record), _evaluation_charts(record), intro=_evaluation_note(record)
        ),
        _samples(record),
        section("Training", charts(_training_charts(record)), intro=_TRAINING_NOTE),
        section("Time, traffic and memory", *_costs(record)),
        section("How it was made", *_origin(record)),
        glossary(sorted(record.keys())),
        footer(),
    )


_REWARD_NOTE = "The weighted sum before normalisation. Faint: each step. Strong: mean of the steps before."
_TRAINING_NOTE = (
    "One point per training step. Every step draws other prompts, so its reward jumps; the evaluation above "
)
_TRAINING_NOTE += "is the measure of learning, these curves are for judging how the optimisation went."


def _head(record: RunRecord) -> Html:
    headline, *rest = verdict(record)
    planned = record.planned_steps
    complete = planned is not None and record.last_step >= planned
    state = "complete" if complete else f"stopped at step {record.last_step}" + (f" of {planned}" if planned else "")
    return tag(
        "header",
        tag(
            "p", "flowrl run report", tag("span", state, classes="state good" if complete else "state"), classes="over"
        ),
        tag("h1", record.name),
        tag("p", description(record), classes="lead"),
        tag("p", headline.text, classes=f"verdict {headline.tone}"),
        *(tag("p", sentence.text, classes=f"support {sentence.tone}") for sentence in rest),
    )


def _evaluation_note(record: RunRecord) -> str:
    if record.config is None or not record.measures:
        return ""
    settings = record.config.eval
    return (
        f"{settings.num_prompts * settings.samples_per_prompt} images of {settings.num_prompts} prompts that training "
        "never sees, with the same noise every time. The number after each \u00b1 is one standard error, for a change "
        "that of the differences prompt by prompt; beyond two it counts as clear."
    )


def scores_table(record: RunRecord) -> Html:
    """Every measure before and after; parts of a measure stand under it."""
    found = changes(record)
    names = [change.name for change in found]
    single = all(change.first_step == change.last_step for change in found)
    rows = []
    for change in found:
        whole = part_of(change.name, names)
        label = change.name.removeprefix(f"{whole}_") if whole else change.name
        role = tag("span", "trained", classes="role") if change.trained else ""
        name = tag("span", label, role, classes="part" if whole else "")
        before = score(change.before, change.before_sem, change.decimals)
        if single:
            rows.append([name, before])
            continue
        trend = sparkline(record.series(f"eval/{change.name}/mean"), 1 if change.trained else 0)
        rows.append([name, before, score(change.after, change.after_sem, change.decimals), moved(change), trend])
    if single:
        return table(["", "Score"], rows, classes="scores")
    first, last = found[0].first_step, max(change.last_step for change in found)
    return table(["", f"Step {first}", f"Step {last}", "Change", "Trend"], rows, classes="scores")


def _evaluation_charts(record: RunRecord) -> Html:
    measures = record.measures
    if max((len(record.series(f"eval/{name}/mean")) for name in measures), default=0) < 2:
        return Html("")
    found = []
    for name in measures:
        if part_of(name, measures) is not None:
            continue
        trained = name in record.trained_rewards
        note = "The reward that was trained on." if trained else "Watched, not trained on."
        line = evaluation_series(record, name, name=name, slot=1 if trained else 2)
        found.append(Chart(title=name, note=note, series=[line], large=trained))
        parts = [part for part in measures if part_of(part, measures) == name]
        lines = [
            evaluation_series(record, part, name=part.removeprefix(f"{name}_"), slot=1 + index % 6)
            for index, part in enumerate(parts)
        ]
        found.append(Chart(title=f"{name}, part by part", series=lines))
    diversity = Series(name="diversity", points=record.series("eval/diversity/mean"), slot=0, style="marked")
    note = "Distance between images of one prompt; a steady fall means that they become alike."
    found.append(Chart(title="Diversity", note=note, series=[diversity]))
    return charts(found)


def _samples(record: RunRecord) -> Html:
    sheets = record.sheets()
    if not sheets:
        return Html("")
    shown = [name for name in [*record.trained_rewards[:1], "oracle"] if name in sheets[-1].scores]
    under = f" Under each image: {', then '.join(shown)}." if shown else ""
    when = listed([f"step {sheet.step}" for sheet in sheets])
    intro = f"Held-out prompts at {when}. All images in a column start from the same noise.{under}"
    first = "before" if sheets[0].step == 0 else f"step {sheets[0].step}"
    labels = [first, "after"][: len(sheets)]
    return section("Samples", sample_cards(list(zip(labels, sheets, strict=True)), shown), intro=intro)


def _training_charts(record: RunRecord) -> list[Chart]:
    def line(key: str) -> list[Series]:
        name, points = key.split("/", 1)[1], record.series(key)
        return _smoothed(name, points) if len(points) > _CROWDED else [Series(name=name, points=points)]

    drift = _drift_by_sampler_step(record)
    found = [
        Chart(title="Reward", note=_REWARD_NOTE,
              series=_smoothed("reward", record.series("reward/total/mean"))),
        Chart(title="KL to the start", note="How far the policy has moved.", series=line("policy/kl"), from_zero=True),
        Chart(title="Diversity while training", note="Distance between the images of one prompt of the step.",
              series=line("policy/diversity")),
        Chart(title="Replay ratio deviation", note="Before the first optimizer step; 0 on the CPU, tiny on a GPU.",
              series=[Series(name="deviation", points=record.series("policy/ratio_absdev_max"))], from_zero=True),
        Chart(title="Deviation by sampler step", note="The largest of the run at each trained sampler step.",
              series=[drift] if any(value for _, value in drift.points) else [], x_name="sampler step", from_zero=True),
        Chart(title="Clip fraction", note="Share of ratios outside the clip range.",
              series=line("policy/clip_fraction"), from_zero=True),
        Chart(title="Gradient norm", note="Before clipping.", series=line("policy/grad_norm"), from_zero=True),
        Chart(title="Advantage size", note="Mean over samples; 0 would be no signal.",
              series=line("policy/advantage_absmean"), from_zero=True),
        Chart(title="Groups without signal", note="All samples of the group scored the same.",
              series=line("policy/zero_variance_groups"), from_zero=True),
        Chart(title="Seconds per step", series=line("time/step_s"), from_zero=True),
        Chart(title="Memory", note="GiB, driver and actors together.",
              series=[Series(name="peak so far", points=record.series("memory/peak_gib"))], from_zero=True),
    ]  # fmt: skip
    return found


def _smoothed(name: str, points: list[tuple[int, float]]) -> list[Series]:
    """A jumping curve, faint, with its running mean over it."""
    window = max(_WINDOW, len(points) // _CROWDED * _WINDOW)
    mean = Series(name=f"{name}, mean of {window} steps", points=running_mean(points, window))
    return [Series(name=name, points=points, style="faint"), mean]


def _drift_by_sampler_step(record: RunRecord) -> Series:
    prefix = "policy/ratio_absdev_step_"
    indices = sorted(int(key.removeprefix(prefix)) for key in record.keys() if key.startswith(prefix))
    points = [(index, max(value for _, value in record.series(f"{prefix}{index}"))) for index in indices]
    return Series(name="deviation", points=points, style="marked")


def _costs(record: RunRecord) -> list[Html]:
    phases = [[row.name, duration(row.mean), duration(row.total), _share(row.share)] for row in phase_rows(record)]
    moved = [[row.name, row.mean, row.total] for row in traffic_rows(record)]
    return [
        table(["Phase", "Each time", "In all", "Share of the run"], phases, classes="wide"),
        tag("div", facts(cost_facts(record)), table(["Moved", "Per step", "In all"], moved), classes="columns"),
    ]


def _share(share: float) -> Html:
    return joined([share_bar(share), f"{share:.0%}" if share >= 0.005 else "<1%"])


def _origin(record: RunRecord) -> list[Html]:
    found = []
    if record.starts:
        found.append(code("\n".join(start.command for start in record.starts)))
        found.append(facts(origin_facts(record)))
        found.append(folded("Package versions", facts(list(record.starts[0].packages.items()))))
    if record.config is not None:
        defaults = RunConfig(run=dataclasses.replace(RunConfig().run, name=record.name))
        differing = [
            [key, config_value(default), config_value(value)]
            for key, (default, value) in diff(defaults, record.config).items()
        ]
        summary = f"What differs from the defaults ({len(differing)} keys)"
        found.append(folded(summary, table(["Key", "Default", "This run"], differing, classes="keys")))
    found.append(folded("The whole configuration", code(record.config_text)))
    return found
