"""The actor that scores groups with one or more rewards."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch

from flowrl.actors.sharding import join_gang, on_all_ranks, shard, shard_empty
from flowrl.actors.turns import give_back, move_frozen
from flowrl.base.empty_module import is_empty
from flowrl.config import RewardSpec
from flowrl.core.reward_sum import Term, unnormalised_sum, weighted_sum
from flowrl.model_spec import ModelSpec
from flowrl.models.image_parts import SplitDecoder
from flowrl.reward_call import RewardInputError, score_in_parts
from flowrl.reward_loading import load_reward
from flowrl.reward_protocols import Reward, ShardableReward, StreamedReward
from flowrl.types import RewardInput, Scores, TextCondition, Trajectory


class Scorer:
    """Latent rewards read the final latents; pixel rewards get them decoded, once for all of them.

    The image decoder is loaded with the rewards where one of them reads pixels, or evaluations show images.
    """

    def __init__(
        self,
        model: ModelSpec,
        train: list[RewardSpec],
        watch: list[RewardSpec],
        *,
        sharded: bool,
        timeout_s: float,
        shows_images: bool,
    ) -> None:
        model.prepare_process()
        self._device, self._sharded = model.device, sharded
        if sharded:
            join_gang(model.device, timeout_s)
        self._terms = {
            spec.metric_name: Term(weight=spec.weight, shift=spec.shift, scale=spec.scale, normalise=spec.normalise)
            for spec in train
        }
        self._rewards: dict[str, Reward] = {}
        for spec in [*train, *watch]:
            make = partial(load_reward, spec, model.latent_space, model.device, empty=sharded)
            reward = _spread(on_all_ranks(make), torch.device(model.device)) if sharded else make()
            self._rewards[spec.metric_name] = reward
        self._decoder = SplitDecoder(partial(model.family.load_decoder, model.path, device=model.device))
        if shows_images or _read_pixels(self._rewards.values()):
            self._decoder.load()

    def move_frozen(self, on_device: bool) -> None:
        """Have the networks of the rewards on the device, or else in the host's memory.

        Those spread over a gang stay, as do those of rewards that do not show them, and the decoder.
        """
        for reward in self._rewards.values():
            if isinstance(reward, ShardableReward) and not self._sharded:
                move_frozen(reward.module.requires_grad_(False), self._device if on_device else "cpu")
        if not on_device:
            give_back()  # what decoding and scoring took, also of rewards that stay

    def score(self, trajectory: Trajectory) -> Scores:
        """Score one group with the rewards that are trained on."""
        return self._score(trajectory, {name: self._rewards[name] for name in self._terms}, 0)

    def evaluate(self, trajectory: Trajectory, num_images: int) -> Scores:
        """Score one group with every reward, and return its first images too."""
        return self._score(trajectory, self._rewards, num_images)

    def _score(self, trajectory: Trajectory, rewards: dict[str, Reward], num_images: int) -> Scores:
        began = time.perf_counter()
        pixels = None
        if num_images or _read_pixels(rewards.values()):
            pixels = self._decoder.decode(trajectory.final_latents)
        decoded = time.perf_counter()
        per_reward = {name: _apply(reward, trajectory, pixels) for name, reward in rewards.items()}
        total = unnormalised = torch.zeros(trajectory.num_samples)
        if self._terms:
            total = weighted_sum(per_reward, self._terms)
            unnormalised = unnormalised_sum(per_reward, self._terms)
        images = None
        if num_images and pixels is not None:
            images = (pixels[:num_images] * 255).round().to(torch.uint8)
        return Scores(
            per_reward=per_reward,
            total=total,
            unnormalised=unnormalised,
            valid=torch.isfinite(total),
            images=images,
            diversity=_diversity(trajectory.final_latents),
            trajectory_bytes=trajectory.num_bytes,
            seconds={
                "rollout": trajectory.seconds,
                "decode": decoded - began,
                "score": time.perf_counter() - decoded,
            },
        )


def _read_pixels(rewards: Iterable[Reward]) -> bool:
    return any(reward.input_kind == "pixel" for reward in rewards)


def _spread(reward: Reward, device: torch.device) -> Reward:
    """The reward with its network, if it shows one, spread over the gang."""
    if isinstance(reward, StreamedReward) and is_empty(reward.module):
        reward.module = shard_empty(reward.module, reward.read_weights, device)
    elif isinstance(reward, ShardableReward):
        reward.module = shard(reward.module)
    return reward


def _apply(reward: Reward, trajectory: Trajectory, pixels: torch.Tensor | None) -> torch.Tensor:
    """The scores [G] float32 of a group; raises what `score_in_parts` raises."""
    size = trajectory.num_samples
    batch = RewardInput(prompts=(trajectory.prompt.text,) * size, seeds=trajectory.seeds)
    if reward.input_kind == "latent":
        condition = TextCondition(
            embeds=trajectory.condition.embeds.expand(size, -1, -1),
            pooled=trajectory.condition.pooled.expand(size, -1),
        )
        batch = replace(batch, latents=trajectory.final_latents, condition=condition)
    else:
        assert pixels is not None
        batch = replace(batch, pixels=pixels)
    try:
        return score_in_parts(reward, size, batch.take)
    except RewardInputError as error:
        raise RewardInputError(
            f"{error}. If it is not meant for such inputs, take it out of rewards.train and rewards.watch"
        ) from error


def _diversity(latents: torch.Tensor) -> float:
    """The mean over pairs of samples of their root-mean-square distance."""
    flat = latents.flatten(1)
    distances = torch.pdist(flat) / flat.shape[1] ** 0.5
    return float(distances.mean()) if len(distances) else 0.0
