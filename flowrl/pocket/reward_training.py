"""Trains the pocket reward models on the preference set: DiT-Reward (full or frozen) and HPSv3.

The label of a pair is the oracle's ranking and nothing else of the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from flowrl.core.latent_space import latent_space_name
from flowrl.core.seeds import derive, generator, global_seed
from flowrl.pocket.fitting import FitPlan, FitRecord, fit
from flowrl.pocket.preferences import KINDS, SampleTable
from flowrl.pocket.vision_language import NUM_IMAGE_TOKENS, SPEC
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel, RewardHead, sample_noise
from rewards.hpsv3.model import ChatBatch, HPSv3Model, tokenize
from rewards.hpsv3.preprocess import patchify
from rewards.preference import PreferencePairs
from rewards.training import PairBatch, PairBatcher, bradley_terry_loss, lr_scale, uncertainty_loss

FULL_PLAN = FitPlan(steps=500, lr=1.5e-3, warmup=50, ema_decay=0.99, weight_decay=0.05)
FROZEN_PLAN = FitPlan(steps=3000, lr=1e-3, warmup=150, ema_decay=0.995)
HPSV3_PLAN = FitPlan(steps=800, lr=1.5e-3, warmup=60, ema_decay=0.995)
BACKBONE_SHARE = 0.4  # of the head's learning rate
LAYERS = (1, 3, 5)
_GROUPS = 16  # per step, of eight samples each
_FROZEN_GROUPS = 64
_DRAWS = 100  # of the uncertainty loss, per pair
_SCORE_BATCH = 256


def dit_reward_config(vae_config: dict[str, object], *, text_length: int) -> DiTRewardConfig:
    """The pocket DiT-Reward: three of six blocks, and a head to the measure of its width."""
    blocks = vae_config["block_out_channels"]
    assert isinstance(blocks, list | tuple)
    return DiTRewardConfig(
        layers=LAYERS,
        head_dims=(128, 32),
        text_length=text_length,
        latent_space=latent_space_name(
            channels=int(str(vae_config["latent_channels"])),
            factor=2 ** (len(blocks) - 1),
            scaling=float(str(vae_config["scaling_factor"])),
            shift=float(str(vae_config["shift_factor"])),
        ),
        base="pocket",
    )


def new_dit_reward(transformer_folder: Path, config: DiTRewardConfig, *, seed: int) -> DiTRewardModel:
    """A DiT-Reward on the trained policy's transformer, with a fresh head."""
    transformer = SD3Transformer2DModel.from_pretrained(transformer_folder, torch_dtype=torch.float32)
    with global_seed(seed):
        return DiTRewardModel(transformer, config)


def first_groups(pairs: PreferencePairs, share: float) -> PreferencePairs:
    """The pairs of a random `share` of the groups; a smaller share is part of a larger one."""
    groups = torch.unique(pairs.group)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))
    chosen = groups[order[: max(1, round(share * len(groups)))]]
    return pairs.select(torch.isin(pairs.group, chosen))


def train_full(
    model: DiTRewardModel,
    table: SampleTable,
    pairs: PreferencePairs,
    *,
    name: str,
    seed: int,
    checkpoint: Path,
    plan: FitPlan = FULL_PLAN,
) -> FitRecord:
    """Train backbone and head with the Bradley-Terry loss; all samples of a group get the same noise."""
    model.train_only("full")
    batcher = PairBatcher(pairs, groups_per_batch=_GROUPS, seed=seed)

    def loss_at(step: int) -> torch.Tensor:
        batch = batcher.at(step)
        shape = (batch.num_groups, *table.latents.shape[1:])
        noise = torch.randn(shape, generator=generator(seed, name, step))[batch.group]
        scores = model(table.latents[batch.samples].float(), noise, *_condition(table, batch.samples))
        return bradley_terry_loss(scores[batch.winner], scores[batch.loser])

    scale = lr_scale(("head.",), BACKBONE_SHARE)
    record = fit(name, model, loss_at, plan, checkpoint=checkpoint, lr_scale=scale)
    model.eval()
    return record


