"""One reward of an evaluation: loaded when its first score is missing, fed by size, its scores kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowrl.core import seeds
from flowrl.core.errors import UserError
from flowrl.core.reward_call import RewardInputError, call_reward
from flowrl.protocols import Reward
from flowrl.types import RewardInput
from rewards.data.comparison import ImageRef
from rewards.evaluation.latent_inputs import LatentInputs
from rewards.evaluation.score_cache import ScoreCache, file_stamp

MakeReward = Callable[[str, Mapping[str, Any]], Reward]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to score: an image under a prompt.

    Example: ``Item(prompt="a cat", image=ImageRef(path="/data/cat.png"))``
    """

    prompt: str
    image: ImageRef

    @property
    def key(self) -> str:
        """What its scores are kept under."""
        return hashlib.blake2b(f"{self.prompt}\0{self.image.identity}".encode(), digest_size=12).hexdigest()


@dataclass(kw_only=True)
class OpenedItem:
    """An item with its image and, once a latent reward has asked for them, its latents."""

    item: Item
    key: str
    pixels: torch.Tensor  # [3, H, W] uint8
    _latents: torch.Tensor | None = None

    def latents(self, inputs: LatentInputs) -> torch.Tensor:
        """The latents [C, h, w] float32, made once."""
        if self._latents is None:
            self._latents = inputs.latents(self.pixels)
        return self._latents


class Contestant:
    """A reward by name and options, under the label that tables call it by."""

    def __init__(self, *, label: str, name: str, options: Mapping[str, Any], make: MakeReward) -> None:
        self.label = label
        self.name = name
        self.options = dict(options)
        self._make = make
        self._reward: Reward | None = None

    def cache(self, folder: Path, title: str, context: Mapping[str, Any]) -> ScoreCache:
        """Its scores on the data called `title`, found again by name, options, the files these name, and `context`.

        `context` says what else the scores depend on: the data, the encoders, the seed.
        """
        # A reward that was trained anew in its folder is scored anew.
        files = {
            option: file_stamp(Path(value))
            for option, value in self.options.items()
            if value and isinstance(value, str)
        }
        identity = {"name": self.name, "options": self.options, "files": files, **context}
        text = json.dumps(identity, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return ScoreCache(folder / _file_name(title) / f"{_file_name(self.label)}-{digest}.jsonl", json.loads(text))

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

    def score(self, opened: Sequence[OpenedItem], inputs: LatentInputs | None, seed: int) -> dict[str, float]:
        """The scores of images by key, NaN where the reward gives none; images of one size go together.

        The noise of a latent reward is the same for all images of a prompt, as within a pair in training. Raises
        UserError when a latent reward has no encoders or the reward refuses its batch.
        """
        reward = self.reward
        if reward.input_kind == "pixel":
            inputs = None
        elif inputs is None:
            raise UserError(f"{self.label}: reads latents: set encoders.path to the folder of the policy's encoders")
        groups: dict[tuple[int, ...], list[tuple[OpenedItem, torch.Tensor]]] = defaultdict(list)
        for one in opened:
            tensor = one.pixels if inputs is None else one.latents(inputs)
            groups[tuple(tensor.shape)].append((one, tensor))
        scores: dict[str, float] = {}
        for group in groups.values():
            for start in range(0, len(group), reward.batch_size):
                part = group[start : start + reward.batch_size]
                values = self.call(_batch(part, inputs, seed))
                scores |= {one.key: value for (one, _), value in zip(part, values, strict=True)}
        return scores

    def call(self, batch: RewardInput) -> list[float]:
        """The scores of a batch; raises UserError when the reward refuses it."""
        try:
            return call_reward(self.reward, batch).double().tolist()
        except RewardInputError as error:
            raise UserError(f"{self.label}: {error}") from error


def _batch(part: Sequence[tuple[OpenedItem, torch.Tensor]], inputs: LatentInputs | None, seed: int) -> RewardInput:
    prompts = tuple(one.item.prompt for one, _ in part)
    own_seeds = torch.tensor([seeds.derive("evaluation", seed, prompt) for prompt in prompts])
    tensors = torch.stack([tensor for _, tensor in part])
    if inputs is None:
        return RewardInput(prompts=prompts, seeds=own_seeds, pixels=tensors.float() / 255)
    return RewardInput(prompts=prompts, seeds=own_seeds, latents=tensors, condition=inputs.condition(prompts))


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)
