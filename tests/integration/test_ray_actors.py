"""Groups of actors on Ray: sharded rewards, several learners, and failures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.actors.fused import Fused
from flowrl.actors.group import RayRuntime
from flowrl.actors.learner import TrainingError
from flowrl.actors.runtime import ActorError, LocalRuntime, Runtime
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config import GateSection, OptimSection, RewardSpec
from flowrl.types import PolicyWeights, Scores, Trajectory
from rewards.dit_reward import DiTReward
from tests import tiny
from tests.cheap_rewards import BRIGHT, BRIGHT_KEY
from tests.measured_scorer import MeasuredScorer
from tests.unreliable import Unreliable

pytestmark = pytest.mark.ray

DIT, HALF = "dit_reward", "half"


@pytest.fixture(scope="module")
def ray() -> Iterator[RayRuntime]:
    """One Ray for all tests here."""
    runtime = RayRuntime(address="local", threads=1, on_gpus=False, timeout_s=120.0)
    yield runtime
    runtime.close()


def scores_of(runtime: Runtime, arguments: dict[str, Any], groups: list[Trajectory], size: int) -> list[Scores]:
    """Scores of groups by a gang, one group for each rank in each round."""
    scorers = runtime.start("scorer", partial(MeasuredScorer, **arguments), size=size, gang=arguments["sharded"])
    runtime.ready()
    refs = [scorers.submit(i % size, MeasuredScorer.evaluate, group, 0) for i, group in enumerate(groups)]
    held = runtime.get([scorers.submit(rank, MeasuredScorer.elements) for rank in range(size)])
    scores = runtime.get(refs)
    scores[0].seconds["held"] = float(max(held))
    return scores


def test_a_node_without_the_driver_s_folder_is_named(ray: RayRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.actors.group.os.getcwd", lambda: "/no/such/checkout")
    ray.start("unreliable", Unreliable, size=1, gang=False)
    with pytest.raises(ActorError, match=r"has no folder /no/such/checkout; every node needs the same checkout"):
        ray.ready()


def test_a_reward_spread_over_two_ranks_scores_as_one_that_is_whole(
    ray: RayRuntime, sd3_folder: Path, tiny_reward: Path
) -> None:
    policy = tiny.policy(sd3_folder)
    conditions = tiny.conditions(sd3_folder, *tiny.TEXTS[:4])
    groups = [tiny.trajectory(policy, prompt_id=i, num_samples=5) for i in range(4)]
    groups = [tiny.with_condition(group, condition) for group, condition in zip(groups, conditions, strict=True)]
    arguments: dict[str, Any] = {
        "shows_images": True,
        "model": tiny.model_spec(sd3_folder),
        "train": [RewardSpec(name=DIT, options={"path": str(tiny_reward), "batch_size": 2})],
        "watch": [
            RewardSpec(name=DIT, label=HALF, options={"path": str(tiny_reward), "dtype": "bfloat16"}),
            RewardSpec(name=BRIGHT),
        ],
        "timeout_s": 60.0,
    }
    whole = scores_of(LocalRuntime(), {**arguments, "sharded": False}, groups, size=1)
    sharded = scores_of(ray, {**arguments, "sharded": True}, groups, size=2)
    for one, other in zip(whole, sharded, strict=True):
        assert one.per_reward.keys() == other.per_reward.keys() == {DIT, HALF, BRIGHT_KEY}
        for name in (DIT, HALF, BRIGHT_KEY):
            assert torch.equal(one.per_reward[name], other.per_reward[name])
        assert torch.equal(one.total, other.total)
        assert 0 < (one.per_reward[DIT] - one.per_reward[HALF]).abs().max() < 0.02
    assert torch.cat([scores.total for scores in whole]).std() > 1e-3
    # Sums round by where in memory the weights lie: where the allocator puts them, in both cases.
    weights = list(DiTReward(path=str(tiny_reward)).module.parameters())
    assert {weight.data_ptr() % 64 for weight in weights} == {0}
    total = sum(weight.numel() for weight in weights)
    assert whole[0].seconds["held"] == total
    assert sharded[0].seconds["held"] < 0.75 * total


def test_two_learners_equal_one_to_rounding_and_each_other_exactly(ray: RayRuntime, sd3_folder: Path) -> None:
    arguments: dict[str, Any] = {
        "model": tiny.model_spec(sd3_folder),
        "algorithm": FlowGRPOConfig(inner_steps=2),
        "optim": OptimSection(lr=1e-3),
        "gate": GateSection(max_ratio_absdev=0.0),
        "samples_per_forward": 0,
    }
    alone = Fused(**arguments)
    start = weights_of(alone.weights(ema=False))
    learners = ray.start("learner", partial(Fused, **arguments), size=2, gang=True)
    ray.ready()
    conditions = [tiny.random_condition(seed) for seed in (10, 9)]
    # Each rank samples half of the groups, and they are the ones that a single process samples.
    refs = [learners.submit(i % 2, Fused.generate, tiny.request(i), *conditions) for i in range(4)]
    groups = [alone.generate(tiny.request(i), *conditions) for i in range(4)]
    for one, other in zip(ray.get(refs), groups, strict=True):
        assert torch.equal(one.final_latents, other.final_latents)
    advantages = [tiny.train_batch(group, seed=i).advantages for i, group in enumerate(groups)]
    alone.update(1, advantages, *groups)
    results = ray.get([learners.submit(r, Fused.update, 1, advantages[r::2], *refs[r::2]) for r in range(2)])
    assert {m.value for result in results for m in result.metrics if m.key == "policy/ratio_absdev_max"} == {0.0}
    first, second = ray.get([learners.submit(r, Fused.weights, False) for r in range(2)])
    assert first.checksum == second.checksum
    expected = weights_of(alone.weights(ema=False))
    assert (expected - start).abs().max() > 1e-3
    # Adam divides by the gradient's own size, which turns rounding of the smallest gradients into part of a step.
    assert (weights_of(first) - expected).abs().max() < 2e-4
    assert (weights_of(first) - expected).abs().mean() < 2e-6
    # A number that is not finite on one rank stops both, before their optimizer step.
    advantages[1] = torch.full((4,), float("nan"))
    ray.get([learners.submit(r, Fused.load_weights, first) for r in range(2)])
    refs = [learners.submit(i % 2, Fused.generate, tiny.request(i, step=2), *conditions) for i in range(4)]
    refs = [learners.submit(r, Fused.update, 2, advantages[r::2], *refs[r::2]) for r in range(2)]
    for ref in refs:
        with pytest.raises(TrainingError, match="the gradient norm is nan"):
            ray.get([ref])
    after = ray.get([learners.submit(rank, Fused.weights, False) for rank in range(2)])
    assert [one.checksum for one in after] == [first.checksum, first.checksum]


def weights_of(packed: PolicyWeights) -> torch.Tensor:
    """The numbers in a buffer of weights."""
    return torch.from_numpy(packed.payload.view("float32").copy())


def test_an_actor_that_hangs_or_dies_is_an_error_that_says_so(ray: RayRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    group = ray.start("unreliable", Unreliable, size=1, gang=False)
    ray.ready()
    monkeypatch.setattr(ray, "_timeout_s", 0.2)
    hanging = group.submit(0, Unreliable.sleep, 1.0)
    with pytest.raises(ActorError, match=r"did not answer within placement.timeout_s = 0.2 s"):
        ray.get([hanging])
    with pytest.raises(ActorError, match=r"did not answer within placement.timeout_s = 0.2 s"):
        ray.wait([hanging])
    monkeypatch.setattr(ray, "_timeout_s", 30.0)
    with pytest.raises(ActorError, match="an actor died"):
        ray.get([group.submit(0, Unreliable.die)])
