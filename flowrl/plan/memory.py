"""The memory of the actors of a run and of the devices that they share, in bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flowrl.config import PlacementSection, RewardSpec, RunConfig
from flowrl.plan.gpus import Gpu
from flowrl.plan.image_cost import DecodeCost
from flowrl.plan.model_sizes import ModelSizes
from flowrl.plan.policy_cost import Geometry, PolicyCost
from flowrl.plan.work import StepWork
from flowrl.registry import resolve
from flowrl.seating import seating

# Of a GPU's memory: the CUDA context, the allocator's rounding and gaps, the workspaces of kernels.
_RESERVED = 0.08
_CONTEXT = 500 * 10**6  # bytes of the CUDA context of each further process on a device


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """What takes memory on the device of a role."""

    name: str
    size: int  # bytes
    leaves: bool = False  # with placement.offload, while the role has nothing to do


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

    @property
    def stays(self) -> int:
        """The bytes of it that stay where the roles have a device in turn."""
        return sum(part.size for part in self.held if not part.leaves)


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """The memory of devices that the same roles share."""

    roles: tuple[RoleMemory, ...]  # one entry for each actor
    devices: int
    in_turn: bool
    processes: int  # on each

    @property
    def peak(self) -> int:
        """Bytes. Peaks of processes without turns add up: a process keeps the memory that it once had."""
        contexts = (self.processes - 1) * _CONTEXT
        if self.in_turn:
            stays = sum(role.stays for role in self.roles)
            return contexts + stays + max(role.peak - role.stays for role in self.roles)
        if self.processes == 1:
            held = sum(part.size for role in self.roles for part in role.held)
            return held + max((part.size for role in self.roles for part in role.in_turn), default=0)
        return contexts + sum(role.peak for role in self.roles)


def room(gpu: Gpu) -> int:
    """The bytes of a GPU that a role can fill."""
    return int(gpu.memory * (1 - _RESERVED))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the roles are put together from."""

    frozen: MemoryPart
    adapter: MemoryPart
    training: MemoryPart
    decoder: MemoryPart
    encoders: MemoryPart
    sampling: MemoryPart
    update: MemoryPart
    decoding: MemoryPart


def memory_parts(
    config: RunConfig, model: ModelSizes, geometry: Geometry, policy: PolicyCost, image: DecodeCost
) -> Parts:
    """The parts that a configuration and the costs of its models give."""
    dtype = config.model.dtype
    encoders = model.text_encoder_parameters * geometry.dtype.itemsize
    images = _decoded(config)
    return Parts(
        frozen=MemoryPart(name=f"frozen weights, {_precision(config)}", size=policy.weight_bytes, leaves=True),
        adapter=MemoryPart(name="adapter", size=policy.adapter_bytes),
        training=MemoryPart(name="adapter, gradients, moments, average", size=policy.training_bytes),
        decoder=MemoryPart(name="VAE decoder, float32", size=image.weight_bytes),
        encoders=MemoryPart(name=f"text encoders, {dtype}", size=encoders),
        sampling=MemoryPart(name="sampling", size=policy.sample_rise),
        update=MemoryPart(name="update", size=policy.update_rise),
        decoding=MemoryPart(name=f"decoding {images} images", size=image.rise * images),
    )


def _precision(config: RunConfig) -> str:
    quantisation = config.model.quantisation
    return config.model.dtype if quantisation == "none" else f"{quantisation} and {config.model.dtype}"


def reads_pixels(spec: RewardSpec) -> bool:
    """Whether a reward reads images; one that says it only when it is made counts as if it did."""
    factory, _ = resolve("reward", spec.name)
    return not hasattr(factory, "input_kind") or factory.input_kind == "pixel"


def _decoded(config: RunConfig) -> int:
    """How many images a scorer decodes in one call: a group of a step, or of an evaluation."""
    in_steps = config.rollout.group_size if any(map(reads_pixels, config.rewards.train)) else 0
    watched = config.eval.grid_prompts > 0 or any(map(reads_pixels, config.rewards.watch))
    return max(in_steps, config.eval.samples_per_prompt if watched else 0)


def roles_of(config: RunConfig, work: StepWork, parts: Parts) -> tuple[RoleMemory, ...]:
    """One entry for each role that has actors."""
    placement = config.placement
    rewards = ", ".join(spec.metric_name for spec in [*config.rewards.train, *config.rewards.watch])
    stays = config.data.encode_ahead == 0
    encoder = RoleMemory(
        role="encoder",
        actors=1,
        held=(parts.encoders,) if stays else (),
        in_turn=() if stays else (parts.encoders,),
        not_counted="encoding",
    )
    scorer = RoleMemory(
        role="scorer", actors=work.scorers, held=(parts.decoder,), in_turn=(parts.decoding,), not_counted=rewards
    )
    held = (parts.frozen, parts.training)
    if placement.learners_sample:
        both = (parts.sampling, parts.update)
        learner = RoleMemory(role="learner that samples", actors=work.learners, held=held, in_turn=both)
        return encoder, learner, scorer
    return (
        encoder,
        RoleMemory(role="rollout", actors=work.rollouts, held=(parts.frozen, parts.adapter), in_turn=(parts.sampling,)),
        scorer,
        RoleMemory(role="learner", actors=work.learners, held=held, in_turn=(parts.update,)),
    )


def devices_of(placement: PlacementSection, roles: tuple[RoleMemory, ...]) -> tuple[DeviceMemory, ...]:
    """The devices, those with the same roles together, the fullest first."""
    seats = seating(placement)
    sitting = {"encoder": seats.encoder, "rollout": seats.rollouts, "scorer": seats.scorers}
    numbers = sorted({*seats.learners, *seats.rollouts, *seats.scorers, *seats.encoder})
    there = Counter(
        tuple(role for role in roles for seat in sitting.get(role.role, seats.learners) if seat == number)
        for number in numbers
    )
    kinds = [
        DeviceMemory(
            roles=together,
            devices=count,
            in_turn=placement.offload,
            processes=1 if placement.mode == "local" else len(together),
        )
        for together, count in there.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.peak))
