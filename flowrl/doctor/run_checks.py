"""Checks of a run on this machine: what it needs is here and whole, and it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from flowrl.base.amounts import size
from flowrl.base.embedded import POCKET
from flowrl.config import RewardSpec, RunConfig
from flowrl.data import read_prompts
from flowrl.doctor.finding import Check, Entry, Finding, fine, note, problem, tried
from flowrl.doctor.machine import Machine
from flowrl.fetch.needs import Need, needs
from flowrl.fetch.sources import TOKEN
from flowrl.plan.gpus import Gpu
from flowrl.plan.memory import room
from flowrl.plan.proposals import proposals, too_large
from flowrl.plan.run_plan import RunPlan, run_plan
from flowrl.reward_loading import LatentSource, check_rewards, preflight
from flowrl.run import model_spec
from flowrl.seating import seating

FILES, FIT = "Files of the run", "Does the run fit"
_KEYS = {"runs": "run.dir", "texts": "data.condition_cache", "weights": "model.path"}  # of folders that are written to


def file_checks(config: RunConfig, run: str) -> Iterator[Entry]:
    """Weights and prompts are here, weights are whole, and rewards read what the policy makes.

    `run` is what follows `flowrl train`, for advice.
    """
    wanted = needs(config)
    for need in wanted:
        yield _file_entry(need.kind, partial(need_state, need, run))
    faulty = [need.path for need in wanted if not need.present]
    policy_is_whole = False
    if not any(need.kind == "policy" for need in wanted if not need.present):
        policy = _file_entry("policy", partial(policy_state, config))
        yield policy
        policy_is_whole = policy.finding.verdict == "ok"
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            if not faulty or not _uses(spec, faulty):
                look = partial(reward_state, spec, f"rewards.{part}[{index}]", config, policy_is_whole=policy_is_whole)
                yield _file_entry("reward", look)
    for name in ("train_prompts", "eval_prompts"):
        value = config.data.train_prompts if name == "train_prompts" else config.data.eval_prompts
        if value != POCKET and Path(value) not in faulty:
            yield _file_entry("prompts", partial(prompts_state, Path(value), f"data.{name}"))


def need_state(need: Need, run: str) -> Finding:
    """What a configuration names is there; where it is not, how to get it."""
    if need.present:
        return fine(f"{need.key}: {need.bundle.title if need.bundle else need.kind} in {need.path}")
    more = f" (and {len(need.faults) - 1} more)" if len(need.faults) > 1 else ""
    found = f"{need.key}: {need.faults[0]}{more}"
    if need.bundle is None:
        return problem(found, need.advice)
    fetch = f"flowrl fetch {run}"
    if not need.bundle.gates:
        return problem(found, fetch)
    if need.path.is_dir():  # so someone was let in before
        return problem(found, f"{fetch}    # gets again what is missing or damaged")
    gate = need.bundle.gates[0]
    return problem(
        found,
        "before it can be downloaded, its licence must be accepted; an account is free:\n"
        f"1. {gate.accepting}\n"
        f"2. {TOKEN}\n"
        f"3. {fetch}",
    )


def policy_state(config: RunConfig) -> Finding:
    """The policy's folder is whole."""
    spec = model_spec(config)
    return fine(f"model.path: {config.model.path} is whole; latents of {spec.latent_space}")


def reward_state(spec: RewardSpec, key: str, config: RunConfig, *, policy_is_whole: bool) -> Finding:
    """A reward can be made, and reads what the policy makes."""
    device = config.placement.device
    if not policy_is_whole:
        preflight(spec, device)
        return fine(
            f"{key}: {spec.metric_name} can be made; whether it reads the policy's latents shows when that is whole"
        )
    model = model_spec(config)
    length = config.model.max_sequence_length
    source = LatentSource.of_policy(model.family, model.path, length, key="model.max_sequence_length")
    check_rewards([spec], [source], device)
    return fine(f"{key}: {spec.metric_name} can be made")


def prompts_state(file: Path, key: str) -> Finding:
    """A file of prompts can be read."""
    return fine(f"{len(read_prompts(file, key)):,} prompts in {file}, {key}")


def fit_checks(config: RunConfig, machine: Machine, num_gpus: int) -> Iterator[Entry]:
    """The run's plan, then what it asks of the machine; `num_gpus` are those of all nodes."""
    entry, plan = tried(FIT, "plan", partial(run_plan, config), _counts)
    yield entry
    if config.placement.device == "cuda":
        yield _fit_entry("GPUs", partial(gpu_count, config, machine, num_gpus))
    if plan is None:
        return
    if config.placement.device == "cuda" and machine.visible_gpus:
        yield _fit_entry("GPU memory", partial(gpu_memory, config, plan, machine))
    yield _fit_entry("memory", partial(host_memory, config, plan, machine))
    yield _fit_entry("disk", partial(disk_room, config, plan, machine))


