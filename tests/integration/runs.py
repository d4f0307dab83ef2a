"""Whole runs at small size, and what they leave behind, as tests compare it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from flowrl.config import RewardSpec, RunConfig, check
from flowrl.run import run_training
from tests import tiny
from tests.cheap_rewards import BRIGHT, LATENT

# What changes from run to run although nothing of substance does.
_TIMES = ("time/", "speed/", "memory/")


@dataclass(kw_only=True)
class TinyRun:
    """A finished run."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def numbers(self) -> list[dict[str, float]]:
        """The metrics that must not depend on where and how fast the run went."""
        return [
            {key: value for key, value in row.items() if not key.startswith((*_TIMES, "bytes/weights"))}
            for row in self.metrics
        ]

    @property
    def adapter(self) -> dict[str, torch.Tensor]:
        """The exported adapter."""
        return load_file(self.folder / "lora" / "pytorch_lora_weights.safetensors")


class TinyRuns:
    """Makes runs; one of equal configuration is made once and shared, so tests must only read it."""

    def __init__(self, policy: Path, root: Path) -> None:
        self.policy = policy
        self.root = root
        self.done: dict[str, TinyRun] = {}

    def prompts(self, name: str = "prompts", texts: tuple[str, ...] = tiny.TEXTS) -> Path:
        """A prompt file."""
        path = self.root / f"{name}.txt"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    def config(self, folder: Path, **changes: Any) -> RunConfig:
        """A run of three sampler steps on two prompts; `changes` are keys with "__" for the dot."""
        config = RunConfig()
        settings: dict[str, Any] = {
            "run__name": folder.name,
            "run__dir": str(folder),
            "run__steps": 5,
            "model__path": str(self.policy),
            "model__image_size": tiny.IMAGE_SIZE,
            "model__lora_rank": tiny.RANK,
            "model__lora_alpha": tiny.ALPHA,
            "data__train_prompts": str(self.prompts()),
            "data__eval_prompts": str(self.prompts("held_out", tiny.TEXTS[:3])),
            "rollout__prompts_per_step": 2,
            "rollout__group_size": 4,
            "rollout__num_steps": 3,
            "rewards__train": [RewardSpec(name=LATENT)],
            "rewards__watch": [RewardSpec(name=BRIGHT)],
            "optim__lr": 1e-3,
            "optim__ema_every": 2,
            "gate__max_ratio_absdev": 0.0,
            "placement__mode": "local",
            "placement__timeout_s": 120.0,
            "eval__every": 5,
            "eval__num_prompts": 3,
            "eval__samples_per_prompt": 2,
            "eval__num_steps": 3,
            "eval__grid_prompts": 2,
            "checkpoint__every": 3,
        }
        for key, value in {**settings, **changes}.items():
            section, _, name = key.partition("__")
            assert name in {one.name for one in dataclasses.fields(getattr(config, section))}, key
            setattr(getattr(config, section), name, value)
        check(config)
        return config

    def run(self, **changes: Any) -> TinyRun:
        """Do a run, or take the one that was done."""
        key = repr(sorted(changes.items()))
        if key not in self.done:
            folder = self.root / f"run{len(list(self.root.iterdir()))}"
            assert run_training(self.config(folder, **changes)) == 0
            self.done[key] = TinyRun(folder=folder)
        return self.done[key]


def unequal(one: TinyRun, other: TinyRun) -> list[tuple[int, str, float | None, float | None]]:
    """Where the numbers of two runs differ: step, key, and both values."""
    rows = zip(one.numbers, other.numbers, strict=True)
    return [
        (int(a["step"]), key, a.get(key), b.get(key))
        for a, b in rows
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two adapters are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two adapters."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)
