"""One reward of an evaluation: loaded when its first score is missing, fed by size, its scores kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowrl.base.errors import UserError
from flowrl.core.seeds import evaluation_seeds
from flowrl.models.latent_inputs import LatentInputs
from flowrl.reward_call import RewardInputError, score_in_parts
from flowrl.reward_protocols import Reward
from flowrl.types import RewardInput
from rewards.data.comparison import ImageRef
from rewards.evaluation.identity import image_stamp, reward_identity
from rewards.evaluation.score_cache import ScoreCache, ScoreUse

MakeReward = Callable[[str, Mapping[str, Any]], Reward]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One thing to score: an image under a prompt.

    Example: ``Sample.of("a cat", ImageRef(path="/data/cat.png"))``
    """

    prompt: str
    image: ImageRef
    stamp: str  # of the image as it is now

    @classmethod
    def of(cls, prompt: str, image: ImageRef) -> Sample:
        """A sample of an image as it lies there now."""
        return cls(prompt=prompt, image=image, stamp=image_stamp(image))

    @property
    def key(self) -> str:
        """What its scores are kept under; an image that was replaced has another."""
        text = f"{self.prompt}\0{self.image.identity}\0{self.stamp}"
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(kw_only=True)
class OpenedSample:
    """A sample with its image and, once a latent reward has asked for them, its latents."""

    sample: Sample
    key: str
    pixels: torch.Tensor  # [3, H, W] uint8
    _latents: torch.Tensor | None = None

    def latents(self, inputs: LatentInputs) -> torch.Tensor:
        """The latents [C, h, w] float32 on the CPU, made once; raises UserError when there are none of its size."""
        if self._latents is None:
            try:
                self._latents = inputs.latents(self.pixels[None].float() / 255)[0].cpu()
            except UserError:  # of encoders that cannot be loaded: no image is to blame
                raise
            except ValueError as error:
                raise UserError(f"{self.sample.image}: {error}, or set encoders.image_size") from None
        return self._latents


class CachedReward:
    """A reward by name and options, under the label that tables call it by; `target` is its class, "module:Class"."""

    def __init__(self, *, label: str, name: str, options: Mapping[str, Any], target: str, make: MakeReward) -> None:
        self.label = label
        self.name = name
        self.options = dict(options)
        self._target = target
        self._make = make
        self._reward: Reward | None = None
        self._not_kept: dict[str, ScoreCache] = {}
        self._uses: dict[Path, ScoreUse] = defaultdict(ScoreUse)

    def cache(self, folder: Path, title: str, context: Mapping[str, Any]) -> ScoreCache:
        """Its scores on the data called `title`, found again by `reward_identity` and `context`.

        `context` says what else the scores depend on: the data, the encoders, the seed. The scores of a reward that
        files do not identify are in memory alone.
        """
        own = reward_identity(self.name, self.options, self._target)
        text = json.dumps({**(own or {}), **context}, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        path = folder / _file_name(title) / f"{_file_name(self.label)}-{digest}.jsonl"
        if own is None:
            return self._not_kept.setdefault(digest, ScoreCache(None, {}, self._uses[path]))
        return ScoreCache(path, json.loads(text), self._uses[path])

    @property
    def num_found(self) -> int:
        """How many scores its caches held from before the evaluation, of those that were asked for."""
        return sum(len(use.found) for use in self._uses.values())

    @property
    def num_made(self) -> int:
        """How many scores the evaluation has made."""
        return sum(len(use.made) for use in self._uses.values())

    @property
    def reward(self) -> Reward:
        """The reward, loaded when it is first asked for."""
        if self._reward is None:
            self._reward = self._make(self.name, self.options)
        return self._reward

    def release(self) -> None:
        """Let go of the reward's memory; it is loaded again when a score is missing."""
        self._reward = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def score(self, opened: Sequence[OpenedSample], inputs: LatentInputs | None, seed: int) -> dict[str, float]:
        """The scores of samples by key, NaN where the reward gives none; images of one size go together.

        The noise of a latent reward is the same for all images of a prompt, as within a pair in training. Raises
        UserError when a latent reward has no encoders or the reward refuses its batch.
        """
        if self.reward.input_kind == "pixel":
            inputs = None
        elif inputs is None:
            raise UserError(f"{self.label}: reads latents: set encoders.path to the folder of the policy's encoders")
        groups: dict[tuple[int, ...], list[tuple[OpenedSample, torch.Tensor]]] = defaultdict(list)
        for one in opened:
            tensor = one.pixels if inputs is None else one.latents(inputs)
            groups[tuple(tensor.shape)].append((one, tensor))
        scores: dict[str, float] = {}
        for group in groups.values():
            values = self.scores(len(group), partial(_batch, group, inputs, seed))
            scores |= {one.key: value for (one, _), value in zip(group, values, strict=True)}
        return scores

    def scores(self, size: int, take: Callable[[range], RewardInput]) -> list[float]:
        """The scores of samples that `take` gives by their rows; raises UserError when the reward refuses them."""
        try:
            return score_in_parts(self.reward, size, take).double().tolist()
        except RewardInputError as error:
            raise UserError(f"{self.label}: {error}") from error


def _batch(
    group: Sequence[tuple[OpenedSample, torch.Tensor]], inputs: LatentInputs | None, seed: int, rows: range
) -> RewardInput:
    part = [group[row] for row in rows]
    prompts = tuple(one.sample.prompt for one, _ in part)
    given = RewardInput(prompts=prompts, seeds=evaluation_seeds(prompts, seed))
    tensors = torch.stack([tensor for _, tensor in part])
    if inputs is None:
        return replace(given, pixels=tensors.float() / 255)
    return replace(given, latents=tensors, condition=inputs.condition(prompts))


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