def gpu_count(config: RunConfig, machine: Machine, num_gpus: int) -> Finding:
    """There are as many GPUs as the actors take."""
    wanted = len(seating(config.placement).shares)
    if wanted <= num_gpus:
        return fine(f"the run takes {wanted} of {num_gpus}")
    if not num_gpus and machine.graphics.gpus:
        return problem(f"the run takes {wanted}, torch can use none", "put right what stands under GPUs first")
    where = "on a machine with a GPU" if wanted == 1 else f"where there are {wanted} GPUs"
    cluster = "make several machines a cluster (launch/README.md) and add placement.ray_address=HOST:PORT"
    advice = [f"start it {where}" + (f"; or {cluster}" if wanted > 1 else "")]
    if num_gpus == 1:
        advice.append("or use the one for all roles: add placement.mode=local")
    elif num_gpus:
        advice.append(
            "or use fewer: lower placement.num_learners, num_scorers and num_rollouts; flowrl plan says what fits"
        )
    have = f"here are {num_gpus}" if num_gpus > 1 else "here is 1" if num_gpus else "here is none"
    return problem(f"the run takes {wanted}, {have}", "\n".join(advice))


def gpu_memory(config: RunConfig, plan: RunPlan, machine: Machine) -> Finding:
    """What shares a GPU fits on the smallest one."""
    smallest = min(machine.visible_gpus, key=lambda gpu: gpu.total)
    kind = Gpu(name="this", title=smallest.name, memory=smallest.total, flops=0.0)
    fullest = max(plan.devices, key=lambda device: device.peak)
    roles = ", ".join(dict.fromkeys(role.role for role in fullest.roles))
    found = (
        f"{size(fullest.peak)} needed for {roles}; the GPU is {smallest.name} with {size(smallest.total)}, of which "
        f"{size(room(kind))} can be filled"
    )
    if not too_large(plan, kind):
        taken = [gpu for gpu in machine.visible_gpus if gpu.free < fullest.peak]
        if not taken:
            return fine(found)
        names = ", ".join(f"GPU {gpu.index} has {size(gpu.free)}" for gpu in taken)
        return problem(f"{found}; but {names} free", "end what uses them, which stands under GPUs")
    changes = [f"{'add' if one.gpu is None else 'use'} {one.text}" for one in proposals(config, kind)]
    return problem(found, "\nor ".join(changes) or "use a smaller model, such as SD3.5-Medium")


def host_memory(config: RunConfig, plan: RunPlan, machine: Machine) -> Finding:
    """What the plan says of the fullest node fits in the memory of this machine."""
    needed = sum(amount.size for amount in plan.host)
    parts = ", ".join(f"{size(amount.size)} for {amount.name}" for amount in plan.host)
    found = (
        f"{size(needed)} needed on the fullest node ({parts}); {size(machine.memory_free)} of "
        f"{size(machine.memory_total)} are free here"
    )
    if needed <= machine.memory_free:
        return fine(found)
    if needed <= machine.memory_total:
        return note(found, "end other programs first; ps aux --sort=-rss | head    # shows the largest")
    if config.placement.device == "cpu" and config.placement.mode != "local":
        return problem(found, "use fewer actors: add placement.mode=local, which runs in one process")
    return problem(found, "use a machine with more memory, or spread the actors over several")


def disk_room(config: RunConfig, plan: RunPlan, machine: Machine) -> Finding:
    """What the plan says of the disks fits on them, as far as it lies in folders that the run will write to."""
    disks = {disk.path: disk for disk in machine.disks}
    written = [(disks[amount.folder], amount) for amount in plan.disk if amount.folder in disks]
    said = []
    for device, free in {disk.device: disk.free for disk, _ in written}.items():
        there = [(disk, amount) for disk, amount in written if disk.device == device]
        needed = sum(amount.size for _, amount in there)
        parts = ", ".join(f"{size(amount.size)} in {amount.folder} for {amount.name}" for _, amount in there)
        said.append(f"{size(needed)} needed ({parts}), {size(free)} are free")
        if needed > free:
            largest, _ = max(there, key=lambda one: one[1].size)
            key, shrinks = _KEYS[largest.use], largest.use == "runs" and config.checkpoint.keep > 1
            fewer = "; or keep fewer checkpoints: checkpoint.keep=1" if shrinks else ""
            elsewhere = f"add {key}=/a/disk/with/room/{largest.path.name}"
            return problem(said[-1], f"make room, or use another disk for the largest: {elsewhere}{fewer}")
    return fine("; ".join(said))


def _counts(plan: RunPlan) -> Finding:
    return fine(
        f"{plan.work.samples} images a step; a policy of {plan.policy.num_parameters:,} parameters, an adapter of "
        f"{plan.policy.num_adapter_parameters:,}"
    )


def _file_entry(name: str, look: Callable[[], Finding]) -> Entry:
    return Check(subject=FILES, name=name, look=look).made()


def _fit_entry(name: str, look: Callable[[], Finding]) -> Entry:
    return Check(subject=FIT, name=name, look=look).made()


def _uses(spec: RewardSpec, faulty: list[Path]) -> bool:
    """Whether an option of the reward names something that is known to be missing."""
    return any(isinstance(value, str) and Path(value) in faulty for value in spec.options.values())
