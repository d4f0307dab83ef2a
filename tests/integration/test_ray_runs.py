"""Runs on Ray: the same numbers as in one process, whatever the number of actors, and nothing left behind."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flowrl.actors.runtime import ActorError
from flowrl.config import RewardSpec, load
from flowrl.run import run_training
from flowrl.summary import RewardError
from tests.cheap_rewards import BRIGHT, LATENT
from tests.integration.runs import TinyRun, TinyRuns, difference, same, unequal

pytestmark = pytest.mark.ray

DIT = "dit_reward"


def processes(marker: str) -> dict[int, str]:
    """The processes beside this one that were started, by whomever, with `marker` in their environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if marker.encode() in environment and command:
            found[int(folder.name)] = command.replace(b"\0", b" ").decode()[:80]
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """When a test has ended, so has every process that it started on Ray, and the folder of their sockets is gone."""
    marker, folders, make = uuid.uuid4().hex, [], tempfile.mkdtemp

    def recorded(**options: Any) -> str:
        folders.append(Path(make(**options)))
        return str(folders[-1])

    monkeypatch.setenv("FLOWRL_TEST", marker)
    monkeypatch.setattr("flowrl.actors.socket_folder.tempfile.mkdtemp", recorded)
    yield
    assert folders
    patience = time.monotonic() + 20.0  # a process that was killed takes a moment to go when the machine is busy
    while processes(marker) and time.monotonic() < patience:
        time.sleep(0.1)
    assert processes(marker) == {}
    assert not any(folder.exists() for folder in folders)


def run_with_reward(runs: TinyRuns, reward: Path, **placement: Any) -> TinyRun:
    """Train on the latent reward, watch a pixel one."""
    changes = {f"placement__{key}": value for key, value in placement.items()}
    train = [RewardSpec(name=DIT, options={"path": str(reward)})]
    return runs.run(rewards__train=train, rewards__watch=[RewardSpec(name=BRIGHT)], **changes)


def placement(mode: str, rollouts: int, scorers: int, **more: Any) -> dict[str, Any]:
    return {"mode": mode, "num_rollouts": rollouts, "num_scorers": scorers, "num_learners": 1, **more}


PLACEMENTS = {
    "split 2+2 sharded": placement("split", 2, 2),
    "colocated 0+1 in turn": placement("colocated", 0, 1, offload=True, shard_scorer=False),
}
MORE_PLACEMENTS = {
    "split 1+1": placement("split", 1, 1),
    "split 3+1 replica": placement("split", 3, 1, shard_scorer=False),
    "split 1+2 replicas": placement("split", 1, 2, shard_scorer=False),
    "split 1+2 sharded": placement("split", 1, 2),
    "fused 2 sharded": placement("fused", 1, 2),
    "fused 2 replicas": placement("fused", 1, 2, shard_scorer=False),
    "colocated 0+2 sharded": placement("colocated", 0, 2),
    "colocated 1+1": placement("colocated", 1, 1),
    "colocated 2+1 in turn": placement("colocated", 2, 1, offload=True, shard_scorer=False),
    "colocated 3+2 replicas in turn": placement("colocated", 3, 2, offload=True, shard_scorer=False),
}


@pytest.mark.parametrize(
    "placement",
    [*PLACEMENTS.values(), *(pytest.param(one, marks=pytest.mark.slow) for one in MORE_PLACEMENTS.values())],
    ids=[*PLACEMENTS, *MORE_PLACEMENTS],
)
def test_a_run_is_the_same_bit_for_bit_wherever_its_actors_are(
    runs: TinyRuns, tiny_reward: Path, placement: dict[str, Any]
) -> None:
    local = run_with_reward(runs, tiny_reward)
    found = run_with_reward(runs, tiny_reward, **placement)
    assert [row["policy/ratio_absdev_max"] for row in found.metrics[1:]] == [0.0] * 5
    assert same(found.adapter, local.adapter)
    assert unequal(found, local) == []
    assert local.metrics[5]["policy/kl"] > 0
    assert local.metrics[1][f"reward/{DIT}/std"] > 1e-3
    assert found.metrics[5]["memory/actors_gib"] > 0


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyRun]:
    """Two steps of the pocket profile at some placement, written to a folder of their own."""
    profile = Path(__file__).parents[2] / "configs" / "pocket" / "ditreward.yaml"

    def run(**placement: Any) -> TinyRun:
        folder = tmp_path_factory.mktemp("pocket") / "run"
        keys = [f"placement.{key}={value}" for key, value in placement.items()]
        config = load(profile, [f"run.dir={folder}", "run.steps=2", "eval.num_prompts=8", *keys])
        assert run_training(config) == 0
        return TinyRun(folder=folder)

    return run


