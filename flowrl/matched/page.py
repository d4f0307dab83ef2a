"""The page about an experiment: the question, the answer, and everything that the answer rests on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from flowrl.base.amounts import count
from flowrl.base.atomic_file import write_atomically
from flowrl.config import ConfigError
from flowrl.matched.at_end import last_step
from flowrl.matched.comparison import Findings, findings
from flowrl.matched.curves import AXES, difference_charts, measure_charts, style, training_charts
from flowrl.matched.files import write_files
from flowrl.matched.grids import picture_cards
from flowrl.matched.markdown import as_markdown
from flowrl.matched.measures import measures_of
from flowrl.matched.reading import loose_runs, read_experiment_folder
from flowrl.matched.record import MatchedRecord
from flowrl.matched.tables import (
    checkpoints_table,
    commands,
    costs,
    differences_table,
    keep_table,
    scores_table,
    turnings_table,
)
from flowrl.matched.tensorboard import write_tensorboard
from flowrl.matched.verdict import LABELS, Verdict, verdict
from flowrl.report.page import Html, code, facts, folded, page, section, switched, tag, time_cards
from flowrl.report.run_page import charts, description, footer, glossary, origin_facts, warnings
from flowrl.report.wording import listed


def write_experiment_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page about an experiment's folder, and its numbers and figures beside it; returns the page's path.

    The page is report.html in the folder unless `out` says where; the rest is in a folder of the page's name. Raises
    ConfigError where there is no experiment, or nothing to compare yet.
    """
    return _write(read_experiment_folder(folder), out or folder / "report.html")


