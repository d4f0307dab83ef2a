"""The tables of an experiment's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowrl.base.amounts import size
from flowrl.config import RunConfig, diff
from flowrl.matched.at_end import end_rows, last_step
from flowrl.matched.comparison import Comparison, Findings
from flowrl.matched.measures import Measure
from flowrl.matched.paired import Difference
from flowrl.matched.record import Arm, MatchedRecord
from flowrl.matched.turning import Kept, Turning
from flowrl.matched.verdict import bracketed, decimals_of
from flowrl.matrix.folder import EXPERIMENT_FILE
from flowrl.report.costs import BUSY, PHASES, TRAFFIC, mean_of, peak_memory, phase_rows
from flowrl.report.page import Html, code, joined, table, tag
from flowrl.report.run_page import config_value
from flowrl.report.run_record import RunRecord
from flowrl.report.wording import duration, fixed, significant


def scores_table(found: Findings) -> Html:
    """Every measure before and after in each arm, and the differences of the first arm to the others at the end."""
    arms = [arm.name for arm in found.record.arms]
    rows = []
    for row in end_rows(found):
        after = [joined([tag("span", value), _gained(one, row.decimals)]) for value, one in row.after]
        differences = [_apart(pair, pair.at[-1], row.decimals) for pair in row.pairs]
        rows.append([_label(row.measure, found), *differences, *after, row.before])
    heads = ["Difference"] if len(arms) == 2 else [f"{arms[0]} \u2212 {other}" for other in arms[1:]]
    return table(["", *heads, *arms, "Before"], rows, classes="scores arms-table")


def _label(measure: Measure, found: Findings) -> Html:
    roles = [
        tag("span", "trained", classes=f"role c{place + 1}", attributes={"title": f"by {arm}"})
        for place, arm in enumerate(measure.arms)
        if arm in measure.trained_by
    ]
    if measure is found.decides:
        roles.append(tag("span", "decides", classes="role decides"))
    text = measure.title.rpartition(": ")[2] if measure.part_of else measure.title
    if measure.steps[-1] != last_step(found):
        text += f" (step {measure.steps[-1]})"
    return tag("span", text, *roles, classes="part" if measure.part_of else "")


def _gained(one: Difference | None, decimals: int) -> Html:
    """Of one arm: green up, red down, where that is clear."""
    if one is None:
        return Html("")
    return _interval(one, decimals, ("good" if one.mean > 0 else "bad") if one.clear else "neutral")


def _apart(pair: Comparison, one: Difference, decimals: int) -> Html:
    """Between arms: in the colour of the arm that is ahead, where that is clear."""
    ahead = pair.first if one.mean > 0 else pair.second
    return _interval(one, decimals, f"ahead c{ahead + 1}" if one.clear else "neutral")


def _interval(one: Difference, decimals: int, classes: str) -> Html:
    interval = tag("span", f" {bracketed(one.prompts, decimals)}", classes="margin")
    return tag("span", fixed(one.mean, decimals, signed=True), interval, classes=classes)


def checkpoints_table(pair: Comparison) -> Html:
    """One measure of two arms at every matched checkpoint."""
    measure, decimals = pair.measure, decimals_of(pair.at[-1])
    several = len(measure.seeds) > 1
    rows = []
    for place, (step, one) in enumerate(zip(measure.steps, pair.at, strict=True)):
        if step == 0:
            continue  # the same model in both
        row = [str(step), *(fixed(measure.mean(arm, place), decimals) for arm in (pair.first, pair.second))]
        row += [_apart(pair, one, decimals), f"{100 * one.ahead:.0f} %"]
        if several:
            by_seed = ", ".join(fixed(value, decimals, signed=True) for value in one.by_seed)
            row += [by_seed, bracketed(one.seeds, decimals), bracketed(one.both, decimals)]
        rows.append(row)
    first, second = pair.names
    head = ["Step", first, second, f"{first} \u2212 {second}", "Ahead on"]
    return table(head + (["By seed", "Over seeds", "Over both"] if several else []), rows, classes="numbers")


def turnings_table(found: Findings) -> Html:
    """Where a trained reward rises while a watched measure falls."""
    rows = [_turning(one, found) for one in found.turnings]
    head = ["Arm", "Still rises", "Falls", "Best at step", "Clearly below from step", "By the end", "Against the start"]
    return table(head, rows, classes="numbers")


def _turning(one: Turning, found: Findings) -> list[str]:
    decimals = decimals_of(one.fall)
    title = next(measure.title for measure in found.measures if measure.name == one.watched)
    moved = [_gained(one.fall, decimals), _gained(one.from_start, decimals)]
    return [one.arm, one.trained, title, str(one.best), str(one.step), *moved]


def keep_table(found: Findings) -> Html:
    """The checkpoint of each run at the step to keep, and whether it is still there."""
    rows = []
    for place, one in enumerate(found.keep):
        assert found.decides is not None
        arm = found.record.arms[place]
        for index, seed in enumerate(found.decides.seeds):
            step = found.decides.steps.index(one.step)
            value = float(found.decides.values[place, index, step].mean())
            decimals = decimals_of(one.gain)
            rows.append([arm.runs[seed].directory.name, str(one.step), fixed(value, decimals), _where(arm, seed, one)])
    name = found.decides.title if found.decides is not None else ""
    return table(["Run", "Step", name, "Checkpoint"], rows, classes="keys")


def _where(arm: Arm, seed: int, one: Kept) -> str:
    run = arm.runs[seed]
    if one.step == 0:
        return "none: no checkpoint is better than the base model"
    path = run.directory / "checkpoints" / f"step_{one.step:06d}"
    if path.is_dir():
        return str(path)
    if one.step == run.last_step and (run.directory / "lora").is_dir():
        return str(run.directory / "lora")
    return "no longer on disk: train again with a larger checkpoint.keep, and checkpoint.every as eval.every"


def costs(record: MatchedRecord) -> Html:
    """Time, bytes and memory of each arm; means over its runs."""
    names = [arm.name for arm in record.arms]
    arms = [list(arm.runs.values()) for arm in record.arms]
    phases = [[{row.name: row.mean for row in phase_rows(run)} for run in runs] for runs in arms]
    time = []
    for name in [*PHASES, "everything else"]:
        time += _row(name, [_mean([run.get(name, 0.0) for run in runs]) for runs in phases], duration, zero=False)
    time += _row("whole step", _of_runs(arms, lambda run: mean_of(run, "time/step_s")), duration)
    time += _row("one evaluation", [_mean([run.get("eval") for run in runs]) for runs in phases], duration)
    time += _row("whole run", _of_runs(arms, lambda run: sum(row.total for row in phase_rows(run))), duration)
    moved = []
    for kind in TRAFFIC:
        moved += _row(kind, [_mean([mean_of(run, f"bytes/{kind}") for run in runs]) for runs in arms], size)
    rest = _row("images per second", _of_runs(arms, lambda run: mean_of(run, "speed/images_per_s")), significant)
    for name, words in BUSY.items():
        busy = [_mean([mean_of(run, f"time/{name}_busy_s") for run in runs]) for runs in arms]
        rest += _row(f"busy: {words}", busy, duration)
    rest += _row("peak memory", _of_runs(arms, peak_memory), lambda gib: f"{gib:.3g} GiB")
    right = [table(["Bytes per step", *names], moved), table(["Speed and memory", *names], rest)]
    return tag("div", table(["Time per step", *names], time), tag("div", *right, classes="stack"), classes="columns")


def _of_runs(arms: Sequence[Sequence[RunRecord]], value: Callable[[RunRecord], float | None]) -> list[float | None]:
    return [_mean([value(run) for run in runs]) for runs in arms]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _row(
    label: str, values: Sequence[float | None], words: Callable[[float], str], *, zero: bool = True
) -> list[list[str]]:
    if all(value is None or (value == 0 and not zero) for value in values):
        return []
    return [[label, *("" if value is None else words(value) for value in values)]]


def differences_table(record: MatchedRecord) -> Html:
    """The keys in which the arms differ, by their runs of the lowest seed."""
    configs = [(arm.name, arm.runs[record.seeds[0]].config) for arm in record.arms]
    known: list[tuple[str, RunConfig]] = [(name, config) for name, config in configs if config is not None]
    if len(known) < len(configs):
        return Html("")
    first = known[0][1]
    others = [diff(first, config) for _, config in known[1:]]
    keys = dict.fromkeys(key for found in others for key in found if not key.startswith(("run.name", "run.dir")))
    rows = []
    for key in keys:
        value = next(found[key][0] for found in others if key in found)
        rows.append(
            [key, config_value(value), *(config_value(found[key][1] if key in found else value) for found in others)]
        )
    return table(["Key", *(name for name, _ in known)], rows, classes="keys")


def commands(record: MatchedRecord) -> Html:
    """What makes all of it again, then what was typed for each run, resumed ones each time."""
    again = []
    if record.source:
        how = "--judge oracle" if record.judge == "oracle" else f"--endpoint URL --model {record.judge}"
        again = [f"flowrl matrix {record.folder / EXPERIMENT_FILE} --run --out runs/again"]
        again += [f"flowrl judge runs/again {how}", "flowrl report runs/again"] if record.judge else []
    typed = dict.fromkeys(start.command for run in record.runs for start in run.starts)
    return joined(code("\n".join(lines)) for lines in (again, list(typed)) if lines)
