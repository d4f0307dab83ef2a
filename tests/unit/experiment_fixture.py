"""Writes folders that look like those of real experiments, and measures with numbers that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from run_fixture import FakeRun, config_of, write_run

from flowrl.matched.measures import Measure
from flowrl.matrix.experiment import ArmSection, Experiment, Run
from flowrl.matrix.folder import write_experiment
from flowrl.matrix.manifest import write_manifest

QUESTION = "Does one reward train a better model than the other?"
DITREWARD = FakeRun(steps=20, every=5, columns=2)
HPSV3 = replace(DITREWARD, reward="hpsv3", other="dit_reward", oracle_gain=-0.1)


def write_experiment_folder(
    parent: Path, arms: dict[str, FakeRun], seeds: Sequence[int] = (0, 1, 2), *, decided_by: Sequence[str] = ("oracle",)
) -> Path:
    """An experiment's folder with a run of each arm and seed; an arm is how its runs went."""
    folder = parent / "rewards-pocket"
    folder.mkdir(parents=True)
    experiment = Experiment(
        question=QUESTION,
        base="configs/pocket/ditreward.yaml",
        arms={name: ArmSection() for name in arms},
        differ=["rewards"],
        seeds=list(seeds),
        decided_by=list(decided_by),
    )
    write_experiment(experiment, folder)
    runs = [
        (name, seed, replace(arm, name=f"{name}-{seed}", seed=seed)) for seed in seeds for name, arm in arms.items()
    ]
    write_manifest([Run(arm=name, seed=seed, config=config_of(run, folder)) for name, seed, run in runs], folder)
    for _, _, run in runs:
        write_run(folder, run)
    return folder


def measure(
    values: np.ndarray,
    *,
    name: str = "oracle",
    trained_by: tuple[str, ...] = (),
    arms: tuple[str, ...] = ("ditreward", "hpsv3"),
) -> Measure:
    """A measure of values [arms, seeds, steps, prompts], evaluated every ten steps."""
    return Measure(
        name=name,
        trained_by=trained_by,
        arms=arms,
        seeds=tuple(range(values.shape[1])),
        steps=tuple(range(0, 10 * values.shape[2], 10)),
        prompts=tuple(f"prompt {index}" for index in range(values.shape[3])),
        values=values,
    )


def noisy_curves(*curves: Sequence[float], seeds: int = 3, prompts: int = 64, noise: float = 0.02) -> np.ndarray:
    """Values [arms, seeds, steps, prompts] around a curve per arm; equal curves have different noise."""
    generator = np.random.default_rng(7)
    means = np.array(curves)[:, None, :, None]
    shape = (len(curves), seeds, len(curves[0]), prompts)
    hardness = 0.3 * np.sin(np.arange(prompts))  # of prompts, by far larger than what sets two arms apart
    values: np.ndarray = means + hardness + noise * generator.standard_normal(shape)
    values[:, :, 0] = values[:1, :1, 0]  # nothing was trained yet
    return values
