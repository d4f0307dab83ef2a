"""What a run will need, from its configuration alone: nothing is loaded and no GPU is asked."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl.base.dtypes import torch_dtype
from flowrl.config import RunConfig
from flowrl.core.latent_space import factor_of
from flowrl.plan.image_cost import decode_cost
from flowrl.plan.memory import DeviceMemory, RoleMemory, devices_of, memory_parts, reads_pixels, roles_of
from flowrl.plan.model_sizes import ModelSizes, model_sizes
from flowrl.plan.policy_cost import AdapterShape, Geometry, PolicyCost, policy_cost
from flowrl.plan.work import StepWork, step_work

_FLOAT32 = 4


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
    devices: tuple[DeviceMemory, ...]
    phases: tuple[Phase, ...]  # of a step, one after the other
    evaluation: Phase
    trajectory_bytes: int  # of a step, from rollouts to scorers and learners
    weight_bytes: int  # of a step, to each rollout
    checkpoint_bytes: int  # of all that are kept

    @property
    def gpus(self) -> int:
        """How many devices there must be."""
        return sum(kind.devices for kind in self.devices)


def run_plan(config: RunConfig) -> RunPlan:
    """The plan of a checked configuration; raises CheckpointError when the sizes of its model are not known."""
    work = step_work(config)
    model = model_sizes(config.model.path)
    geometry = _geometry(config, model, work.samples_per_forward)
    section = config.model
    policy = policy_cost(
        model.transformer,
        geometry,
        AdapterShape(rank=section.lora_rank, alpha=section.lora_alpha, targets=tuple(section.lora_targets)),
        with_reference=config.algorithm.kl_beta > 0,
        gradient_checkpointing=section.gradient_checkpointing,
    )
    image = decode_cost(model.vae, geometry.latent_shape, 1)
    phases = [Phase(name="rollout", flops=policy.sample_flops * work.forwards, actors=work.rollouts)]
    if any(map(reads_pixels, config.rewards.train)):
        phases.append(Phase(name="decode", flops=image.flops * work.samples, actors=work.scorers))
    phases.append(Phase(name="update", flops=policy.update_flops * work.losses, actors=work.learners))
    adapter = policy.adapter_bytes
    roles = roles_of(config, work, memory_parts(config, model, geometry, policy, image))
    return RunPlan(
        work=work,
        policy=policy,
        roles=roles,
        devices=devices_of(config.placement, roles),
        phases=tuple(phases),
        evaluation=_evaluation(config, work, policy),
        trajectory_bytes=_group_bytes(config, geometry, model, work) * work.groups,
        weight_bytes=adapter,
        checkpoint_bytes=4 * adapter * config.checkpoint.keep,  # adapter, average and two moments
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


def _group_bytes(config: RunConfig, geometry: Geometry, model: ModelSizes, work: StepWork) -> int:
    """A trajectory of one group: final and stored latents in float32, and the two text conditions once."""
    channels, height, width = geometry.latent_shape
    latents = config.rollout.group_size * channels * height * width * _FLOAT32
    width_of = model.transformer
    condition = geometry.text_length * width_of["joint_attention_dim"] + width_of["pooled_projection_dim"]
    stored = work.trained_steps + 1
    return int(latents * (1 + stored) + 2 * condition * geometry.dtype.itemsize)


def _evaluation(config: RunConfig, work: StepWork, policy: PolicyCost) -> Phase:
    """One evaluation, its groups of another size in forwards of about the same cost per sample."""
    images = config.eval.num_prompts * config.eval.samples_per_prompt
    per_sample = policy.sample_flops / work.samples_per_forward
    return Phase(name="evaluation", flops=round(images * config.eval.num_steps * per_sample), actors=work.rollouts)
