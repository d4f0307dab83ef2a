"""One training step of the pocket run on this machine's device, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from flowrl.config import RewardSpec, RunConfig, check, dump
from flowrl.doctor.finding import Check, Finding, fine, problem

_PATIENCE_S = 300
_GROUPS, _IMAGES = 2, 4


def trial_check(device: Literal["cpu", "cuda"]) -> Check:
    """The check that trains."""
    return Check(subject="A step of training", name=f"on {device}", look=lambda: tiny_step(device))


def trial_config(folder: Path, device: Literal["cpu", "cuda"]) -> RunConfig:
    """One step of two groups of four images, with an evaluation of two before it, in one process."""
    config = RunConfig()
    config.run.name, config.run.dir, config.run.steps = folder.name, str(folder), 1
    config.rollout.prompts_per_step, config.rollout.group_size, config.rollout.num_steps = _GROUPS, _IMAGES, 4
    config.algorithm.inner_steps = 1
    config.rewards.train = [RewardSpec(name="dit_reward")]
    config.eval.every, config.eval.num_prompts, config.eval.samples_per_prompt = 0, 2, 1
    config.eval.num_steps, config.eval.grid_prompts = 2, 0
    config.placement.mode, config.placement.device = "local", device
    if device == "cuda":  # there equal batches may round differently, which a real run measures
        config.gate.max_ratio_absdev = 1e-3
    check(config)
    return config


def tiny_step(device: Literal["cpu", "cuda"], patience_s: float = _PATIENCE_S) -> Finding:
    """Train one step on the embedded policy and reward, as `flowrl train` does, and say how long it took.

    In a process of its own: what crashes or hangs there is a finding here.
    """
    with tempfile.TemporaryDirectory(prefix="flowrl-doctor-") as place:
        folder, file = Path(place, "step"), Path(place, "step.yaml")
        file.write_text(dump(trial_config(folder, device)), encoding="utf-8")
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "flowrl", "train", str(file)],
                capture_output=True,
                text=True,
                timeout=patience_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return problem(f"not done after {patience_s:g} s", _by_hand(device))
        seconds = time.monotonic() - began
        if done.returncode != 0:
            return problem(f"failed: {_last_words(done)}", _by_hand(device))
        return _figures(folder / "metrics.jsonl", seconds)


def _figures(file: Path, seconds: float) -> Finding:
    row = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
    return fine(
        f"sampled, scored and trained on {_GROUPS * _IMAGES} images in {row['time/step_s']:.1f} s, {seconds:.0f} s "
        f"with loading; ratio of the first update off 1 by {row['policy/ratio_absdev_max']:.1g}"
    )


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed process said last; a signal in words where it said nothing."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if lines:
        return lines[-1].removeprefix("flowrl: error: ")[:400]
    if done.returncode < 0:
        ended = "for want of memory, most likely" if done.returncode == -9 else "it crashed"
        return f"ended by signal {-done.returncode} ({ended})"
    return f"exit code {done.returncode}"


def _by_hand(device: str) -> str:
    return (
        "to see all that it says, run it by hand: flowrl train configs/pocket/ditreward.yaml run.steps=1 "
        f"placement.mode=local placement.device={device} --traceback"
    )
