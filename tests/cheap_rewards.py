"""Rewards that cost nothing and need no weights, named in tests by dotted path."""

from __future__ import annotations

import os
from typing import Literal

import torch

from flowrl.types import RewardInput

LATENT, BRIGHT = "tests.cheap_rewards:LatentNorm", "tests.cheap_rewards:Brightness"  # as a configuration names them
LATENT_KEY, BRIGHT_KEY = "LatentNorm", "Brightness"  # as metrics name them
TINY_SPACE = "vae16x8-scale1.5305-shift0.0609"


class LatentNorm:
    """Higher the closer the latents are to a point.

    `nan_every` makes every n-th sample of a batch fail, `nan_after` all samples after so many; `die_after` ends the
    process then, as a crash does.
    """

    name = "latent_norm"
    input_kind: Literal["latent", "pixel"] = "latent"

    def __init__(
        self,
        device: str = "cpu",
        target: float = 0.5,
        batch_size: int = 3,
        latent_space: str = TINY_SPACE,
        nan_every: int = 0,
        nan_after: int = 10**9,
        die_after: int = 10**9,
    ) -> None:
        self.target = target
        self.batch_size = batch_size
        self.latent_space: str | None = latent_space
        self.nan_every = nan_every
        self.scored = 0
        self.nan_after = nan_after
        self.die_after = die_after

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        assert batch.latents is not None
        assert batch.pixels is None
        assert batch.condition is not None
        assert len(batch.condition.embeds) == len(batch.prompts) == len(batch.seeds) == len(batch.latents)
        scores = -(batch.latents - self.target).square().flatten(1).mean(1).sqrt()
        self.scored += len(scores)
        if self.scored > self.die_after:
            os._exit(1)
        if self.scored > self.nan_after:
            scores[:] = float("nan")
        if self.nan_every:
            scores[:: self.nan_every] = float("nan")
        return scores


class Brightness:
    """The mean of the pixels."""

    name = "brightness"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None
    batch_size = 2

    def __init__(self, device: str = "cpu", sign: float = 1.0) -> None:
        self.sign = sign

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        assert batch.pixels is not None
        assert batch.latents is None
        assert batch.pixels.min() >= 0
        assert batch.pixels.max() <= 1
        return self.sign * batch.pixels.flatten(1).mean(1)


class SeedEcho:
    """Tells which seeds and prompts a batch came with."""

    name = "seed_echo"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None
    batch_size = 2

    def __init__(self, device: str = "cpu") -> None:
        pass

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        lengths = torch.tensor([float(len(text)) for text in batch.prompts])
        return (batch.seeds % 1000).float() + lengths / 1000


class WrongShape(Brightness):
    """Returns one number for the whole batch."""

    name = "wrong_shape"

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        return super().__call__(batch).mean()


class Broken(Brightness):
    """Fails at the first call."""

    name = "broken"

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        raise RuntimeError("the judge has left the room")
