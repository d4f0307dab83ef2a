"""What may decide between arms: nothing that one of them was trained on."""

from __future__ import annotations

from flowrl.config import RewardSpec
from flowrl.config_sections import RewardsSection
from flowrl.registry import part_of


def optimises(rewards: RewardsSection, measure: str) -> bool:
    """Whether a run is trained on what a measure measures: the same reward under any label, its whole or its part."""
    named = [spec for spec in (*rewards.train, *rewards.watch) if spec.metric_name == measure]
    return any(
        trained.metric_name == measure or any(_same(trained, spec) for spec in named) for trained in rewards.train
    )


def _same(one: RewardSpec, other: RewardSpec) -> bool:
    if one.name == other.name:
        return one.options == other.options
    return part_of(one.name, [other.name]) is not None or part_of(other.name, [one.name]) is not None
