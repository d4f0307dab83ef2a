"""What a run needs on disk and in the memory of its machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowrl.actors.roles import MAX_CONDITIONS
from flowrl.base.embedded import POCKET, folder_of
from flowrl.config import RunConfig
from flowrl.data import read_prompts
from flowrl.plan.costs import Costs
from flowrl.plan.memory import DeviceMemory
from flowrl.plan.traffic import trajectory_bytes

GPUS_PER_NODE = 8  # what a node is taken to have
PROCESS = 2 * 10**9  # assumed, of the host's memory: a process with torch, CUDA and their libraries
_CPU_PROCESS = 500 * 10**6  # measured: with torch, diffusers, transformers, peft, deepspeed and ray
_LOADING = 1.3  # copies of the frozen weights that all processes hold together while they load
_WHOLE = 0.4  # of the bytes in memory, where a number may take twice as many as in the files: less is not all of it
_PUBLISHED = 2  # bytes of a number in published weights


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Bytes, and what they are for."""

    name: str
    size: int
    folder: Path | None = None  # of what is on disk: where it lies, or will


def disk_of(costs: Costs) -> tuple[Amount, ...]:
    """What is on disk at the most, the policy's own files among it."""
    config = costs.config
    keep, run, kept = config.checkpoint.keep, Path(config.run.dir), checkpoint_bytes(costs)
    found = [
        Amount(name=f"checkpoints, {keep} kept", size=kept, folder=run),
        Amount(name="one more, until the oldest is removed", size=kept // keep, folder=run),
    ]
    if config.data.condition_cache:
        prompts = _num_prompts(config)
        name = f"text conditions of up to {prompts:,} prompts"
        size, cache = prompts * costs.condition_bytes, Path(config.data.condition_cache)
        found.append(Amount(name=name, size=size, folder=cache))
    numbers = costs.policy.num_parameters + costs.model.text_encoder_parameters
    policy = _weights("the policy", folder_of(config.model.path, "sd35"), _PUBLISHED * numbers, share=0.9)
    specs = (*config.rewards.train, *config.rewards.watch)
    rewards = [
        _weights(reward.name, Path(spec.options["path"]), reward.cost.weight_bytes)
        for spec, reward in zip(specs, costs.rewards, strict=True)
        if reward.cost is not None and spec.options.get("path", POCKET) != POCKET
    ]
    return (*found, policy, *rewards)


def _weights(what: str, folder: Path, published: int, *, share: float = _WHOLE) -> Amount:
    """What is in the folder, or will be, if what is there is less than a `share` of it."""
    files = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    here = files >= share * published
    return Amount(
        name=f"weights of {what}, {'here' if here else 'to come'}", size=files if here else published, folder=folder
    )


def checkpoint_bytes(costs: Costs) -> int:
    """Of all that are kept: adapter, average and two moments each."""
    return 4 * costs.policy.adapter_bytes * costs.config.checkpoint.keep


def host_of(costs: Costs, devices: tuple[DeviceMemory, ...]) -> tuple[Amount, ...]:
    """What the fullest node needs of its own memory, beside files that the system keeps there if there is room.

    On the CPU that is one machine with all actors, and what they hold to compute is in its memory too.
    """
    placement = costs.config.placement
    on_gpus, in_one_process = placement.device == "cuda", placement.mode == "local"
    seats = sorted((kind for kind in devices for _ in range(kind.devices)), key=lambda kind: -_away(kind))
    node = seats[:GPUS_PER_NODE] if on_gpus else seats
    processes = 1 if in_one_process else 1 + sum(kind.processes for kind in node)
    name = "one process" if in_one_process else f"{processes} processes"
    found = [Amount(name=name, size=processes * (PROCESS if on_gpus else _CPU_PROCESS))]
    if on_gpus:
        found.append(Amount(name="loading the frozen weights", size=int(_LOADING * costs.policy.weight_bytes)))
    else:
        found.append(Amount(name="what the actors hold to compute on the CPU", size=sum(kind.peak for kind in node)))
    if not in_one_process:
        conditions = min(MAX_CONDITIONS, _num_prompts(costs.config)) * costs.condition_bytes
        found.append(Amount(name="object store", size=trajectory_bytes(costs) + conditions))
    away = sum(map(_away, node))
    return (*found, Amount(name="weights of roles that wait", size=away)) if away else tuple(found)


def _away(kind: DeviceMemory) -> int:
    """The bytes that are in the host's memory while one role has the device: all but the smallest leaves of one."""
    leaves = [role.leaves for role in kind.roles if role.leaves]
    return sum(leaves) - min(leaves) if kind.in_turn and leaves else 0


def _num_prompts(config: RunConfig) -> int:
    """How many different prompts the run meets at most, with the empty one."""
    drawn, file = config.run.steps * config.rollout.prompts_per_step, Path(config.data.train_prompts)
    if file.is_file():
        drawn = min(drawn, len(read_prompts(file, "data.train_prompts")))
    return drawn + config.eval.num_prompts + 1
