"""What a reward says of its training, held against what it will be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from flowrl.actors.reward_loading import LatentSource, check_rewards
from flowrl.config import ConfigError, RewardSpec
from flowrl.types import TrainedOn
from tests.cheap_rewards import LatentNorm

NAME = "tests.unit.test_reward_loading:Trained"


class Trained(LatentNorm):
    """Says that it was trained on texts of 28 tokens, or whatever its option says."""

    def __init__(self, device: str = "cpu", tokens: int = 28) -> None:
        super().__init__(device=device)

    @staticmethod
    def check(options: Mapping[str, Any]) -> TrainedOn | None:
        """Nothing is looked at."""
        return TrainedOn(latent_space="vae4x8", text_length=options.get("tokens", 28))


class Outdated(LatentNorm):
    """Says what it reads in another way than rewards do."""

    @staticmethod
    def check(options: Mapping[str, Any]) -> str:
        """The name alone."""
        return "vae4x8"


def source(text_length: int, max_sequence_length: int = 0, folder: str = "") -> LatentSource:
    key = "" if folder else "model.max_sequence_length"
    return LatentSource(
        latent_space="vae4x8",
        text_length=text_length,
        max_sequence_length=max_sequence_length,
        key=key,
        folder=folder,
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (source(33, 19), "but gets 33 with model.max_sequence_length 19; set model.max_sequence_length to 14$"),
        (source(77 + 19, 19), "but gets 96 with model.max_sequence_length 19; use another reward$"),
        (source(33, folder="/sets/mine"), "but gets 33 of /sets/mine; prepare the set again with the max_seq"),
    ],
)
def test_another_text_length_is_refused_with_what_to_do(given: LatentSource, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^rewards: '{NAME}' was trained on texts of 28 tokens, {says}"):
        check_rewards([RewardSpec(name=NAME)], given, "cpu")


@pytest.mark.parametrize(("tokens", "given"), [(28, 28), (0, 33), (28, 0)])
def test_what_is_equal_or_not_known_passes_and_is_told_by_label(tokens: int, given: int) -> None:
    specs = [RewardSpec(name=NAME, label="mine", options={"tokens": tokens}), RewardSpec(name="oracle")]
    expected = {"mine": TrainedOn(latent_space="vae4x8", text_length=tokens)}
    assert check_rewards(specs, source(given), "cpu") == expected


def test_a_check_that_returns_something_else_is_named() -> None:
    name = NAME.replace("Trained", "Outdated")
    with pytest.raises(ConfigError, match=rf"check of '{name}' must return a flowrl.types.TrainedOn, .* got 'vae4x8'"):
        check_rewards([RewardSpec(name=name)], source(28), "cpu")
