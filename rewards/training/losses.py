"""Losses on preference pairs, one value per pair, so that pairs can be weighted and summed over ranks."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

LossKind = Literal["bradley_terry", "uncertainty"]
TieKind = Literal["drop", "soft", "rao_kupper"]


def bradley_terry_loss(winner: torch.Tensor, loser: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(r_w - r_l) [P] of scores [P] and [P] (arXiv 2606.23626 section 3; Bradley-Terry)."""
    return -F.logsigmoid(winner - loser)


def soft_tie_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [P] with the label one half for either, less its least value, so that equal scores cost 0.

    How PickScore trains on ties (arXiv 2305.01569, its released trainer).
    """
    difference = first - second
    return -0.5 * (F.logsigmoid(difference) + F.logsigmoid(-difference)) - math.log(2)


def rao_kupper_loss(
    winner: torch.Tensor, loser: torch.Tensor, tie: torch.Tensor, *, threshold: float = 5.0
) -> torch.Tensor:
    """Negative log-likelihood [P] of Bradley-Terry with ties (Rao and Kupper 1967; `btt` in HPSv3's trainer, k = 5).

    With k the threshold, P(w beats l) = e^w / (e^w + k e^l) and P(tie) = (k^2 - 1) P(w beats l) P(l beats w).
    Raises ValueError unless the threshold is above 1.
    """
    if threshold <= 1:
        raise ValueError(f"the threshold of the tie model must be above 1, got {threshold}")
    k = math.log(threshold)
    beats = F.logsigmoid(winner - loser - k)
    beaten = F.logsigmoid(loser - winner - k)
    return -torch.where(tie, beats + beaten + math.log(threshold**2 - 1), beats)


def uncertainty_loss(winner: torch.Tensor, loser: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
    """HPSv3's loss [P] for outputs [P, 2] of (mu, log sigma): Bradley-Terry of a drawn difference, averaged over draws.

    The difference is (mu_w - mu_l) + sqrt(sigma_w^2 + sigma_l^2) xi with xi standard normal [draws, P]
    (arXiv 2508.03789).
    """
    return bradley_terry_loss(_drawn(winner, loser, xi), winner.new_zeros(())).mean(0)


def uncertain_tie_loss(first: torch.Tensor, second: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
    """`soft_tie_loss` of the same drawn difference (our extension: HPSv3 trains on no ties)."""
    return soft_tie_loss(_drawn(first, second, xi), first.new_zeros(())).mean(0)


def _drawn(first: torch.Tensor, second: torch.Tensor, xi: torch.Tensor) -> torch.Tensor:
    # Not as the root of a sum, whose gradient is not a number where both spreads vanish.
    spread = (0.5 * torch.logaddexp(2 * first[:, 1], 2 * second[:, 1])).exp()
    return first[:, 0] - second[:, 0] + spread * xi.to(first)


def pair_losses(
    winner: torch.Tensor,
    loser: torch.Tensor,
    tie: torch.Tensor,
    xi: torch.Tensor | None,
    *,
    kind: LossKind,
    ties: TieKind,
    threshold: float = 5.0,
) -> torch.Tensor:
    """The loss [P] of pairs with outputs [P, 1] or, for the uncertainty loss, [P, 2]; `tie` [P] bool marks the ties.

    The uncertainty loss needs the draws `xi` [draws, P]. With ties "drop" none may be among the pairs: they were left
    out before.
    """
    if kind == "uncertainty":
        assert xi is not None
        decided = uncertainty_loss(winner, loser, xi)
        return decided if ties == "drop" else torch.where(tie, uncertain_tie_loss(winner, loser, xi), decided)
    winner, loser = winner[:, 0], loser[:, 0]
    if ties == "rao_kupper":
        return rao_kupper_loss(winner, loser, tie, threshold=threshold)
    decided = bradley_terry_loss(winner, loser)
    return decided if ties == "drop" else torch.where(tie, soft_tie_loss(winner, loser), decided)
