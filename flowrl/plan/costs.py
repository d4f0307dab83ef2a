"""What the parts of a run take, each measured for itself: what memory, time and bytes are put together from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flowrl.base.dtypes import torch_dtype
from flowrl.config import RewardSpec, RunConfig
from flowrl.core.latent_space import factor_of
from flowrl.plan.image_cost import DecodeCost, decode_cost
from flowrl.plan.model_sizes import ModelSizes, model_sizes
from flowrl.plan.policy_cost import policy_cost
from flowrl.plan.policy_measure import AdapterShape, Geometry, PolicyCost
from flowrl.plan.reward_cost import RewardCost, reward_cost
from flowrl.plan.work import StepWork, step_work
from flowrl.registry import resolve
from flowrl.types import SampleShapes


@dataclass(frozen=True, kw_only=True)
class ScoringCost:
    """A reward of the configuration, and what it takes where its class can tell."""

    name: str
    reads_pixels: bool
    trained: bool  # scored in each step; else at evaluations alone
    cost: RewardCost | None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one configuration."""

    config: RunConfig
    work: StepWork
    model: ModelSizes
    geometry: Geometry
    policy: PolicyCost
    image: DecodeCost  # of one
    rewards: tuple[ScoringCost, ...]

    @property
    def trained(self) -> tuple[ScoringCost, ...]:
        """Those of the rewards that are trained on."""
        return tuple(reward for reward in self.rewards if reward.trained)

    @property
    def steps_decode(self) -> bool:
        """Whether the images of a step are made, which a latent reward does not need."""
        return any(reward.reads_pixels for reward in self.trained)

    @property
    def evaluations_decode(self) -> bool:
        """Whether images of an evaluation are made, to be scored or to be shown."""
        return self.config.eval.grid_prompts > 0 or any(reward.reads_pixels for reward in self.rewards)

    def with_other_checkpointing(self) -> PolicyCost:
        """The policy with the other setting of model.gradient_checkpointing, which is measured when it is asked for."""
        other = not self.config.model.gradient_checkpointing
        return _policy(self.config, self.model, self.geometry, gradient_checkpointing=other)

    @property
    def condition_bytes(self) -> int:
        """The text condition of one prompt."""
        shapes = sample_shapes(self.config, self.model, self.geometry)
        tokens, width = shapes.text
        return (tokens * width + shapes.pooled) * shapes.text_dtype.itemsize


def costs_of(config: RunConfig) -> Costs:
    """Measure the parts of a checked configuration; raises what `model_sizes` raises."""
    work, model = step_work(config), model_sizes(config.model)
    geometry = _geometry(config, model, work.samples_per_forward)
    policy = _policy(config, model, geometry, gradient_checkpointing=config.model.gradient_checkpointing)
    shapes = sample_shapes(config, model, geometry)
    return Costs(
        config=config,
        work=work,
        model=model,
        geometry=geometry,
        policy=policy,
        image=_decoding(json.dumps(dict(model.vae), sort_keys=True), geometry.latent_shape),
        rewards=tuple(
            ScoringCost(
                name=spec.metric_name,
                reads_pixels=_reads_pixels(spec),
                trained=trained,
                cost=_scoring(spec.name, spec.metric_name, json.dumps(spec.options, default=str), shapes),
            )
            for trained, specs in ((True, config.rewards.train), (False, config.rewards.watch))
            for spec in specs
        ),
    )


def sample_shapes(config: RunConfig, model: ModelSizes, geometry: Geometry) -> SampleShapes:
    """What one sample of the run is."""
    side = config.model.image_size
    return SampleShapes(
        latents=geometry.latent_shape,
        pixels=(3, side, side),
        text=(geometry.text_length, int(model.transformer["joint_attention_dim"])),
        pooled=int(model.transformer["pooled_projection_dim"]),
        text_dtype=geometry.dtype,
        policy=Path(config.model.path).name,
    )


def _policy(config: RunConfig, model: ModelSizes, geometry: Geometry, *, gradient_checkpointing: bool) -> PolicyCost:
    section = config.model
    return policy_cost(
        model.transformer,
        geometry,
        AdapterShape(rank=section.lora_rank, alpha=section.lora_alpha, targets=tuple(section.lora_targets)),
        config.algorithm,
        gradient_checkpointing=gradient_checkpointing,
    )


def _geometry(config: RunConfig, model: ModelSizes, samples: int) -> Geometry:
    side = config.model.image_size // factor_of(model.vae)
    return Geometry(
        latent_shape=(int(model.vae["latent_channels"]), side, side),
        text_length=model.clip_tokens + config.model.max_sequence_length,
        samples=samples,
        guided=config.rollout.guidance_scale != 1,
        dtype=torch_dtype(config.model.dtype),
        quantisation=config.model.quantisation,
    )


def _reads_pixels(spec: RewardSpec) -> bool:
    """Whether a reward reads images; one that says it only when it is made counts as if it did."""
    factory, _ = resolve("reward", spec.name)
    return not hasattr(factory, "input_kind") or factory.input_kind == "pixel"


# What proposals change is asked for again and again.
@cache
def _decoding(vae: str, latent_shape: tuple[int, ...]) -> DecodeCost:
    return decode_cost(json.loads(vae), latent_shape, 1)


@cache
def _scoring(name: str, label: str, options: str, shapes: SampleShapes) -> RewardCost | None:
    return reward_cost(RewardSpec(name=name, label=label, options=json.loads(options)), shapes, "cpu")
