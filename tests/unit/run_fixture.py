"""Writes directories that look like those of real runs, for tests of whatever reads them."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from flowrl.base.environment import Environment, write_environments
from flowrl.config import EvalSection, RewardSpec, RewardsSection, RunConfig, RunSection, dump
from flowrl.evaluation_record import EvaluationRecord

PROMPTS = [
    "a large red circle above a small blue square on sand",
    "a small yellow triangle on slate",
    "a large green square left of a small pink circle on snow",
    "a small purple circle below a large yellow triangle on sky",
    "a large blue triangle on sand",
    "a small pink square right of a large green circle on slate",
    "a large purple square on sky",
    "a small red triangle above a large yellow circle on snow",
]
_COLOURS = {
    "red": (214, 48, 49),
    "yellow": (246, 201, 44),
    "green": (38, 150, 84),
    "blue": (44, 88, 214),
    "purple": (132, 62, 168),
    "pink": (244, 138, 186),
    "sand": (232, 214, 176),
    "snow": (244, 246, 250),
    "slate": (72, 80, 94),
    "sky": (168, 208, 240),
}
_DIRECTIONS = {"above": (0, -1), "below": (0, 1), "left": (-1, 0), "right": (1, 0)}
PARTS = ("attributes", "relation", "shape", "cleanliness")


@dataclass(frozen=True, kw_only=True)
class FakeRun:
    """How a written run went.

    Example: ``FakeRun(oracle_gain=-0.05)`` is a run that games its reward.
    """

    name: str = "ditreward"
    reward: str = "dit_reward"
    other: str = "hpsv3"
    steps: int = 60
    stop: int | None = None  # the last step on record; None = all
    every: int = 10
    gain: float = 0.8  # of the trained reward over the run
    oracle_gain: float = 0.05
    ratio: float = 0.0
    prompts: tuple[str, ...] = tuple(PROMPTS)
    columns: int = 4
    image_size: int = 64
    seed: int = 0
    paired: bool = True  # scores are kept prompt by prompt, and so are the errors of differences


def config_of(run: FakeRun, parent: Path) -> RunConfig:
    """The configuration that such a run would have."""
    return RunConfig(
        run=RunSection(name=run.name, dir=str(parent / run.name), steps=run.steps, seed=run.seed),
        rewards=RewardsSection(
            train=[RewardSpec(name=run.reward)],
            watch=[RewardSpec(name=name) for name in (run.other, "oracle", *(f"oracle_{part}" for part in PARTS))],
        ),
        eval=EvalSection(every=run.every, grid_prompts=len(run.prompts)),
    )


def write_run(parent: Path, run: FakeRun) -> Path:
    """Write a run directory into `parent` and return its path."""
    directory = parent / run.name
    (directory / "samples").mkdir(parents=True)
    (directory / "config.yaml").write_text(dump(config_of(run, parent)), encoding="utf-8")
    write_environments(directory / "env.json", [environment(run)])
    noise = random.Random(run.reward)
    stop = run.steps if run.stop is None else run.stop
    lines = []
    for step in range(stop + 1):
        values = training_values(run, step, noise) if step else {}
        if step % run.every == 0 or step == run.steps:
            values |= evaluation_values(run, step, noise if step else random.Random(0))
            write_sheet_files(directory / "samples", run, step)
            if run.paired:
                write_scores(directory / "evaluations", run, step, values)
        lines.append(json.dumps({"step": step} | values) + "\n")
    (directory / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory


def environment(run: FakeRun) -> Environment:
    """Where such a run ran."""
    return Environment(
        started="2026-01-31T15:45:00+00:00",
        command=f"flowrl train configs/pocket/{run.name}.yaml run.seed={run.seed}",
        pid=4242,
        python="3.11.9",
        platform="Linux-6.1-x86_64-with-glibc2.36",
        cpus=2,
        memory_gib=15.6,
        gpus=[],
        packages={"torch": "2.8.0", "diffusers": "0.35.1", "ray": "2.48.0"},
        git_commit="8f14e45fceea167a5a36dedd4bea2543c8f9a1b2",
        git_dirty=False,
    )


def _progress(run: FakeRun, step: int) -> float:
    return 1 - math.exp(-2.5 * step / max(run.steps, 1))


def training_values(run: FakeRun, step: int, noise: random.Random) -> dict[str, float]:
    """What a training step logs."""
    mean = 1.2 + run.gain * _progress(run, step) + noise.gauss(0, 0.25)
    phases = {"encode": 0.01, "rollout": 2.1, "score": 0.4, "advantages": 0.01, "update": 4.6, "sync": 0.05}
    times = {f"time/{name}_s": seconds * noise.uniform(0.95, 1.05) for name, seconds in phases.items()}
    values = {
        f"reward/{run.reward}/mean": mean,
        f"reward/{run.reward}/std": 0.9,
        f"reward/{run.reward}/invalid": 0.0,
        "reward/total/mean": mean,
        "policy/loss": noise.gauss(0, 1e-3),
        "policy/policy_loss": noise.gauss(0, 1e-3),
        "policy/kl": 0.02 * _progress(run, step) * noise.uniform(0.9, 1.1),
        "policy/ratio_absdev_max": run.ratio,
        "policy/logp_absdiff_max": run.ratio,
        "policy/ratio_mean": 1 + noise.gauss(0, 1e-5),
        "policy/clip_fraction": 0.3 + 0.2 * _progress(run, step) * noise.uniform(0.9, 1.1),
        "policy/grad_norm": 0.8 * noise.uniform(0.6, 1.5),
        "policy/advantage_absmean": 0.78 * noise.uniform(0.95, 1.05),
        "policy/zero_variance_groups": 0.0,
        "policy/version": 2.0 * step,
        **{f"policy/ratio_absdev_step_{i}": run.ratio * (i + 1) / 9 for i in range(9)},
        **times,
        "time/step_s": sum(times.values()) + 0.12,
        "time/rollout_busy_s": 4.1,
        "time/score_busy_s": 1.2 if run.reward == "dit_reward" else 2.9,
        "time/decode_busy_s": 0.0 if run.reward == "dit_reward" else 0.9,
        "bytes/trajectories": 31_457_280.0,
        "bytes/weights": 1_228_800.0,
        "memory/driver_gib": 0.6,
        "memory/actors_gib": 5.2 + 0.002 * step,
        "memory/peak_gib": 5.9 + 0.002 * step,
        "count/images": 192.0,
    }
    return values | {"speed/images_per_s": 192 / values["time/step_s"], "time/checkpoint_s": 0.0}


def evaluation_values(run: FakeRun, step: int, noise: random.Random) -> dict[str, float]:
    """What an evaluation logs; before training it depends on nothing but the measures."""
    done = _progress(run, step)
    gains = {run.reward: run.gain, run.other: run.gain / 4, "oracle": run.oracle_gain}
    starts = {"dit_reward": 1.2, "hpsv3": 3.4, "oracle": 0.58}
    for index, part in enumerate(PARTS):
        starts[f"oracle_{part}"] = 0.5 + 0.07 * index
        gains[f"oracle_{part}"] = run.oracle_gain * (index + 0.5) / 2
    values = {"time/eval_s": 6.4 * noise.uniform(0.95, 1.05), "eval/diversity/mean": 0.93 - 0.06 * done}
    for name in sorted(starts):
        error = 0.008 if name.startswith("oracle") else 0.04
        jitter = noise.gauss(0, error / 3) if step else 0.0
        values |= {
            f"eval/{name}/mean": starts[name] + gains.get(name, 0.1) * done + jitter,
            f"eval/{name}/std": 16 * error,
            f"eval/{name}/sem": error,
        }
        if step and run.paired:
            gain = values[f"eval/{name}/mean"] - starts[name]
            values |= {f"eval/{name}/gain": gain, f"eval/{name}/gain_sem": error / 4}
    return values


def write_scores(directory: Path, run: FakeRun, step: int, values: dict[str, float]) -> None:
    """Every score of an evaluation: prompts differ by far more than a prompt does between two runs."""
    noise = random.Random(f"{run.reward} {run.seed} {step}" if step else "before training")
    scores = {}
    for name in (key.split("/")[1] for key in values if key.startswith("eval/") and key.endswith("/sem")):
        own = [noise.gauss(0, 0.02) for _ in range(64)]
        means = [values[f"eval/{name}/mean"] + 0.3 * math.sin(i) + own[i] for i in range(64)]
        off = math.fsum(means) / 64 - values[f"eval/{name}/mean"]
        scores[name] = [[mean - off + delta for delta in (-0.1, -0.05, 0.05, 0.1)] for mean in means]
    mean = values["eval/diversity/mean"]
    diversity = [mean + 0.1 * math.sin(i) - 0.1 * math.fsum(map(math.sin, range(64))) / 64 for i in range(64)]
    prompts = [f"prompt {i}" for i in range(64)]
    EvaluationRecord(step=step, prompts=prompts, scores=scores, diversity=diversity).write(directory)


def write_sheet_files(directory: Path, run: FakeRun, step: int) -> None:
    """A picture of each prompt in each column, which gets sharper as the run goes on, and its made-up scores."""
    size, done = run.image_size, _progress(run, step)
    sheet = Image.new("RGB", (run.columns * size, len(run.prompts) * size))
    for row, prompt in enumerate(run.prompts):
        for column in range(run.columns):
            sheet.paste(draw(prompt, size, done, random.Random(97 * row + column)), (column * size, row * size))
    sheet.save(directory / f"step_{step:06d}.png")
    rows, columns = range(len(run.prompts)), range(run.columns)
    scores = {
        run.reward: [[1.2 + done * run.gain + 0.1 * (row - column) for column in columns] for row in rows],
        run.other: [[1.2 + done * run.gain / 4 + 0.1 * (row - column) for column in columns] for row in rows],
        "oracle": [[0.5 + 0.02 * column + 0.1 * done for column in columns] for _ in rows],
    }
    facts = {"prompts": list(run.prompts), "columns": run.columns, "image_size": size, "scores": scores}
    (directory / f"step_{step:06d}.json").write_text(json.dumps(facts), encoding="utf-8")


def draw(prompt: str, size: int, done: float, noise: random.Random) -> Image.Image:
    """A flawed picture of a pocket prompt; the flaws fade as `done` goes from 0 to 1."""
    words = prompt.split()
    scale = 4 * size / 64
    image = Image.new("RGB", (4 * size, 4 * size), _COLOURS.get(words[-1], (200, 200, 200)))
    pen = ImageDraw.Draw(image)
    things = [words[i : i + 3] for i in range(len(words)) if words[i] in ("small", "large")]
    direction = next((_DIRECTIONS[word] for word in words if word in _DIRECTIONS), (0, 0))
    for index, (extent, colour, shape) in enumerate(things):
        shift = 15 * (1 - 2 * index) * (len(things) - 1)
        x, y = (32 + axis * shift + noise.uniform(-4, 4) for axis in direction)
        radius = (13 if extent == "large" else 8) * noise.uniform(0.9, 1.1)
        box = [scale * value for value in (x - radius, y - radius, x + radius, y + radius)]
        if shape == "circle":
            pen.ellipse(box, fill=_COLOURS[colour])
        elif shape == "square":
            pen.rectangle(box, fill=_COLOURS[colour])
        else:
            pen.polygon([(scale * x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=_COLOURS[colour])
    for _ in range(round(4 * (1 - done) * noise.random())):
        x, y = (scale * noise.uniform(6, 58) for _ in range(2))
        pen.ellipse([x, y, x + 5 * scale, y + 4 * scale], fill=(115, 102, 92))
    blur = scale * 1.8 * (1 - 0.8 * done) * noise.random()
    return image.filter(ImageFilter.GaussianBlur(blur)).resize((size, size), Image.Resampling.BOX)
