"""Reward training over several processes reaches the weights of one: DDP, and DeepSpeed ZeRO-2 and ZeRO-3, on gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flowrl.core.seeds import evaluation_seeds
from flowrl.types import RewardInput
from rewards.data.store import PreferenceStore
from rewards.dit_reward import DiTReward
from tests import tiny_store
from tests.ranks import Kind, Launch

ROOT = Path(__file__).parents[2]
STEPS = 5
WORLD = {"alone": 1, "ddp": 2, "zero2": 2, "zero3": 2}
# Sums over ranks are in another order than sums over micro-batches; five steps of 1e-3 move weights by up to 5e-3.
CLOSE = 5e-5
FILE = "diffusion_pytorch_model.safetensors"
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("zero2", "zero3")]


class Trainings:
    """Trainings on one tiny set; equal ones are done once."""

    def __init__(self, folder: Path, policy: Path) -> None:
        self.folder, self.policy = folder, policy
        self.store = tiny_store.write_sets(folder / "store", policy)
        self.config = folder / "config.yaml"
        settings = {
            "model": {"path": str(policy), "lora_rank": 4},
            "dit_reward": {"layers": [0, 1], "head_dims": [16]},
            "data": {"store": str(self.store), "max_sequence_length": tiny_store.T5_LENGTH},
            "optim": {"lr_head": 3e-3, "lr_backbone": 1e-3, "epochs": 0, "max_steps": STEPS},
            "eval": {"every": 2, "batch_size": 6},  # five batches, which two ranks cannot share evenly
            "checkpoint": {"every": 2},
            "export": {"dtype": "float32"},
        }
        settings["optim"] |= {"batch_size": 7, "micro_batch_size": 2, "warmup_ratio": 0.5}
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self._done: dict[tuple[str, ...], Path] = {}

    def launch(self, kind: Kind, *words: str, stop_in: int = -1) -> Launch:
        """`flowrl reward train ...` over the processes of a kind."""
        number = len(list((self.folder / "logs").glob("*"))) if (self.folder / "logs").is_dir() else 0
        return Launch(
            kind=kind,
            world=WORLD[kind],
            words=("reward", "train", *words),
            logs=self.folder / "logs" / str(number),
            stop_in=stop_in,
        )

    def run(self, kind: Kind, *overrides: str) -> Path:
        """The folder of a training that went to its end."""
        key = (kind, *overrides)
        if key not in self._done:
            run = self.folder / f"run-{len(self._done)}"
            launch = self.launch(kind, str(self.config), f"run.dir={run}", *overrides)
            assert launch.run() == [0] * launch.world, launch.said()
            self._done[key] = run
        return self._done[key]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, sd3_folder: Path) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("trainings"), sd3_folder)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the reward that a training left."""
    head = load_file(run / "reward" / "reward_head.safetensors")
    backbone = load_file(run / "reward" / "transformer" / "diffusion_pytorch_model.safetensors")
    return {**backbone, **{f"head.{key}": value for key, value in head.items()}}


