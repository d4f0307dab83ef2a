"""What an evaluation is given beside its configuration: rewards that fit its data, and the policy's encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowrl.base.devices import pick_device
from flowrl.config import RewardSpec
from flowrl.models.image_sizes import ImageChoice, deviations, shared_buckets
from flowrl.models.latent_inputs import EncoderSetting, LatentInputs
from flowrl.registry import find
from flowrl.reward_loading import LatentSource, check_made, check_rewards, make_reward
from flowrl.reward_protocols import Reward
from flowrl.types import TrainedOn
from rewards.data.store import load_info
from rewards.evaluation.config import EncoderSection, EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationParts:
    """What rewards are made for and fed with."""

    sources: tuple[LatentSource, ...]  # one or more
    inputs: LatentInputs | None  # None: no image is to be encoded
    remarks: tuple[str, ...]  # on images that rewards get otherwise than in their training
    device: str

    def make(self, name: str, options: Mapping[str, Any]) -> Reward:
        """Load a reward; raises ConfigError when its options do not fit, or when it reads other latents."""
        reward = make_reward(RewardSpec(name=name, options=dict(options)), self.device)
        for source in self.sources:
            check_made(name, reward, source)
        return reward

    def target(self, name: str) -> str:
        """The class that a reward's name stands for, "module:Class"."""
        return find("reward", name).target


def evaluation_parts(config: EvaluationConfig) -> EvaluationParts:
    """Check all rewards against all data, and set the encoders up; nothing is loaded yet.

    Raises ConfigError, or what a reward's own preflight raises, when a reward cannot be made or cannot read what it is
    to score.
    """
    device = pick_device(config.device)
    encoders = _encoders(config.encoders, device) if config.encoders.path and _reads_images(config) else None
    sources = tuple(dict.fromkeys(_sources(config, encoders)))
    specs = [RewardSpec(name=entry.name, label=entry.title, options=entry.options) for entry in config.rewards]
    trained = check_rewards(specs, sources, device)
    if encoders is None:
        return EvaluationParts(sources=sources, inputs=None, remarks=(), device=device)
    inputs, remarks = _inputs(config.encoders, encoders, trained)
    return EvaluationParts(sources=sources, inputs=inputs, remarks=remarks, device=device)


def _reads_images(config: EvaluationConfig) -> bool:
    return any(benchmark.sources for benchmark in config.benchmarks)


def _encoders(section: EncoderSection, device: str) -> EncoderSetting:
    return EncoderSetting.of(
        section.path,
        family=section.family,
        max_sequence_length=section.max_sequence_length,
        dtype=section.dtype,
        device=device,
    )


def _sources(config: EvaluationConfig, encoders: EncoderSetting | None) -> Iterator[LatentSource]:
    """Where latents and text conditions come from, benchmark by benchmark: the encoders, or a prepared set."""
    for benchmark in config.benchmarks:
        if benchmark.prepared:
            info = load_info(Path(benchmark.prepared))
            yield LatentSource(
                latent_space=info.latent_space or None, text_length=info.text_length, folder=benchmark.prepared
            )
        elif encoders is None:
            yield LatentSource(latent_space=None, key="encoders.path")
        else:
            yield LatentSource.of_policy(
                encoders.family, encoders.path, encoders.max_sequence_length, key="encoders.max_sequence_length"
            )


def _inputs(
    section: EncoderSection, encoders: EncoderSetting, trained: Mapping[str, TrainedOn]
) -> tuple[LatentInputs, tuple[str, ...]]:
    """The encoders for images of the sizes that rewards were trained on, and where these are others what to say."""
    choice = ImageChoice(image_size=section.image_size, bucket_step=section.bucket_step, max_aspect=section.max_aspect)
    keys = ("encoders.image_size", "encoders.bucket_step", "encoders.max_aspect")
    buckets = shared_buckets(choice, trained, keys=keys)
    return LatentInputs(replace(encoders, buckets=buckets)), tuple(deviations(buckets, trained))