def write_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the same page about two runs or more that no experiment made; returns its path.

    It is compare-FIRST-SECOND.html beside the last one unless `out` says where. Raises ConfigError where one is no run,
    or one is given twice.
    """
    name = "-".join(["compare", *(run.name for run in runs)])
    return _write(loose_runs(runs), out or runs[-1].parent / f"{name}.html")


def _write(record: MatchedRecord, out: Path) -> Path:
    if out.suffix != ".html":
        raise ConfigError(f"--out must be a page and end in .html, got {out}; its numbers go into a folder beside it")
    found = findings(record, measures_of(record))
    said, beside = verdict(found), out.with_suffix("")
    write_files(found, said, beside)
    write_tensorboard(found, beside / "tensorboard")
    write_atomically(out, render(found, said, beside).encode())
    return out


def render(found: Findings, said: Verdict, beside: Path) -> Html:
    """The page as text; `beside` is the folder of its numbers and figures."""
    record = found.record
    return page(
        f"{record.question} - flowrl report",
        _head(found, said),
        warnings([*record.problems, *_left_out(found)]),
        section("At the end", scores_table(found), intro=_end_note(found)),
        section(
            "Curves",
            switched("Horizontal axis", [(axis, charts(measure_charts(found, axis))) for axis in AXES]),
            intro=_curves_note(found),
        ),
        section("Arm against arm", *_checkpoints(found), charts(list(difference_charts(found))), intro=_MATCHED_NOTE),
        section("Over-optimisation, and what to keep", *_turning(found), intro=_TURNING_NOTE),
        section("Images", time_cards(picture_cards(found), ring="the checkpoint to keep"), intro=_images_note(record)),
        section(
            "Training", switched("Horizontal axis", [(axis, charts(training_charts(record, axis))) for axis in AXES])
        ),
        section("Cost", costs(record), intro=_cost_note(record)),
        section("How it was made", *_origin(record)),
        section("To paste", folded("The answer as Markdown", code(as_markdown(found, said))), intro=_beside(beside)),
        glossary(sorted({key for run in record.runs for key in run.keys()})),
        footer(),
    )


_MATCHED_NOTE = (
    "Above zero the first arm is ahead. Prompts and noise are the same in both, so scores are compared prompt "
)
_MATCHED_NOTE += (
    "by prompt. Bands are 95 % bootstrap intervals over prompts, of the models that were trained; faint lines are "
    "single seeds. Of twenty such intervals one misses the truth."
)
_TURNING_NOTE = (
    "Marked is the first step from which on, to the end, the watched measure is clearly below its best before, and "
    "what was trained on clearly above where it stood then. What is measured against a best step, or gains by it, is "
)
_TURNING_NOTE += "never what chose that step: other prompts and other seeds choose, blind to it."


def _head(found: Findings, said: Verdict) -> Html:
    record = found.record
    leads = []
    for place, arm in enumerate(record.arms):
        mark = tag("i", classes=f"c{place + 1} {style(place)}")
        runs = len(arm.runs)
        text = description(arm.first) + (f" That was the first of its {runs} runs." if runs > 1 else "")
        leads.append(tag("li", mark, tag("span", tag("strong", arm.name), text)))
    tone = {"settled": "good", "undecided": "bad"}.get(said.outcome, "")
    return tag(
        "header",
        tag("p", "flowrl experiment", tag("span", LABELS[said.outcome], classes=f"state {tone}"), classes="over"),
        tag("h1", record.question),
        tag("p", said.headline.text, classes=f"verdict {said.headline.tone}"),
        *(tag("p", sentence.text, classes=f"support {sentence.tone}") for sentence in said.support),
        tag("ul", *leads, classes="arms"),
    )


def _left_out(found: Findings) -> list[str]:
    """What measures lack, in words."""
    lines, last = [], max(run.last_step for run in found.record.runs)
    if 0 < last_step(found) < last:
        lines.append(f"The answer is taken at step {last_step(found)}, not {last}: not every run was evaluated later.")
    chosen = found.decides.name if found.decides is not None else ""
    for name in takewhile(lambda one: one != chosen, found.record.decided_by if chosen else ()):
        lines.append(f"{name} was to decide, but was not taken at step {last_step(found)} in every run.")
    if found.record.judged and not any(measure.source == "judge" for measure in found.measures):
        lines.append("What the judge said is not used: it has not seen images of the same steps of every run.")
    for measure in found.measures:
        if any(measure.missing):
            lacking = [f"{count} of {arm}" for arm, count in zip(measure.arms, measure.missing, strict=True) if count]
            lines.append(f"{measure.title} lacks scores: {listed(lacking)}. These samples are left out of every run.")
        if measure.dropped:
            lines.append(
                f"{measure.title} leaves out {count(measure.dropped, 'prompt')} that some run has no score of."
            )
    return lines


def _end_note(found: Findings) -> str:
    seeds = [str(seed) for seed in found.record.seeds]
    over = f"means over seeds {listed(seeds)}" if len(seeds) > 1 else "one run each"
    return (
        f"After {count(last_step(found), 'step')}, {over}. The difference is that of the first arm to the "
        "other; small: the change from before training. Intervals are of 95 % over prompts; coloured is what excludes "
        "zero, a difference in the colour of the arm that is ahead."
    )


def _curves_note(found: Findings) -> str:
    several = len(found.record.seeds) > 1
    bands = " Lines are means over seeds, bands reach from the lowest seed to the highest." if several else ""
    seen = next((len(measure.prompts) for measure in found.measures if measure.source == "judge"), 0)
    judge = f" The judge is {found.record.judge}, on {count(seen, 'prompt')}." if seen else ""
    return (
        f"Held-out prompts that training never sees, with the same noise every time and in every arm.{bands}{judge} "
        "Hours are of training, evaluations not counted."
    )


def _images_note(record: MatchedRecord) -> str:
    return (
        "The first sample of each of the first held-out prompts, not chosen by anyone. All images of a card start from "
        f"the same noise.{f' Runs of seed {record.seeds[0]}.' if len(record.seeds) > 1 else ''}"
    )


def _cost_note(record: MatchedRecord) -> str:
    runs = len(record.seeds)
    return f"Means over the training steps{f' of {runs} runs each' if runs > 1 else ''}."


def _beside(folder: Path) -> str:
    return (
        f"The numbers are in {folder}: curves.csv, differences.csv and result.json; figures has the charts as SVG. "
        f"tensorboard --logdir {folder / 'tensorboard'} lays the arms over each other, under Custom Scalars."
    )


def _checkpoints(found: Findings) -> list[Html]:
    """What decides in the open, the rest folded."""
    shown: list[Html] = []
    rest: list[Html] = []
    for measure in found.measures:
        for pair in found.of(measure):
            title = measure.title if len(found.record.arms) == 2 else f"{measure.title}: {' and '.join(pair.names)}"
            heading = tag("h3", title)
            (shown if measure is found.decides else rest).append(tag("div", heading, checkpoints_table(pair)))
    return [*shown, folded("Every other measure at every checkpoint", *rest)] if rest else shown


def _turning(found: Findings) -> list[Html]:
    if not any(measure.moves for measure in found.measures):
        return []
    shown = [turnings_table(found) or tag("p", "No trained reward is seen to rise while a watched measure falls.")]
    if found.unexamined:
        shown.append(tag("ul", *(tag("li", text) for text in found.unexamined), classes="plain"))
    return [*shown, keep_table(found)]


def _origin(record: MatchedRecord) -> list[Html]:
    found = [commands(record), folded("How the arms differ", differences_table(record))]
    if record.source:
        found.append(folded("The experiment", code(record.source)))
    for run in record.runs:
        where = facts([("Directory", str(run.directory)), *origin_facts(run)])
        found.append(
            folded(f"Where {run.directory.name} was made, and its whole configuration", where, code(run.config_text))
        )
    return found
