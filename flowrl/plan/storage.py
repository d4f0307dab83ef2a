"""What a run needs on disk and in the memory of its machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowrl.base.embedded import folder_of
from flowrl.config import RunConfig
from flowrl.plan.costs import Costs
from flowrl.plan.memory import DeviceMemory
from flowrl.plan.traffic import trajectory_bytes

GPUS_PER_NODE = 8  # what a node is taken to have
PROCESS = 2 * 10**9  # assumed, of the host's memory: a process with torch, CUDA and their libraries
_CPU_PROCESS = 500 * 10**6  # measured: with torch, diffusers, transformers, peft, deepspeed and ray
_CONDITIONS = 512  # text conditions that the driver keeps in the object store
_LOADING = 1.3  # copies of the frozen weights that all processes hold together while they load
_PUBLISHED = 2  # bytes of a number in published weights


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Bytes, and what they are for."""

    name: str
    size: int


def disk_of(costs: Costs) -> tuple[Amount, ...]:
    """What stays on disk, the policy's own files among it."""
    config = costs.config
    found = [Amount(name=f"checkpoints, {config.checkpoint.keep} kept", size=checkpoint_bytes(costs))]
    if config.data.condition_cache:
        prompts = _num_prompts(config)
        name = f"text conditions of up to {prompts:,} prompts"
        found.append(Amount(name=name, size=prompts * costs.condition_bytes))
    folder = folder_of(config.model.path, "sd35")
    files = [file.stat().st_size for file in folder.rglob("*.safetensors")]
    here = "here" if files else "to be fetched"
    size = sum(files) or _PUBLISHED * (costs.policy.num_parameters + costs.model.text_encoder_parameters)
    return (*found, Amount(name=f"weights of the policy, {here}", size=size))


def checkpoint_bytes(costs: Costs) -> int:
    """Of all that are kept: adapter, average and two moments each."""
    return 4 * costs.policy.adapter_bytes * costs.config.checkpoint.keep


def host_of(costs: Costs, devices: tuple[DeviceMemory, ...]) -> tuple[Amount, ...]:
    """What the fullest node needs of its own memory, beside files that the system keeps there if there is room."""
    seats = sorted((kind for kind in devices for _ in range(kind.devices)), key=lambda kind: -_away(kind))
    node = seats[:GPUS_PER_NODE]
    processes = 1 + sum(kind.processes for kind in node)
    on_gpus = costs.config.placement.device == "cuda"
    found = [
        Amount(name=f"{processes} processes", size=processes * (PROCESS if on_gpus else _CPU_PROCESS)),
        Amount(name="loading the frozen weights", size=int(_LOADING * costs.policy.weight_bytes)),
    ]
    if costs.config.placement.mode != "local":
        conditions = min(_CONDITIONS, _num_prompts(costs.config)) * costs.condition_bytes
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
        drawn = min(drawn, sum(1 for line in file.read_text(encoding="utf-8").splitlines() if line.strip()))
    return drawn + config.eval.num_prompts + 1
