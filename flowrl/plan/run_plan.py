"""What a run will need, from its configuration alone: nothing is loaded and no GPU is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import folder_of
from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import read_json
from flowrl.config import RunConfig
from flowrl.models.sd35_published import CLIP_TOKENS, PUBLISHED
from flowrl.plan.gpus import Gpu
from flowrl.plan.image_cost import DecodeCost, decode_cost
from flowrl.plan.policy_cost import AdapterShape, Geometry, PolicyCost, policy_cost
from flowrl.plan.work import StepWork, step_work

# Of a GPU's memory: the CUDA context, the allocator's rounding and gaps, the workspaces of kernels.
_RESERVED = 0.08
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """What takes memory on the device of a role."""

    name: str
    size: int  # bytes


@dataclass(frozen=True, kw_only=True)
class RoleMemory:
    """The memory of one actor of a role: what it holds all the time and the highest of what it does in turn."""

    role: str
    actors: int
    held: tuple[MemoryPart, ...]
    in_turn: tuple[MemoryPart, ...]
    not_counted: str = ""  # what else the role has, of which nothing is known here

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.held) + max((part.size for part in self.in_turn), default=0)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a step, which some actors share evenly."""

    name: str
    flops: int  # over all actors
    actors: int

    def seconds(self, flops_per_second: float) -> float:
        """How long it takes at a rate per actor."""
        return self.flops / self.actors / flops_per_second


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The figures of one configuration."""

    work: StepWork
    policy: PolicyCost
    roles: tuple[RoleMemory, ...]
    phases: tuple[Phase, ...]  # of a step, one after the other
    evaluation: Phase
    trajectory_bytes: int  # of a step, from rollouts to scorers and learners
    weight_bytes: int  # of a step, to each rollout
    checkpoint_bytes: int  # of all that are kept


def room(gpu: Gpu) -> int:
    """The bytes of a GPU that a role can fill."""
    return int(gpu.memory * (1 - _RESERVED))


def run_plan(config: RunConfig) -> RunPlan:
    """The plan of a checked configuration; raises CheckpointError when the sizes of its model are not known."""
    work = step_work(config)
    transformer, vae, text = _settings(config)
    geometry = _geometry(config, vae, text, work.samples_per_forward)
    section = config.model
    policy = policy_cost(
        transformer,
        geometry,
        AdapterShape(rank=section.lora_rank, alpha=section.lora_alpha, targets=tuple(section.lora_targets)),
        with_reference=config.algorithm.kl_beta > 0,
        gradient_checkpointing=section.gradient_checkpointing,
    )
    decode = decode_cost(vae, geometry.latent_shape, config.rollout.group_size)
    group_bytes = _trajectory_bytes(config, geometry, transformer, work)
    adapter = policy.adapter_bytes
    return RunPlan(
        work=work,
        policy=policy,
        roles=_roles(config, work, policy, decode),
        phases=(
            Phase(name="rollout", flops=policy.sample_flops * work.forwards, actors=work.rollouts),
            Phase(name="decode", flops=decode.flops * work.groups, actors=work.scorers),
            Phase(name="update", flops=policy.update_flops * work.losses, actors=work.learners),
        ),
        evaluation=_evaluation(config, work, policy),
        trajectory_bytes=group_bytes * work.groups,
        weight_bytes=adapter,
        checkpoint_bytes=4 * adapter * config.checkpoint.keep,  # adapter, average and two moments
    )


def _settings(config: RunConfig) -> tuple[Mapping[str, Any], Mapping[str, Any], int]:
    """The transformer's and the VAE's config.json and the tokens of CLIP: of the folder, or as published."""
    folder = folder_of(config.model.path, "sd35")
    if (folder / "model_index.json").is_file():
        clip = read_json(folder / "text_encoder" / "config.json")["max_position_embeddings"]
        return read_json(folder / "transformer" / "config.json"), read_json(folder / "vae" / "config.json"), int(clip)
    name = Path(config.model.path).name
    for repository, published in PUBLISHED.items():
        if repository.rpartition("/")[2] == name:
            return published.transformer, published.vae, CLIP_TOKENS
    known = ", ".join(repository.rpartition("/")[2] for repository in PUBLISHED)
    raise CheckpointError(
        f"model.path: {config.model.path} is no folder with a model_index.json, and sizes are known of {known} alone"
    )


def _geometry(config: RunConfig, vae: Mapping[str, Any], text: int, samples: int) -> Geometry:
    side = config.model.image_size // 2 ** (len(vae["block_out_channels"]) - 1)
    return Geometry(
        latent_shape=(int(vae["latent_channels"]), side, side),
        text_length=text + config.model.max_sequence_length,
        samples=samples,
        guided=config.rollout.guidance_scale != 1,
        dtype=torch_dtype(config.model.dtype),
    )


def _trajectory_bytes(config: RunConfig, geometry: Geometry, transformer: Mapping[str, Any], work: StepWork) -> int:
    """Of one group: final and stored latents in float32, and the two text conditions once."""
    channels, height, width = geometry.latent_shape
    latents = config.rollout.group_size * channels * height * width * _FLOAT32
    condition = geometry.text_length * transformer["joint_attention_dim"] + transformer["pooled_projection_dim"]
    stored = work.trained_steps + 1 + 1
    return latents * stored + 2 * condition * geometry.dtype.itemsize


def _roles(config: RunConfig, work: StepWork, policy: PolicyCost, decode: DecodeCost) -> tuple[RoleMemory, ...]:
    frozen = MemoryPart(name=f"frozen weights, {config.model.dtype}", size=policy.weight_bytes)
    training = MemoryPart(name="adapter, gradients, moments, average", size=policy.training_bytes)
    sampling = MemoryPart(name="sampling", size=policy.sample_rise)
    update = MemoryPart(name="update", size=policy.update_rise)
    rewards = ", ".join(spec.metric_name for spec in [*config.rewards.train, *config.rewards.watch])
    scorer = RoleMemory(
        role="scorer",
        actors=work.scorers,
        held=(MemoryPart(name="VAE decoder, float32", size=decode.weight_bytes),),
        in_turn=(MemoryPart(name="decoding a group", size=decode.rise),),
        not_counted=rewards,
    )
    if config.placement.mode == "fused":
        fused = RoleMemory(
            role="learner that samples", actors=work.learners, held=(frozen, training), in_turn=(sampling, update)
        )
        return fused, scorer
    adapter = MemoryPart(name="adapter", size=policy.adapter_bytes)
    return (
        RoleMemory(role="rollout", actors=work.rollouts, held=(frozen, adapter), in_turn=(sampling,)),
        scorer,
        RoleMemory(role="learner", actors=work.learners, held=(frozen, training), in_turn=(update,)),
    )


def _evaluation(config: RunConfig, work: StepWork, policy: PolicyCost) -> Phase:
    """One evaluation, its groups of another size in forwards of about the same cost per sample."""
    images = config.eval.num_prompts * config.eval.samples_per_prompt
    per_sample = policy.sample_flops / work.samples_per_forward
    return Phase(name="evaluation", flops=round(images * config.eval.num_steps * per_sample), actors=work.rollouts)
