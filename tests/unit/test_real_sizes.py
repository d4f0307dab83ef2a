"""The real models at full size without their weights: on the meta device, where shapes are computed and numbers not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from flowrl.models.sd35_published import PUBLISHED
from rewards.dit_reward.model import LORA_TARGETS, DiTRewardConfig, DiTRewardModel
from rewards.training.config import load
from rewards.training.models import dit_reward_config

ROOT = Path(__file__).parents[2]
TEXT = 77 + 256  # tokens of CLIP and of T5
LATENT = 64  # of 512 pixels
NAMES = ("sd35-large-full", "sd35-large-frozen", "sd35-medium-full")
ATTENTION = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0"]
NORMS = ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]


def large() -> SD3Transformer2DModel:
    """SD3.5-Large as its published config.json has it."""
    return _transformer("stabilityai/stable-diffusion-3.5-large")


def medium() -> SD3Transformer2DModel:
    """SD3.5-Medium as its published config.json has it."""
    return _transformer("stabilityai/stable-diffusion-3.5-medium")


def _transformer(repository: str) -> SD3Transformer2DModel:
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(dict(PUBLISHED[repository].transformer))


def reward_model(net: SD3Transformer2DModel, name: str) -> DiTRewardModel:
    """The reward model of a shipped configuration."""
    config = load(ROOT / "configs" / "reward" / f"{name}.yaml")
    with torch.device("meta"):
        return DiTRewardModel(net, dit_reward_config(config, text_length=TEXT, latent_space="vae16x8"))


def inputs(batch: int) -> tuple[torch.Tensor, ...]:
    latents = torch.empty(batch, 16, LATENT, LATENT, device="meta")
    return (
        latents,
        torch.empty_like(latents),
        torch.empty(batch, TEXT, 4096, device="meta"),
        torch.empty(batch, 2048, device="meta"),
    )


def count(module: torch.nn.Module, *, learning: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learning)


def block_keys(number: int, *, dual: bool, last: bool) -> set[str]:
    """The keys of one block, written out."""
    linear = [f"attn.{name}" for name in ATTENTION] + ["norm1.linear", "norm1_context.linear"]
    linear += ["ff.net.0.proj", "ff.net.2"]
    norms = [f"attn.{name}" for name in NORMS]
    if not last:
        linear += ["attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2"]
    if dual:
        linear += [f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
        norms += ["attn2.norm_q", "attn2.norm_k"]
    keys = {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")} | {f"{name}.weight" for name in norms}
    return {f"transformer_blocks.{number}.{key}" for key in keys}


def all_keys(layers: int, num_dual: int) -> set[str]:
    linear = ["pos_embed.proj", "context_embedder", "norm_out.linear", "proj_out"]
    linear += [f"time_text_embed.{part}_embedder.linear_{i}" for part in ("timestep", "text") for i in (1, 2)]
    keys = {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")} | {"pos_embed.pos_embed"}
    return keys.union(*(block_keys(i, dual=i < num_dual, last=i == layers - 1) for i in range(layers)))


def test_the_keys_of_the_published_files() -> None:
    assert set(large().state_dict()) == all_keys(38, 0)
    assert set(medium().state_dict()) == all_keys(24, 13)


def test_sd35_medium_has_its_published_size() -> None:
    net = medium()
    assert count(net) == 2_243_171_520
    assert [block.use_dual_attention for block in net.transformer_blocks] == [True] * 13 + [False] * 11


@pytest.mark.parametrize(
    ("make", "name", "width"), [(large, "sd35-large-full", 2432), (medium, "sd35-medium-full", 1536)]
)
def test_shapes_at_512_pixels(make: Callable[[], SD3Transformer2DModel], name: str, width: int) -> None:
    reward = reward_model(make(), name)
    with torch.no_grad():
        taps = reward.taps(*inputs(3), 0.05)
    assert [tuple(tap.shape) for tap in taps] == [(3, 1024, width)] * 4
    features = reward.head.pool(taps)
    assert tuple(features.shape) == (3, 4 * width)
    assert tuple(reward.head(features).shape) == (3, 1)


def test_the_features_of_the_paper() -> None:
    reward = reward_model(large(), "sd35-large-full")
    assert reward.config.layers == (15, 23, 28, 37)
    assert reward.head.mlp[0].in_features == 9728


@pytest.mark.parametrize(("layers", "millions"), [((15,), 4.5), ((15, 23), 8.3), ((15, 23, 28), 12.0)])
def test_the_head_grows_with_the_layers(layers: tuple[int, ...], millions: float) -> None:
    with torch.device("meta"):
        head = DiTRewardModel(large(), DiTRewardConfig(text_length=TEXT, layers=layers, feature_norm=False)).head
    features = 2432 * len(layers)
    by_hand = (features + 1) * 1536 + (1536 + 1) * 512 + (512 + 1) * 1
    assert count(head) == by_hand
    assert round(by_hand / 1e6, 1) == millions


def test_the_norm_of_the_features_adds_two_numbers_for_each() -> None:
    head = reward_model(large(), "sd35-large-full").head
    assert count(head) == (9728 + 1) * 1536 + (1536 + 1) * 512 + 513 + 2 * 9728


def test_a_lora_at_rank_32() -> None:
    reward = reward_model(large(), "sd35-large-full")
    with torch.device("meta"):
        reward.train_only("lora", lora_rank=32)
    layers = {name.partition(".lora_")[0] for name, p in reward.transformer.named_parameters() if p.requires_grad}
    # The last block makes no text, so neither its text queries nor its text output learn: 302 of 8 * 38 projections.
    assert len(layers) == 8 * 38 - 2
    assert {re.sub(r"transformer_blocks\.\d+\.", "", name) for name in layers} == set(LORA_TARGETS)
    assert count(reward.transformer, learning=True) == 302 * 32 * (2432 + 2432) == 47_005_696


def test_full_training_leaves_out_what_no_score_depends_on() -> None:
    reward = reward_model(large(), "sd35-large-full")
    reward.train_only("full")
    modulation = 2 * 2432 * (2432 + 1)
    last = 2432 * (2432 + 1) + 64  # text queries of the last block and their norm
    output = modulation + 64 * (2432 + 1)  # norm_out and proj_out
    assert count(reward.transformer, learning=True) == 8_056_627_520 - output - last


def test_nothing_after_the_last_tap_is_computed() -> None:
    net = medium()
    with torch.device("meta"):
        reward = DiTRewardModel(net, DiTRewardConfig(text_length=TEXT, layers=(4, 11)))
    ran: set[str] = set()
    for name, part in net.named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.add(name))
    with torch.no_grad():
        reward(*inputs(1))
    blocks = {int(name.split(".")[1]) for name in ran if name.startswith("transformer_blocks.")}
    assert blocks == set(range(12))
    assert not [name for name in ran if name.startswith(("norm_out", "proj_out"))]
    read = [net.pos_embed, net.time_text_embed, net.context_embedder, *net.transformer_blocks[:12]]
    assert sum(map(count, read)) == 1_232_739_840


def test_the_shipped_configurations_are_the_papers() -> None:
    for name in NAMES:
        config = load(ROOT / "configs" / "reward" / f"{name}.yaml")
        assert config.loss.kind == "bradley_terry"
        assert config.optim.epochs in (2, 3)
        assert config.optim.warmup_ratio == 0.05
        assert config.data.train[0].min_confidence == 0.95
        assert [source.format for source in config.data.train] == ["hpdv3", "hpdv2", "pick_a_pic", "image_reward"]
