"""The scores of a prepared set's samples by a reward model in training, and how they agree with its pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tqdm import tqdm

from flowrl.core.seeds import evaluation_seeds
from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.evaluation.accuracy import PROTOCOLS
from rewards.training.losses import bradley_terry_loss
from rewards.training.session import Session


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The share of pairs that scores order as labelled, ties left out; equal scores count as wrong.

    Example: ``Accuracy(overall=0.86, pairs=1200, loss=0.35, mean_score=0.1, by_source={"hpdv3": 0.86},
    by_category={}, unmeasured=())``
    """

    overall: float
    pairs: int
    loss: float  # Bradley-Terry, mean over the pairs
    mean_score: float  # of the samples that stand in a pair, ties included, each once
    by_source: dict[str, float]
    by_category: dict[str, float]
    unmeasured: tuple[str, ...]  # sources of which no pair with a winner was looked at


def score_samples(session: Session, store: PreferenceStore, samples: torch.Tensor, *, batch_size: int) -> torch.Tensor:
    """Scores [n] float32 of samples [n], the same on every rank; samples of one prompt get the same noise."""
    network = session.network
    network.eval()
    chunks = [
        rows
        for shape in torch.unique(store.shape[samples]).tolist()
        for rows in (store.shape[samples] == shape).nonzero()[:, 0].split(batch_size)
    ]
    rounds = -(-len(chunks) // session.world)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    bar = tqdm(range(rounds), desc="scoring", unit="batch", leave=False, mininterval=2, disable=not session.is_main)
    for number in bar:
        # All ranks make the same number of passes; where the chunks run out, one does the last again.
        rows = chunks[min(number * session.world + session.rank, len(chunks) - 1)]
        chosen = samples[rows]
        with torch.no_grad():
            inputs = session.trainable.inputs(store, chosen, evaluation_seeds(store.texts(chosen)), session.device)
            found.append((rows, network([inputs])[0][:, 0].float().cpu()))
    scores = torch.empty(len(samples))
    for rows, part in session.gather(found):
        scores[rows] = part
    network.train()
    return scores


def validate(session: Session, store: PreferenceStore, pairs: PairTable, *, batch_size: int) -> Accuracy:
    """Score every sample that stands in a pair, and compare."""
    samples = torch.unique(torch.cat([pairs.winner, pairs.loser]))
    scores = torch.full((len(store.shape),), float("nan"))
    scores[samples] = score_samples(session, store, samples, batch_size=batch_size)
    return agreement(pairs, scores)


def agreement(pairs: PairTable, scores: torch.Tensor) -> Accuracy:
    """How the scores [N] of samples agree with pairs; raises ValueError when one that is needed is not finite."""
    earned = PROTOCOLS["rankings_pooled"].credits(pairs, scores)

    def shares(index: torch.Tensor, names: tuple[str, ...]) -> dict[str, float]:
        groups = {name: earned.only(index == number) for number, name in enumerate(names) if name}
        return {name: group.accuracy for name, group in groups.items() if group.counted.any()}

    by_source = shares(pairs.source, pairs.sources)
    losses = bradley_terry_loss(scores[pairs.winner], scores[pairs.loser])
    samples = torch.unique(torch.cat([pairs.winner, pairs.loser]))
    return Accuracy(
        overall=earned.accuracy,
        pairs=int(earned.counted.sum()),
        loss=float(losses[~pairs.tie].mean()),
        mean_score=float(scores[samples].mean()),
        by_source=by_source,
        by_category=shares(pairs.category, pairs.categories),
        unmeasured=tuple(name for name in pairs.sources if name and name not in by_source),
    )
