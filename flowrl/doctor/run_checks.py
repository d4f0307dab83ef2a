"""Checks of a run on this machine: what it needs is here and whole, and it fits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flowrl.base.embedded import POCKET
from flowrl.config import RewardSpec, RunConfig
from flowrl.data import read_prompts
from flowrl.doctor.finding import Check, Finding, fine, note, problem
from flowrl.doctor.machine import Machine
from flowrl.doctor.sizes import GB, size
from flowrl.fetch.needs import Need, needs
from flowrl.plan.gpus import Gpu
from flowrl.plan.memory import room
from flowrl.plan.proposals import proposals, too_large
from flowrl.plan.run_plan import RunPlan, run_plan
from flowrl.reward_loading import LatentSource, check_rewards, preflight
from flowrl.run import model_spec
from flowrl.seating import seating

FILES, FIT = "Files of the run", "Does the run fit"
_PROCESS = GB // 2  # of memory, for each process and its libraries
_LOADING = 1.3  # copies of the frozen weights that a node holds at most while it loads them
_REPORT = GB // 4  # of disk, beside checkpoints: samples, curves, reports


def file_checks(config: RunConfig, run: str) -> Iterator[Check]:
    """Weights and prompts are here, weights are whole, and rewards read what the policy makes.

    `run` is what follows `flowrl train`, for advice.
    """
    wanted = needs(config)
    for need in wanted:
        yield Check(subject=FILES, name=need.kind, look=partial(need_state, need, run))
    faulty = [need.path for need in wanted if not need.present]
    whole: list[Finding] = []

    def policy() -> Finding:
        whole.append(policy_state(config))
        return whole[0]

    if not any(need.kind == "policy" for need in wanted if not need.present):
        yield Check(subject=FILES, name="policy", look=policy)
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            if not faulty or not _uses(spec, faulty):
                look = partial(reward_state, spec, f"rewards.{part}[{index}]", config, policy_is_whole=bool(whole))
                yield Check(subject=FILES, name="reward", look=look)
    for name in ("train_prompts", "eval_prompts"):
        value = config.data.train_prompts if name == "train_prompts" else config.data.eval_prompts
        if value != POCKET and Path(value) not in faulty:
            yield Check(subject=FILES, name="prompts", look=partial(prompts_state, Path(value), f"data.{name}"))


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
        f"before it can be downloaded, its licence must be accepted: {gate.licence}\n"
        f"1. log in at huggingface.co (an account is free) and agree to the licence at {gate.page}\n"
        "2. make a token at https://huggingface.co/settings/tokens (read access), then: hf auth login\n"
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


def fit_checks(config: RunConfig, machine: Machine, num_gpus: int) -> Iterator[Check]:
    """The run's plan, then what it asks of the machine; `num_gpus` are those of all nodes."""
    planned: list[RunPlan] = []

    def plan() -> Finding:
        planned.append(run_plan(config))
        work, policy = planned[0].work, planned[0].policy
        return fine(
            f"{work.samples} images a step; a policy of {policy.num_parameters:,} parameters, an adapter of "
            f"{policy.num_adapter_parameters:,}"
        )

    yield Check(subject=FIT, name="plan", look=plan)
    if config.placement.device == "cuda":
        yield Check(subject=FIT, name="GPUs", look=partial(gpu_count, config, machine, num_gpus))
    for one in planned:
        if config.placement.device == "cuda" and machine.visible_gpus:
            yield Check(subject=FIT, name="GPU memory", look=partial(gpu_memory, config, one, machine))
        yield Check(subject=FIT, name="memory", look=partial(host_memory, config, one, machine))
        yield Check(subject=FIT, name="disk", look=partial(checkpoint_room, config, one, machine))


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
    changes = [f"use {one}" if one.startswith("a GPU") else f"add {one}" for one in proposals(config, kind)]
    return problem(found, "\nor ".join(changes) or "use a smaller model, such as SD3.5-Medium")


def host_memory(config: RunConfig, plan: RunPlan, machine: Machine) -> Finding:
    """The processes fit in the memory of this machine: on the CPU with all they hold, else while they load."""
    local = config.placement.mode == "local"
    libraries = _PROCESS * (1 if local else 1 + sum(device.devices * device.processes for device in plan.devices))
    if config.placement.device == "cpu":
        needed = libraries + sum(device.devices * device.peak for device in plan.devices)
        what = "computing on the CPU"
    else:
        needed = libraries + int(_LOADING * plan.policy.weight_bytes)
        what = "loading the weights, if all actors are on this machine"
    found = f"{size(needed)} needed for {what}; {size(machine.memory_free)} of {size(machine.memory_total)} are free"
    if needed <= machine.memory_free:
        return fine(found)
    if needed <= machine.memory_total:
        return note(found, "end other programs first; ps aux --sort=-rss | head    # shows the largest")
    if config.placement.device == "cpu" and not local:
        return problem(found, "use fewer actors: add placement.mode=local, which runs in one process")
    return problem(found, "use a machine with more memory, or spread the actors over several")


def checkpoint_room(config: RunConfig, plan: RunPlan, machine: Machine) -> Finding:
    """The checkpoints fit on the disk of run.dir, one more than are kept, since the oldest goes last."""
    keep = config.checkpoint.keep
    needed = plan.checkpoint_bytes * (keep + 1) // keep + _REPORT
    free = next(disk.free for disk in machine.disks if disk.use == "runs")
    found = f"{size(needed)} needed in {config.run.dir}, {size(free)} are free"
    if needed <= free:
        return fine(found)
    fewer = " or keep fewer checkpoints: checkpoint.keep=1" if keep > 1 else ""
    return problem(found, f"make room, or write elsewhere: add run.dir=/a/disk/with/room/my-run{fewer}")


def _uses(spec: RewardSpec, faulty: list[Path]) -> bool:
    """Whether an option of the reward names something that is known to be missing."""
    return any(isinstance(value, str) and Path(value) in faulty for value in spec.options.values())
