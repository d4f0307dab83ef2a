"""The number that is trained on where several rewards are: a weighted sum of their scores, each normalised first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

_EPSILON = 1e-8  # as published with this normalisation, in Flow-GRPO's `advantage_aggr` (code of arXiv:2505.05470)


@dataclass(frozen=True, kw_only=True)
class Term:
    """How the scores of one reward enter the sum: weight * normalised((score + shift) * scale).

    Example: HPSv3/10 at half weight is ``Term(weight=0.5, scale=0.1)``.
    """

    weight: float = 1.0
    shift: float = 0.0
    scale: float = 1.0
    normalise: Literal["none", "group"] = "none"


def weighted_sum(scores: Mapping[str, torch.Tensor], terms: Mapping[str, Term]) -> torch.Tensor:
    """The total [G] float32 of one whole group; `terms` names at least one reward, `scores` holds a [G] for each.

    A sample that any of these rewards could not score has no total: it is not finite. Scores without a term, those of
    watched rewards, take no part.
    """
    parts = [term.weight * _normalised(scores[name], term) for name, term in terms.items()]
    return torch.stack(parts).sum(0)


def unnormalised_sum(scores: Mapping[str, torch.Tensor], terms: Mapping[str, Term]) -> torch.Tensor:
    """The same sum [G] float32 with no reward normalised: to watch, because z-scores of a group have mean 0."""
    return torch.stack([term.weight * _scaled(scores[name], term) for name, term in terms.items()]).sum(0)


def _normalised(score: torch.Tensor, term: Term) -> torch.Tensor:
    scaled = _scaled(score, term)
    return group_z_scores(scaled) if term.normalise == "group" else scaled


def _scaled(score: torch.Tensor, term: Term) -> torch.Tensor:
    return (score + term.shift) * term.scale


def group_z_scores(scores: torch.Tensor) -> torch.Tensor:
    """(score - mean) / (std + 1e-8) over the samples [G] of a prompt: float32.

    The standard deviation is that of the population, in float64. Scores that are not finite take no part and become
    NaN; a group of equal scores becomes zeros.
    """
    finite = scores.isfinite()
    kept = scores.double()[finite]
    result = torch.full(scores.shape, torch.nan, dtype=torch.float64)
    result[finite] = 0.0
    if not bool((kept == kept[:1]).all()):  # the mean of equal scores may round to a neighbour of theirs
        result[finite] = (kept - kept.mean()) / (kept.std(correction=0) + _EPSILON)
    return result.float()
