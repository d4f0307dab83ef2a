"""Many small reward heads as one tensor program: one batched product per layer of the heads, one training for all.

AdamW works element by element, and the loss is a sum over heads, so each head learns just as it would alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from flowrl.base.errors import UserError
from flowrl.core.seeds import generator
from rewards.data.pairs import PairTable
from rewards.probe.config import HeadSection
from rewards.probe.features import LayerFeatures
from rewards.training.batches import ComparisonBatcher
from rewards.training.losses import bradley_terry_loss

Probe = tuple[int, ...]  # the layers that a head reads side by side: one or two
_CHUNK = 1024  # samples scored at once


class HeadBank(nn.Module):
    """H heads of one shape, each on the concatenated features of its own layers; first weights as nn.Linear draws them.

    A head's first weights depend on the seed and its layers alone, not on which other heads are in the bank.
    """

    def __init__(
        self, probes: Sequence[Probe], layers: tuple[int, ...], *, width: int, dims: Sequence[int], seed: int
    ) -> None:
        super().__init__()
        places = torch.tensor([[layers.index(layer) for layer in probe] for probe in probes])
        self.register_buffer("places", places)  # [H, 1 or 2], rows of the features
        draws = [generator(seed, "probe", *probe) for probe in probes]
        sizes = [width * places.shape[1], *dims, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(sizes):
            bound = before**-0.5
            self.weights.append(_uniform(draws, (before, after), bound))  # [H, before, after]
            self.biases.append(_uniform(draws, (1, after), bound))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [S, B, D] of all layers to the scores [H, B] of all heads."""
        assert isinstance(self.places, torch.Tensor)
        hidden = features[self.places].movedim(1, 2).flatten(2)  # [H, B, layers of a probe * D]
        last = len(self.weights) - 1
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = hidden if number == last else F.gelu(hidden)
        return hidden[..., 0]


def _uniform(draws: Sequence[torch.Generator], shape: tuple[int, ...], bound: float) -> nn.Parameter:
    return nn.Parameter(torch.stack([torch.rand(shape, generator=one) * 2 * bound - bound for one in draws]))


def train_heads(
    probes: Sequence[Probe], features: LayerFeatures, pairs: PairTable, head: HeadSection, *, seed: int
) -> HeadBank:
    """Train a head for each probe, all at once; `features` are standardised, of all samples that `pairs` names.

    The batches depend on the seed alone. Raises ValueError when there is no pair but ties, and UserError when a head
    has diverged.
    """
    values = features.values
    bank = HeadBank(probes, features.layers, width=values.shape[2], dims=head.dims, seed=seed).to(values.device)
    # Pooled features know no shapes: any comparisons may share a batch.
    one_shape = torch.zeros(values.shape[1], dtype=torch.int64)
    batcher = ComparisonBatcher(pairs.select(~pairs.tie), one_shape, batch_size=head.batch_size, seed=seed)
    optimizer = torch.optim.AdamW(bank.parameters(), lr=head.lr, betas=(0.9, 0.99), weight_decay=head.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, head.steps)
    for step in tqdm(range(head.steps), desc=f"{len(probes)} heads", unit="step", mininterval=2, leave=False):
        (micro,) = batcher.micro_batches(batcher.at(step), size=batcher.batch_size)
        scores = bank(values[:, micro.samples.to(values.device)])
        losses = bradley_terry_loss(scores[:, micro.winner], scores[:, micro.loser])
        optimizer.zero_grad()
        (losses * micro.weight.to(losses)).sum().backward()
        optimizer.step()
        schedule.step()
    if not all(parameter.isfinite().all() for parameter in bank.parameters()):
        raise UserError(f"head.lr: a head of {list(probes)} has diverged; take a smaller one than {head.lr:g}")
    return bank


@torch.no_grad()
def score_heads(bank: HeadBank, features: LayerFeatures) -> torch.Tensor:
    """The scores [H, N] float32 on the CPU of all samples."""
    parts = [bank(part).float().cpu() for part in features.values.split(_CHUNK, dim=1)]
    return torch.cat(parts, 1)