def figures(run: Path, key: str) -> list[float]:
    """A metric, by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[key] for row in rows if key in row]


def assert_same(run: Path, other: Path, *, atol: float) -> None:
    """Both trainings took the same steps and left the same reward."""
    found, expected = weights(run), weights(other)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    for key in ("train/loss", "train/grad_norm", "train/accuracy", "validation/loss", "validation/accuracy"):
        assert figures(run, key) == pytest.approx(figures(other, key), abs=10 * atol), key


@pytest.mark.parametrize("kind", ["ddp", SLOW[0], "zero3"])
def test_two_ranks_reach_the_weights_of_one(trainings: Trainings, kind: Kind) -> None:
    alone, spread = trainings.run("alone"), trainings.run(kind)
    assert_same(spread, alone, atol=CLOSE)
    start = load_file(trainings.policy / "transformer" / FILE)
    moved = [(value - start[key]).abs().max() for key, value in weights(alone).items() if key in start]
    assert max(moved) > 50 * CLOSE  # so that equality says something


@pytest.mark.parametrize("kind", ["ddp", SLOW[0], "zero3"])
def test_the_reward_is_whole_and_scores_as_it_was_validated(trainings: Trainings, kind: Kind) -> None:
    run = trainings.run(kind)
    reward = DiTReward(path=str(run / "reward"))
    store = PreferenceStore(trainings.store / "validation")
    scores = torch.empty(len(store.shape))
    for shape in (0, 1):
        rows = (store.shape == shape).nonzero()[:, 0]
        scores[rows] = reward(
            RewardInput(
                latents=store.tensors("latents", rows),
                condition=store.conditions(store.prompt[rows]),
                seeds=evaluation_seeds(store.texts(rows)),
                prompts=("",) * len(rows),
            )
        )
    accuracy = (scores[store.pairs.winner] > scores[store.pairs.loser]).float().mean()
    validated = json.loads((run / "validation.json").read_text())["overall"]
    assert accuracy > 0.8
    assert accuracy == pytest.approx(validated)


@pytest.mark.parametrize("kind", ["ddp", *SLOW])
def test_a_signal_to_one_rank_stops_all_and_the_resumed_training_is_the_uninterrupted(
    trainings: Trainings, kind: Kind, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped = trainings.launch(kind, str(trainings.config), f"run.dir={run}", stop_in=2)
    assert stopped.run() == [1, 1], stopped.said()
    assert stopped.said().count("stopped; go on with: flowrl reward train --resume") == 1
    assert len(figures(run, "train/loss")) == 3
    resumed = trainings.launch(kind, "--resume", str(run))
    assert resumed.run() == [0, 0], resumed.said()
    assert_same(run, trainings.run(kind), atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_a_lora_with_gradient_checkpointing_is_that_of_one_process_without(trainings: Trainings, kind: Kind) -> None:
    alone = trainings.run("alone", "model.mode=lora")
    spread = trainings.run(kind, "model.mode=lora", "model.gradient_checkpointing=true")
    assert_same(spread, alone, atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_gradient_checkpointing_changes_nothing(trainings: Trainings, kind: Kind) -> None:
    assert_same(trainings.run(kind, "model.gradient_checkpointing=true"), trainings.run(kind), atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_a_forward_pass_in_bfloat16_comes_close(trainings: Trainings, kind: Kind) -> None:
    run = trainings.run(kind, "model.precision=bfloat16")
    assert figures(run, "train/loss") == pytest.approx(figures(trainings.run("alone"), "train/loss"), abs=0.02)
    assert all(value.isfinite().all() for value in weights(run).values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_a_head_on_a_frozen_backbone_learns_the_same(trainings: Trainings, kind: Kind) -> None:
    alone = trainings.run("alone", "model.mode=frozen")
    assert_same(trainings.run(kind, "model.mode=frozen"), alone, atol=CLOSE)


def test_fewer_comparisons_than_a_batch_holds_are_one_batch(trainings: Trainings) -> None:
    run = trainings.run("alone", "optim.batch_size=64")
    state = torch.load(run / "checkpoints" / f"step_{STEPS:06d}" / "state.pt", weights_only=True)
    assert {int(moments["step"]) for moments in state["optimizer"]["state"].values()} == {STEPS}


def test_processes_that_cannot_meet_are_refused(trainings: Trainings, tmp_path: Path) -> None:
    launch = replace(trainings.launch("alone", str(trainings.config), f"run.dir={tmp_path / 'run'}"), world=2)
    assert launch.run() == [2, 2]
    assert "2 processes were launched, but accelerate found no device for each of them" in launch.said()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_one_rank_under_deepspeed_is_one_process(trainings: Trainings, kind: Kind, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch = replace(trainings.launch(kind, str(trainings.config), f"run.dir={run}"), world=1)
    assert launch.run() == [0], launch.said()
    assert_same(run, trainings.run("alone"), atol=CLOSE)


@pytest.mark.slow
def test_a_sharded_training_goes_on_with_as_many_processes_alone(trainings: Trainings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trainings.run("zero2"), run)
    launch = replace(trainings.launch("zero2", "--resume", str(run)), world=1)
    assert launch.run() == [2]
    assert "was written by 2 processes, each its part, but there are 1 now" in launch.said()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_accelerate_launch_with_the_shipped_files(trainings: Trainings, kind: Kind, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert launched(kind, str(trainings.config), f"run.dir={run}") == 0
    assert_same(run, trainings.run("alone"), atol=CLOSE)
    assert launched(kind, str(trainings.config), f"run.dir={run}") == 1  # the main process alone finds it taken


def launched(kind: Kind, *words: str) -> int:
    """The exit code of `accelerate launch ... flowrl reward train ...` over two processes."""
    program = ["-m", "flowrl"] if kind == "ddp" else [str(ROOT / "tests" / "deepspeed_on_cpu.py")]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    return subprocess.run(
        [*launcher, "--config_file", f"launch/accelerate/{kind}.yaml", *program, "reward", "train", *words],
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true" if kind == "ddp" else "false", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        timeout=120,
    ).returncode
