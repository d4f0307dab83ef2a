"""Scores the samples of a prepared set with several rewards: each reads the latents or the pixels that are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from flowrl.base.errors import UserError
from flowrl.core.seeds import evaluation_seeds
from flowrl.reward_protocols import Reward
from flowrl.types import RewardInput
from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.evaluation.cached_reward import CachedReward
from rewards.evaluation.judged_pairs import JudgedPairs
from rewards.evaluation.score_cache import ScoreCache
from rewards.evaluation.score_comparisons import Faults, ScoredComparisons


def open_prepared(folder: str, pair_sources: Sequence[str]) -> tuple[PreferenceStore, PairTable]:
    """A prepared set and those of its pairs that come from the named sources (none named: all); raises UserError when
    there is no such source, CheckpointError when the set is not whole.
    """
    store = PreferenceStore(Path(folder))
    unknown = sorted(set(pair_sources) - set(store.info.sources))
    if unknown:
        raise UserError(f"{folder}: has no pairs of {unknown[0]!r}; its sources: {', '.join(store.info.sources)}")
    if not pair_sources:
        return store, store.pairs
    chosen = torch.tensor([number for number, name in enumerate(store.info.sources) if name in pair_sources])
    return store, store.pairs.select(torch.isin(store.pairs.source, chosen))


def score_prepared(
    name: str,
    store: PreferenceStore,
    table: PairTable,
    rewards: Sequence[CachedReward],
    caches: Sequence[ScoreCache],
    *,
    seed: int,
    images_per_chunk: int,
) -> ScoredComparisons:
    """The scores of every sample that stands in a pair; noise is shared within a prompt, as for images from files.

    Raises CheckpointError, before anything is scored, when the set does not hold what a reward reads. That it holds
    latents of the reward's own space is for whoever makes the reward to see to.
    """
    samples = torch.unique(torch.cat([table.winner, table.loser]))
    scores = torch.full((len(rewards), len(store.shape)), math.nan, dtype=torch.float64)
    keys = [str(sample) for sample in samples.tolist()]
    missing = [torch.tensor([int(key) for key in cache.missing(keys)], dtype=torch.int64) for cache in caches]
    for reward, wanted in zip(rewards, missing, strict=True):
        if len(wanted):
            store.require("pixels" if reward.reward.input_kind == "pixel" else "latents")
    for row, (reward, cache, wanted) in enumerate(zip(rewards, caches, missing, strict=True)):
        with tqdm(
            desc=f"{name}: {reward.label}", total=len(wanted), unit="image", mininterval=2, disable=len(wanted) == 0
        ) as bar:
            for chunk in wanted.split(images_per_chunk):
                cache.add(_scores(reward, store, chunk, seed))
                bar.update(len(chunk))
        scores[row, samples] = torch.tensor([cache[key] for key in keys], dtype=torch.float64)
    return ScoredComparisons(
        pairs=JudgedPairs(table=table, prompt=store.prompt[table.winner]),
        scores=scores,
        broken=torch.ones(len(store.shape), dtype=torch.bool).index_fill(0, samples, False),
        num_comparisons=len(torch.unique(table.comparison)),
        bad_rows=Faults(what="rows", limit=0),
        bad_images=Faults(what="images", limit=0),
        skipped_rows=0,
    )


def _scores(reward: CachedReward, store: PreferenceStore, chunk: torch.Tensor, seed: int) -> dict[str, float]:
    """The scores of samples by number, those of one shape together."""
    found: dict[str, float] = {}
    for shape in torch.unique(store.shape[chunk]).tolist():
        samples = chunk[store.shape[chunk] == shape]
        values = reward.scores(len(samples), partial(_batch, reward.reward, store, samples, seed))
        found |= {str(sample): value for sample, value in zip(samples.tolist(), values, strict=True)}
    return found


def _batch(reward: Reward, store: PreferenceStore, samples: torch.Tensor, seed: int, rows: range) -> RewardInput:
    samples = samples[rows.start : rows.stop]
    prompts = store.texts(samples)
    given = RewardInput(prompts=prompts, seeds=evaluation_seeds(prompts, seed))
    if reward.input_kind == "pixel":
        return replace(given, pixels=store.tensors("pixels", samples))
    return replace(given, latents=store.tensors("latents", samples), condition=store.conditions(store.prompt[samples]))
