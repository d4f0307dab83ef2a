"""The two pocket arms differ in the reward and in nothing else: configs, prompts, and the latents of the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowrl.actors.encoder import Encoder
from flowrl.actors.rollout import Rollout
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.config import RunConfig, diff, load
from flowrl.data import PromptOrder, read_prompts
from flowrl.model_spec import ModelSpec
from flowrl.pocket.prompt_sets import prompt_file
from flowrl.types import RolloutRequest, Trajectory

CONFIGS = Path(__file__).parents[2] / "configs" / "pocket"


@pytest.fixture(scope="module")
def arms() -> list[RunConfig]:
    return [load(CONFIGS / f"{arm}.yaml", ["run.name=same"]) for arm in ("ditreward", "hpsv3")]


def first_groups(config: RunConfig, count: int) -> list[Trajectory]:
    model = ModelSpec.of(config)
    rollout, encoder = Rollout(model, config.rollout.samples_per_forward), Encoder(model)
    algorithm = FlowGRPO(config.algorithm, config.run.seed)
    prompts = read_prompts(prompt_file("train"), "data.train_prompts")
    order = PromptOrder(prompts, per_step=config.rollout.prompts_per_step, seed=config.run.seed)
    return [
        rollout.generate(
            RolloutRequest(
                prompt=prompt,
                seed=config.run.seed,
                step=1,
                num_samples=config.rollout.group_size,
                plan=algorithm.plan(1, config.rollout.num_steps),
                guidance_scale=config.rollout.guidance_scale,
            ),
            encoder.encode(prompt.text),
            encoder.encode(""),
        )
        for prompt in order.take(1)[:count]
    ]


def test_configs_differ_in_the_rewards_alone(arms: list[RunConfig]) -> None:
    assert {key.split(".")[0] for key in diff(*arms)} == {"rewards"}
    assert [spec.name for spec in arms[0].rewards.train] == ["dit_reward"]
    assert [spec.name for spec in arms[1].rewards.train] == ["hpsv3"]


def test_first_rollouts_are_equal_bit_for_bit(arms: list[RunConfig]) -> None:
    ours, theirs = (first_groups(config, 2) for config in arms)
    assert [group.prompt for group in ours] == [group.prompt for group in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.final_latents, b.final_latents)
        assert a.path is not None
        assert b.path is not None
        assert torch.equal(a.path.latents, b.path.latents)
        assert torch.equal(a.path.log_probs, b.path.log_probs)


def test_another_seed_gives_other_latents(arms: list[RunConfig]) -> None:
    other = load(CONFIGS / "ditreward.yaml", ["run.name=same", "run.seed=1"])
    assert not torch.equal(first_groups(arms[0], 1)[0].final_latents, first_groups(other, 1)[0].final_latents)
