"""Actors as processes: the same numbers as in one process, whatever their number, and nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.actors.group import ActorError, LocalRuntime, RayRuntime, Runtime
from flowrl.actors.learner import Learner
from flowrl.actors.scorer import Scorer
from flowrl.actors.sharding import local_elements
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config import ConfigError, GateSection, OptimSection, RewardSpec
from flowrl.core.errors import CheckpointError
from flowrl.run import run_training
from flowrl.summary import RewardError
from flowrl.types import Scores, Trajectory
from rewards.dit_reward import DiTReward
from tests import tiny
from tests.integration.runs import BRIGHT, LATENT, TinyRun, TinyRuns, same, unequal

pytestmark = pytest.mark.ray

DIT = "dit_reward"
NAN = torch.tensor(float("nan"))


def processes() -> dict[int, str]:
    """The Ray processes of this user that descend from this one or have lost their parent."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "raylet" in command or "gcs_server" in command or command.startswith("ray::"):
            found[int(folder.name)] = command[:80]
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Every process of Ray that a test starts has ended when the test has, and so has its folder gone."""
    before, folders = processes(), set(Path("/tmp").glob("flowrl-*"))
    yield
    if "runtime" in _KEPT:
        return
    assert {pid: command for pid, command in processes().items() if pid not in before} == {}
    assert set(Path("/tmp").glob("flowrl-*")) <= folders


_KEPT: dict[str, RayRuntime] = {}


@pytest.fixture(scope="module")
def ray() -> Iterator[RayRuntime]:
    """One Ray for the tests of single groups of actors."""
    runtime = RayRuntime(address="local", threads=1, gpus_per_actor=0.0, timeout_s=60.0)
    _KEPT["runtime"] = runtime
    yield runtime
    runtime.close()
    _KEPT.clear()


def run_with_reward(runs: TinyRuns, reward: Path, **placement: Any) -> TinyRun:
    """Train on the latent reward, watch a pixel one."""
    changes = {f"placement__{key}": value for key, value in placement.items()}
    train = [RewardSpec(name=DIT, options={"path": str(reward)})]
    return runs.run(rewards__train=train, rewards__watch=[RewardSpec(name=BRIGHT)], **changes)


@pytest.mark.parametrize(
    "placement",
    [
        {"mode": "split", "num_rollouts": 1, "num_scorers": 1, "num_learners": 1},
        {"mode": "split", "num_rollouts": 2, "num_scorers": 2, "num_learners": 1},
        {"mode": "fused", "num_scorers": 1, "num_learners": 1, "shard_scorer": False},
    ],
    ids=["split 1+1", "split 2+2 sharded", "fused"],
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


def scores_of(runtime: Runtime, arguments: dict[str, Any], groups: list[Trajectory], size: int) -> list[Scores]:
    """Scores of groups by a gang, one group for each rank in each round."""
    scorers = runtime.start("scorer", MeasuredScorer, arguments, size=size, gang=arguments["sharded"])
    runtime.ready()
    refs = [scorers.submit(i % size, "evaluate", group, 0) for i, group in enumerate(groups)]
    held = runtime.get([scorers.submit(rank, "elements") for rank in range(size)])
    scores = runtime.get(refs)
    scores[0].seconds["held"] = float(max(held))
    return scores


class MeasuredScorer(Scorer):
    """A scorer that tells how much of its reward it holds."""

    def elements(self) -> int:
        """The weights of the latent reward on this rank."""
        reward = self._rewards[DIT]
        return local_elements(reward.module)  # type: ignore[attr-defined]


def test_a_reward_spread_over_two_ranks_scores_as_one_that_is_whole(
    ray: RayRuntime, sd3_folder: Path, tiny_reward: Path
) -> None:
    policy = tiny.policy(sd3_folder)
    conditions = tiny.conditions(sd3_folder, *tiny.TEXTS[:4])
    groups = [tiny.trajectory(policy, prompt_id=i, num_samples=5) for i in range(4)]
    groups = [tiny.with_condition(group, condition) for group, condition in zip(groups, conditions, strict=True)]
    arguments: dict[str, Any] = {
        "model": tiny.model_spec(sd3_folder),
        "train": [RewardSpec(name=DIT, options={"path": str(tiny_reward), "batch_size": 2})],
        "watch": [RewardSpec(name=BRIGHT)],
        "timeout_s": 60.0,
    }
    whole = scores_of(LocalRuntime(), {**arguments, "sharded": False}, groups, size=1)
    sharded = scores_of(ray, {**arguments, "sharded": True}, groups, size=2)
    for one, other in zip(whole, sharded, strict=True):
        assert one.per_reward.keys() == other.per_reward.keys() == {DIT, BRIGHT}
        assert torch.equal(one.per_reward[DIT], other.per_reward[DIT])
        assert torch.equal(one.total, other.total)
    assert torch.cat([scores.total for scores in whole]).std() > 1e-3
    total = sum(parameter.numel() for parameter in DiTReward(path=str(tiny_reward)).module.parameters())
    assert whole[0].seconds["held"] == total
    assert sharded[0].seconds["held"] < 0.75 * total


def test_two_learners_equal_one_to_rounding_and_each_other_exactly(ray: RayRuntime, sd3_folder: Path) -> None:
    policy = tiny.policy(sd3_folder)
    arguments: dict[str, Any] = {
        "model": tiny.model_spec(sd3_folder),
        "algorithm": FlowGRPOConfig(inner_steps=2),
        "optim": OptimSection(lr=1e-3),
        "gate": GateSection(max_ratio_absdev=0.0),
        "samples_per_forward": 0,
    }
    groups = [tiny.trajectory(policy, prompt_id=i) for i in range(4)]
    advantages = [tiny.train_batch(group, seed=i).advantages for i, group in enumerate(groups)]
    alone = Learner(**arguments)
    alone.update(1, advantages, *groups)
    learners = ray.start("learner", Learner, arguments, size=2, gang=True)
    ray.ready()
    ray.get([learners.submit(r, "update", 1, advantages[r::2], *groups[r::2]) for r in range(2)])
    first, second = ray.get([learners.submit(r, "weights", False) for r in range(2)])
    assert first.checksum == second.checksum
    values = torch.from_numpy(first.payload.view("float32").copy())
    expected = torch.from_numpy(alone.weights(ema=False).payload.view("float32").copy())
    start = torch.cat([parameter.detach().flatten() for _, parameter in policy.trainable()])
    assert (expected - start).abs().max() > 1e-3
    # Adam divides by the gradient's own size, which turns rounding of the smallest gradients into part of a step.
    assert (values - expected).abs().max() < 2e-4
    assert (values - expected).abs().mean() < 2e-6
    # A gradient that is not finite on one rank stops both, before their optimizer step.
    groups = [tiny.trajectory(alone._policy, prompt_id=i, step=2) for i in range(4)]  # type: ignore[arg-type]
    advantages[1] = torch.full((4,), float("nan"))
    for rank in range(2):
        ref = learners.submit(rank, "update", 2, advantages[rank::2], *groups[rank::2])
        if rank == 1:
            with pytest.raises(RuntimeError, match="the gradient norm is nan|the ratio must be 1"):
                ray.get([ref, waiting])
        waiting = ref
    after = ray.get([learners.submit(rank, "weights", False) for rank in range(2)])
    assert [one.checksum for one in after] == [first.checksum, first.checksum]


def test_a_scorer_refuses_a_policy_of_another_latent_space(ray: RayRuntime, sd3_folder: Path, tmp_path: Path) -> None:
    other = tiny.write_folder(tmp_path / "other", scaling=0.36)
    reward = tiny.write_reward(tmp_path / "reward", other)
    arguments: dict[str, Any] = {
        "model": tiny.model_spec(sd3_folder),
        "train": [RewardSpec(name=DIT, options={"path": str(reward)})],
        "watch": [],
        "sharded": False,
        "timeout_s": 60.0,
    }
    ray.start("scorer", Scorer, arguments, size=1, gang=False)
    with pytest.raises(ConfigError, match=r"'dit_reward' reads latents of vae16x8-scale0.36-shift0.0609, but the policy"):
        ray.ready()


def test_an_actor_that_dies_or_hangs_is_an_error_that_says_so(sd3_folder: Path) -> None:
    pass


def test_a_failing_run_ends_with_the_reward_s_error(runs: TinyRuns, tmp_path: Path) -> None:
    reward = RewardSpec(name=LATENT, options={"nan_every": 3})
    config = runs.config(
        tmp_path / "run",
        rewards__train=[reward],
        rewards__watch=[],
        placement__mode="fused",
        placement__num_scorers=1,
        placement__num_learners=1,
    )
    with pytest.raises(RewardError, match="4 of 8 samples have no finite score"):
        run_training(config)
    assert [row["step"] for row in TinyRun(folder=tmp_path / "run").metrics] == [0]