def train_frozen(
    model: DiTRewardModel,
    table: SampleTable,
    pairs: PreferencePairs,
    *,
    name: str,
    seed: int,
    checkpoint: Path,
    plan: FitPlan = FROZEN_PLAN,
) -> FitRecord:
    """Train the head alone, on features that are computed once."""
    model.train_only("frozen")
    with torch.no_grad():
        features = _over_table(table, lambda rows: model.features(*_latent_inputs(table, rows)))
    batcher = PairBatcher(pairs, groups_per_batch=_FROZEN_GROUPS, seed=seed)
    head: RewardHead = model.head

    def loss_at(step: int) -> torch.Tensor:
        batch = batcher.at(step)
        scores = head(features[batch.samples])
        return bradley_terry_loss(scores[batch.winner], scores[batch.loser])

    return fit(name, head, loss_at, plan, checkpoint=checkpoint)


def train_hpsv3(
    model: HPSv3Model,
    tokenizer: Qwen2Tokenizer,
    table: SampleTable,
    pairs: PreferencePairs,
    *,
    name: str,
    seed: int,
    checkpoint: Path,
    plan: FitPlan = HPSV3_PLAN,
) -> FitRecord:
    """Train the whole network with HPSv3's uncertainty loss on the decoded images of the same pairs."""
    chats = tokenize(tokenizer, table.prompts, NUM_IMAGE_TOKENS)
    batcher = PairBatcher(pairs, groups_per_batch=_GROUPS, seed=seed)
    model.train()

    def loss_at(step: int) -> torch.Tensor:
        batch: PairBatch = batcher.at(step)
        patches, grid = patchify(table.images[batch.samples] / 255, SPEC)
        with global_seed(derive(seed, name, "dropout", step)):  # dropout takes no generator of its own
            outputs = model(_rows(chats, table.prompt[batch.samples]), patches, grid)
        draws = generator(seed, name, step)
        return uncertainty_loss(outputs[batch.winner], outputs[batch.loser], draws, draws=_DRAWS)

    scale = lr_scale(("rm_head.",), BACKBONE_SHARE)
    record = fit(name, model, loss_at, plan, checkpoint=checkpoint, lr_scale=scale)
    model.eval()
    return record


@torch.no_grad()
def score_latents(model: DiTRewardModel, table: SampleTable) -> torch.Tensor:
    """DiT-Reward's scores [N] of a table, noise shared within a group as in training."""
    return _over_table(table, lambda rows: model(*_latent_inputs(table, rows)))


@torch.no_grad()
def score_images(model: HPSv3Model, tokenizer: PreTrainedTokenizerBase, table: SampleTable) -> torch.Tensor:
    """HPSv3's scores [N] of a table's images."""
    chats = tokenize(tokenizer, table.prompts, NUM_IMAGE_TOKENS)

    def score(rows: torch.Tensor) -> torch.Tensor:
        patches, grid = patchify(table.images[rows] / 255, SPEC)
        return model(_rows(chats, table.prompt[rows]), patches, grid)[:, 0]

    return _over_table(table, score)


@torch.no_grad()
def centre(layer: torch.nn.Module, scores: torch.Tensor, table: SampleTable) -> None:
    """Shift the last layer's first bias so that the policy's samples of `table`, which got `scores` [N], average zero.

    Preferences fix a score up to a constant; this one makes a curve's height mean something.
    """
    assert isinstance(layer.bias, torch.Tensor)
    layer.bias[0] -= scores[table.kind == KINDS.index("policy")].mean()


def _over_table(table: SampleTable, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return torch.cat([function(rows) for rows in torch.arange(len(table.prompt)).split(_SCORE_BATCH)])


def _condition(table: SampleTable, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    prompt = table.prompt[rows]
    return table.text.embeds[prompt], table.text.pooled[prompt]


def _latent_inputs(table: SampleTable, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    noise = sample_noise(table.prompt[rows], tuple(table.latents.shape[1:]))
    return table.latents[rows].float(), noise, *_condition(table, rows)


def _rows(chats: ChatBatch, rows: torch.Tensor) -> ChatBatch:
    return ChatBatch(
        input_ids=chats.input_ids[rows],
        attention_mask=chats.attention_mask[rows],
        image_mask=chats.image_mask[rows],
        reward_position=chats.reward_position[rows],
    )
