"""The shipped configurations of SD3.5 at full size on the meta device: every role's modules have the real shapes, and
the figures of the plan are those that are counted on them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from flowrl.config import RunConfig, load
from flowrl.models import lora
from flowrl.models.sd35_published import PUBLISHED
from flowrl.plan.gpus import GPUS
from flowrl.plan.proposals import too_large
from flowrl.plan.run_plan import RunPlan, run_plan
from flowrl.plan.traffic import trajectory_bytes

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("sd35-*/*.yaml"))
# Backbone, LoRA layers, LoRA parameters.
COUNTS = {
    "large": (8_056_627_520, 303, 47_161_344),
    "medium": (2_243_171_520, 191, 18_776_064),
}
# DiT-Reward up to the last block that it reads, and HPSv3 on Qwen2-VL-7B, in bfloat16.
REWARD_BYTES = {
    ("dit_reward", "large"): (16e9, 16.5e9),
    ("dit_reward", "medium"): (4.4e9, 5.1e9),
    ("hpsv3", "large"): (15e9, 16e9),
    ("hpsv3", "medium"): (15e9, 16e9),
}


def size_of(path: Path) -> str:
    return path.parent.name.split("-")[1]


@cache
def planned(path: Path) -> tuple[RunConfig, RunPlan]:
    config = load(path)
    return config, run_plan(config)


@cache
def transformer(size: str) -> SD3Transformer2DModel:
    settings = PUBLISHED[f"stabilityai/stable-diffusion-3.5-{size}"].transformer
    with torch.device("meta"):
        net = SD3Transformer2DModel.from_config(dict(settings))
    torch.nn.Module.to(net, torch.bfloat16)
    return net


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_plan_of_a_configuration_has_the_counted_sizes(path: Path) -> None:
    config, plan = planned(path)
    backbone, layers, adapter = COUNTS[size_of(path)]
    net = transformer(size_of(path))
    assert plan.policy.num_parameters == count(net) == backbone
    assert plan.policy.num_adapter_layers == layers
    assert plan.policy.num_adapter_parameters == adapter
    assert plan.policy.adapter_bytes == 4 * adapter
    assert plan.policy.weight_bytes == sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
    roles = {role.role: {part.name: part.size for part in role.held} for role in plan.roles}
    assert roles["learner that samples"]["adapter, gradients, 2 moments, average"] == 5 * 4 * adapter
    [reward] = plan.costs.rewards
    assert reward.cost is not None
    low, high = REWARD_BYTES[config.rewards.train[0].name, size_of(path)]
    assert low < reward.cost.weight_bytes < high
    assert reward.cost.flops > 1e12
    assert too_large(plan, GPUS["h100"]) == []  # as the header of each configuration says
    assert trajectory_bytes(plan.costs) > 768 * 11 * 16 * 64 * 64 * 4


@pytest.mark.parametrize("size", COUNTS)
def test_the_adapter_on_the_real_transformer_has_the_published_size(size: str) -> None:
    config, _ = planned(next(path for path in CONFIGS if size_of(path) == size))
    settings = PUBLISHED[f"stabilityai/stable-diffusion-3.5-{size}"].transformer
    with torch.device("meta"):
        net = SD3Transformer2DModel.from_config(dict(settings))
    section = config.model
    lora.attach(net, rank=section.lora_rank, alpha=section.lora_alpha, targets=section.lora_targets, seed=0)
    shapes = [parameter.shape for _, parameter in lora.trainable(net)]
    assert (len(shapes) // 2, sum(shape.numel() for shape in shapes)) == COUNTS[size][1:]
    assert {min(shape) for shape in shapes} == {32}


def test_the_text_encoders_and_the_vae_have_their_published_sizes() -> None:
    clip = {"vocab_size": 49408, "max_position_embeddings": 77}
    with torch.device("meta"):
        encoders = [
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768, **clip
                )
            ),
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=1280,
                    intermediate_size=5120,
                    num_hidden_layers=32,
                    num_attention_heads=20,
                    projection_dim=1280,
                    **clip,
                )
            ),
            T5EncoderModel(
                T5Config(
                    vocab_size=32128,
                    d_model=4096,
                    d_ff=10240,
                    num_layers=24,
                    num_heads=64,
                    feed_forward_proj="gated-gelu",
                )
            ),
        ]
        vae = AutoencoderKL.from_config(dict(PUBLISHED["stabilityai/stable-diffusion-3.5-large"].vae))
    total = sum(map(count, encoders))
    assert total == 5_580_620_800
    assert {published.text_encoder_parameters for published in PUBLISHED.values()} == {total}
    assert count(vae) == 83_819_683
