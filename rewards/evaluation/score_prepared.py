"""Scores the samples of a prepared set with several rewards: each reads the latents or the pixels that are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from flowrl.core import seeds
from flowrl.core.errors import UserError
from flowrl.types import RewardInput
from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.evaluation.contestant import Contestant
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
    contestants: Sequence[Contestant],
    caches: Sequence[ScoreCache],
    *,
    seed: int,
    images_per_chunk: int,
) -> ScoredComparisons:
    """The scores of every sample that stands in a pair; noise is shared within a prompt, as for images from files."""
    samples = torch.unique(torch.cat([table.winner, table.loser]))
    scores = torch.full((len(contestants), len(store.shape)), math.nan, dtype=torch.float64)
    for row, (contestant, cache) in enumerate(zip(contestants, caches, strict=True)):
        missing = torch.tensor([sample for sample in samples.tolist() if str(sample) not in cache], dtype=torch.int64)
        with tqdm(desc=f"{name}: {contestant.label}", total=len(missing), unit="image", mininterval=2) as bar:
            for chunk in missing.split(images_per_chunk):
                cache.add(_scores(contestant, store, chunk, seed))
                bar.update(len(chunk))
        scores[row, samples] = torch.tensor([cache[str(sample)] for sample in samples.tolist()], dtype=torch.float64)
    return ScoredComparisons(
        pairs=JudgedPairs(table=table, prompt=store.prompt[table.winner]),
        scores=scores,
        broken=torch.ones(len(store.shape), dtype=torch.bool).index_fill(0, samples, False),
        num_comparisons=len(torch.unique(table.comparison)),
        bad_rows=Faults(what="rows", limit=0),
        bad_images=Faults(what="images", limit=0),
        skipped_rows=0,
    )


def _scores(contestant: Contestant, store: PreferenceStore, chunk: torch.Tensor, seed: int) -> dict[str, float]:
    """The scores of samples by number, those of one shape together."""
    found: dict[str, float] = {}
    for shape in torch.unique(store.shape[chunk]).tolist():
        for rows in chunk[store.shape[chunk] == shape].split(contestant.reward.batch_size):
            values = contestant.call(_batch(contestant, store, rows, seed))
            found |= {str(row): value for row, value in zip(rows.tolist(), values, strict=True)}
    return found


def _batch(contestant: Contestant, store: PreferenceStore, rows: torch.Tensor, seed: int) -> RewardInput:
    prompts = tuple(store.prompts[row] for row in store.prompt[rows].tolist())
    own_seeds = torch.tensor([seeds.derive("evaluation", seed, prompt) for prompt in prompts])
    if contestant.reward.input_kind == "pixel":
        return RewardInput(prompts=prompts, seeds=own_seeds, pixels=store.tensors("pixels", rows))
    condition = store.conditions(store.prompt[rows])
    return RewardInput(prompts=prompts, seeds=own_seeds, latents=store.tensors("latents", rows), condition=condition)
