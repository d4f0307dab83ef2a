"""What a run will need, from its configuration alone: nothing is loaded and no GPU is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flowrl.base.dtypes import torch_dtype
from flowrl.config import RewardSpec, RunConfig
from flowrl.core.latent_space import factor_of
from flowrl.plan.gpus import Gpu
from flowrl.plan.image_cost import DecodeCost, decode_cost
from flowrl.plan.model_sizes import ModelSizes, model_sizes
from flowrl.plan.policy_cost import AdapterShape, Geometry, PolicyCost, policy_cost
from flowrl.plan.work import StepWork, step_work
from flowrl.registry import resolve

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

    @property
    def gpus(self) -> int:
        """One for each actor."""
        return sum(role.actors for role in self.roles)


def room(gpu: Gpu) -> int:
    """The bytes of a GPU that a role can fill."""
    return int(gpu.memory * (1 - _RESERVED))


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
    if any(map(_reads_pixels, config.rewards.train)):
        phases.append(Phase(name="decode", flops=image.flops * work.samples, actors=work.scorers))
    phases.append(Phase(name="update", flops=policy.update_flops * work.losses, actors=work.learners))
    adapter = policy.adapter_bytes
    return RunPlan(
        work=work,
        policy=policy,
        roles=_roles(config, work, policy, _parts(config, model, geometry, policy, image)),
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
    )


def _group_bytes(config: RunConfig, geometry: Geometry, model: ModelSizes, work: StepWork) -> int:
    """A trajectory of one group: final and stored latents in float32, and the two text conditions once."""
    channels, height, width = geometry.latent_shape
    latents = config.rollout.group_size * channels * height * width * _FLOAT32
    width_of = model.transformer
    condition = geometry.text_length * width_of["joint_attention_dim"] + width_of["pooled_projection_dim"]
    stored = work.trained_steps + 1
    return int(latents * (1 + stored) + 2 * condition * geometry.dtype.itemsize)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the roles are put together from."""

    frozen: MemoryPart
    adapter: MemoryPart
    training: MemoryPart
    decoder: MemoryPart
    encoders: MemoryPart
    sampling: MemoryPart
    update: MemoryPart
    decoding: MemoryPart


def _parts(config: RunConfig, model: ModelSizes, geometry: Geometry, policy: PolicyCost, image: DecodeCost) -> _Parts:
    dtype = config.model.dtype
    encoders = model.text_encoder_parameters * geometry.dtype.itemsize
    return _Parts(
        frozen=MemoryPart(name=f"frozen weights, {dtype}", size=policy.weight_bytes),
        adapter=MemoryPart(name="adapter", size=policy.adapter_bytes),
        training=MemoryPart(name="adapter, gradients, moments, average", size=policy.training_bytes),
        decoder=MemoryPart(name="VAE decoder, float32", size=image.weight_bytes),
        encoders=MemoryPart(name=f"text encoders, {dtype}", size=encoders),
        sampling=MemoryPart(name="sampling", size=policy.sample_rise),
        update=MemoryPart(name="update", size=policy.update_rise),
        decoding=MemoryPart(name=f"decoding {_decoded(config)} images", size=image.rise * _decoded(config)),
    )


def _reads_pixels(spec: RewardSpec) -> bool:
    """Whether a reward reads images; one that says it only when it is made counts as if it did."""
    factory, _ = resolve("reward", spec.name)
    return not hasattr(factory, "input_kind") or factory.input_kind == "pixel"


def _decoded(config: RunConfig) -> int:
    """How many images a scorer decodes in one call: a group of a step, or of an evaluation."""
    in_steps = config.rollout.group_size if any(map(_reads_pixels, config.rewards.train)) else 0
    watched = config.eval.grid_prompts > 0 or any(map(_reads_pixels, config.rewards.watch))
    return max(in_steps, config.eval.samples_per_prompt if watched else 0)


def _roles(config: RunConfig, work: StepWork, policy: PolicyCost, parts: _Parts) -> tuple[RoleMemory, ...]:
    rewards = ", ".join(spec.metric_name for spec in [*config.rewards.train, *config.rewards.watch])
    if config.placement.mode == "local":
        # Rollout and learner each hold a policy of their own in the one process.
        both = replace(parts.frozen, name=f"2 x {parts.frozen.name}", size=2 * parts.frozen.size)
        held_by_all = (both, parts.adapter, parts.training, parts.decoder, parts.encoders)
        in_turn = (parts.sampling, parts.decoding, parts.update)
        return (RoleMemory(role="all roles in one", actors=1, held=held_by_all, in_turn=in_turn, not_counted=rewards),)
    encoder = RoleMemory(role="encoder", actors=1, held=(parts.encoders,), in_turn=(), not_counted="encoding")
    scorer = RoleMemory(
        role="scorer", actors=work.scorers, held=(parts.decoder,), in_turn=(parts.decoding,), not_counted=rewards
    )
    held = (parts.frozen, parts.training)
    if config.placement.mode == "fused":
        learner = RoleMemory(
            role="learner that samples",
            actors=work.learners,
            held=held,
            in_turn=(parts.sampling, parts.update),
        )
        return encoder, learner, scorer
    return (
        encoder,
        RoleMemory(role="rollout", actors=work.rollouts, held=(parts.frozen, parts.adapter), in_turn=(parts.sampling,)),
        scorer,
        RoleMemory(role="learner", actors=work.learners, held=held, in_turn=(parts.update,)),
    )


def _evaluation(config: RunConfig, work: StepWork, policy: PolicyCost) -> Phase:
    """One evaluation, its groups of another size in forwards of about the same cost per sample."""
    images = config.eval.num_prompts * config.eval.samples_per_prompt
    per_sample = policy.sample_flops / work.samples_per_forward
    return Phase(name="evaluation", flops=round(images * config.eval.num_steps * per_sample), actors=work.rollouts)