@pytest.fixture(scope="module")
def local_pocket(pocket: Callable[..., TinyRun]) -> TinyRun:
    """In one process."""
    return pocket(mode="local")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLACEMENTS, *MORE_PLACEMENTS])
def test_the_pocket_profile_is_the_same_as_well(
    pocket: Callable[..., TinyRun], local_pocket: TinyRun, name: str
) -> None:
    found = pocket(**{**PLACEMENTS, **MORE_PLACEMENTS}[name])
    assert same(found.adapter, local_pocket.adapter)
    assert unequal(found, local_pocket) == []


@pytest.mark.slow
def test_two_learners_that_were_stopped_and_resumed_end_where_one_that_was_not_does(
    runs: TinyRuns, tmp_path: Path
) -> None:
    # Two inner steps of two groups each: every learner takes one group of each. Sums round differently by that.
    changes = {"rollout__prompts_per_step": 4, "checkpoint__every": 2}
    local = runs.run(run__steps=4, **changes)
    placed = {"placement__mode": "split", "placement__num_rollouts": 1, "placement__num_scorers": 1}
    placed |= {"placement__num_learners": 2, "gate__max_ratio_absdev": 0.0}
    folder = tmp_path / "two"
    assert run_training(runs.config(folder, run__steps=2, **changes, **placed)) == 0
    assert run_training(runs.config(folder, run__steps=4, **changes, **placed), resume=True) == 0
    two = TinyRun(folder=folder)
    assert [row["step"] for row in two.metrics] == [0, 1, 2, 3, 4]
    assert [row["policy/version"] for row in two.metrics[1:]] == [2, 4, 6, 8]
    moved = max(tensor.abs().max().item() for name, tensor in local.adapter.items() if ".lora_B." in name)
    assert difference(two.adapter, local.adapter) < 1e-3 * moved
    assert not same(two.adapter, runs.run(run__steps=4, run__seed=1, **changes).adapter)


def test_a_fused_run_is_the_same_as_well_and_ends_with_an_error_when_an_actor_dies(
    runs: TinyRuns, tmp_path: Path
) -> None:
    # Six samples of the evaluation and two steps of eight are scored; in the third step the scorer fails, or dies.
    def run(name: str, end: str, error: type[Exception], says: str, **placement: Any) -> TinyRun:
        reward = RewardSpec(name=LATENT, options={end: 6 + 2 * 8})
        changes = {"rewards__train": [reward], "rewards__watch": [], "checkpoint__every": 1, **placement}
        with pytest.raises(error, match=says):
            run_training(runs.config(tmp_path / name, **changes))
        return TinyRun(folder=tmp_path / name)

    local = run("local", "nan_after", RewardError, r"8 of 8 samples have no finite score from .*LatentNorm")
    fused = run(
        "fused",
        "die_after",
        ActorError,
        "an actor died",
        placement__mode="fused",
        placement__num_scorers=1,
        placement__num_learners=1,
    )
    assert [row["step"] for row in fused.metrics] == [0, 1, 2]
    assert unequal(local, fused) == []
    for file in ("adapter.safetensors", "ema.safetensors"):
        one, other = (load_file(run.folder / "checkpoints" / "step_000002" / file) for run in (local, fused))
        assert same(one, other)
