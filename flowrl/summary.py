"""What a step's scores say, as metrics, and whether they can be trained on."""

from __future__ import annotations

import torch

from flowrl.actors.run_actors import ScoredGroups
from flowrl.base.errors import UserError
from flowrl.clock import Clock
from flowrl.types import Metric, Scores


class RewardError(UserError, RuntimeError):
    """Too many samples of a step could not be scored."""


def check_valid(scores: list[Scores], max_fraction: float) -> None:
    """Raise RewardError when more than `max_fraction` of the samples have no finite score."""
    invalid = sum(int((~group.valid).sum()) for group in scores)
    total = sum(len(group.valid) for group in scores)
    if invalid > max_fraction * total:
        names = sorted(
            name for name in scores[0].per_reward if any(not g.per_reward[name].isfinite().all() for g in scores)
        )
        raise RewardError(
            f"{invalid} of {total} samples have no finite score from {', '.join(names)}; rewards.max_invalid_fraction "
            f"allows {max_fraction:.1%}. Such samples are left out, never counted as 0: mend the reward or raise it"
        )


def score_metrics(scores: list[Scores]) -> list[Metric]:
    """Mean, spread and failures of each trained reward over a step, and what sampling and scoring cost."""
    metrics = []
    for name in scores[0].per_reward:
        values = torch.cat([group.per_reward[name] for group in scores])
        finite = values[values.isfinite()]
        metrics += [
            Metric(key=f"reward/{name}/mean", value=finite.mean().item()),
            Metric(key=f"reward/{name}/std", value=finite.std(correction=0).item()),
            Metric(key=f"reward/{name}/invalid", value=1 - len(finite) / len(values)),
        ]
    sums = torch.cat([group.unnormalised[group.valid] for group in scores])  # z-scores of a group have mean 0
    same = [bool((group.total[group.valid] == group.total[group.valid][:1]).all()) for group in scores]
    metrics += [
        Metric(key="reward/total/mean", value=sums.mean().item()),
        Metric(key="policy/zero_variance_groups", value=sum(same), reduce="sum"),
        Metric(key="policy/diversity", value=sum(group.diversity for group in scores) / len(scores)),
        Metric(key="bytes/trajectories", value=sum(group.trajectory_bytes for group in scores), reduce="sum"),
        Metric(key="count/images", value=sum(len(group.valid) for group in scores), reduce="sum"),
    ]
    for phase in ("rollout", "decode", "score"):
        busy = sum(group.seconds[phase] for group in scores)
        metrics.append(Metric(key=f"time/{phase}_busy_s", value=busy, reduce="sum"))
    return metrics


def advantage_metrics(advantages: list[torch.Tensor]) -> list[Metric]:
    """How strongly the samples of a step are told apart."""
    return [Metric(key="policy/advantage_absmean", value=torch.cat(advantages).abs().mean().item())]


def cost_metrics(clock: Clock, groups: ScoredGroups, weight_bytes: int) -> list[Metric]:
    """How long the phases of a step took, what it moved and how fast it was."""
    images = sum(len(group.valid) for group in groups.scores)
    return [
        *clock.metrics(),
        Metric(key="time/rollout_s", value=groups.rollout_s),
        Metric(key="time/score_s", value=groups.score_s),
        Metric(key="bytes/weights", value=weight_bytes),
        Metric(key="speed/images_per_s", value=images / clock.seconds("step")),
    ]
