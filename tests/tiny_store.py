"""A prepared preference set of random latents, small enough to write in a moment, with labels that can be learned."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from flowrl.models.sd3 import SD3
from flowrl.pocket.text import CLIP_WIDTHS, JOINT_DIM, MAX_TOKENS
from rewards.data.pairs import PairTable
from rewards.data.store import INFO, PROMPTS, TABLES, StoreInfo, save_info, shard_path

T5_LENGTH = 2
TEXT_LENGTH = MAX_TOKENS + T5_LENGTH  # that of CLIP comes first
SHAPES = ((16, 4, 4), (16, 4, 6))  # of the latents of two buckets, as the tiny policy's transformer takes them
_PER_SHARD = 16


def write_sets(folder: Path, policy: Path, *, train: int = 22, validation: int = 9) -> Path:
    """Fill `folder`/train and `folder`/validation with so many comparisons for the policy of a folder."""
    for part, count in (("train", train), ("validation", validation)):
        if not (folder / part / INFO).is_file():
            write_set(folder / part, num_comparisons=count, latent_space=SD3.latent_space(policy), seed=count)
    return folder


def write_set(folder: Path, *, num_comparisons: int, latent_space: str, seed: int) -> None:
    """Comparisons of three samples of one prompt, every third in the second shape; the larger mean latent wins."""
    draws = torch.Generator().manual_seed(seed)
    shape_of = (torch.arange(num_comparisons) % 3 == 2).long().repeat_interleave(3)
    latents = [torch.randn(SHAPES[int(shape)], generator=draws) for shape in shape_of]
    for sample in latents:
        sample += 0.5 * torch.randn(1, generator=draws)
    shard, row, number = torch.empty_like(shape_of), torch.empty_like(shape_of), 0
    for shape in range(len(SHAPES)):
        for rows in (shape_of == shape).nonzero()[:, 0].split(_PER_SHARD):
            shard[rows], row[rows] = number, torch.arange(len(rows))
            _save(shard_path(folder, "samples", number), {"latents": torch.stack([latents[int(one)] for one in rows])})
            number += 1
    text = {
        "embeds": torch.randn(num_comparisons, TEXT_LENGTH, JOINT_DIM, generator=draws),
        "pooled": torch.randn(num_comparisons, sum(CLIP_WIDTHS), generator=draws),
    }
    for number, rows in enumerate(torch.arange(num_comparisons).split(_PER_SHARD)):
        _save(shard_path(folder, "conditions", number), {key: value[rows] for key, value in text.items()})
    merit = torch.stack([sample.mean() for sample in latents])
    pairs = _pairs(merit.reshape(num_comparisons, 3))
    tables = {
        "sample_shard": shard,
        "sample_row": row,
        "sample_prompt": torch.arange(num_comparisons).repeat_interleave(3),
        "sample_shape": shape_of,
    }
    _save(folder / TABLES, tables | {f"pair_{name}": values for name, values in pairs.columns().items()})
    lines = [json.dumps(f"prompt {prompt}") for prompt in range(num_comparisons)]
    (folder / PROMPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_info(
        folder,
        StoreInfo(
            holds=("latents",),
            latent_space=latent_space,
            text_length=TEXT_LENGTH,
            encoders="tiny",
            conditions_per_shard=_PER_SHARD,
            sources=pairs.sources,
            categories=pairs.categories,
            num_samples=3 * num_comparisons,
            num_prompts=num_comparisons,
        ),
    )


def _pairs(merit: torch.Tensor) -> PairTable:
    """All three pairs of each comparison's samples, whose merits are [C, 3]."""
    order = merit.argsort(1, descending=True) + 3 * torch.arange(len(merit))[:, None]
    winner, loser = order[:, [0, 0, 1]].flatten(), order[:, [1, 2, 2]].flatten()
    return PairTable.of(
        winner=winner.tolist(),
        loser=loser.tolist(),
        comparison=torch.arange(len(merit)).repeat_interleave(3).tolist(),
    )


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
