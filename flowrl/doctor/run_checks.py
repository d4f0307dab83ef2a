"""Checks of a run on this machine: what it needs is here and whole, and it fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from flowrl.base.amounts import size
from flowrl.config import RewardSpec, RunConfig
from flowrl.doctor.finding import Check, Entry, Finding, fine, note, problem, tried
from flowrl.doctor.machine import Machine
from flowrl.fetch.needs import Need, needs
from flowrl.fetch.sources import TOKEN
from flowrl.model_spec import ModelSpec
from flowrl.plan.gpus import Gpu
from flowrl.plan.memory import room
from flowrl.plan.model_sizes import UnplannedModelError
from flowrl.plan.run_plan import RunPlan, run_plan
from flowrl.plan.verdict import Verdict, judge
from flowrl.preflight import held_out_prompts, prompt_order, rewards_that_fit, train_prompts
from flowrl.reward_loading import preflight

FILES, FIT = "Files of the run", "Does the run fit"


def file_checks(config: RunConfig, run: str) -> Generator[Entry, None, None]:
    """Weights and prompts are here, weights are whole, and rewards read what the policy makes.

    What is here is told by what a run itself begins with, `flowrl.preflight`. `run` is what follows `flowrl train`, for
    advice.
    """
    entry, wanted = tried(FILES, "reward", partial(needs, config), lambda _: fine("its options fit"))
    if wanted is None:  # they do not, so that it cannot say what it reads
        yield entry
        return
    for need in wanted:
        yield _file_entry(need.kind, partial(need_state, need, run))
    faulty = [need.path for need in wanted if not need.present]
    model = None
    if not any(need.kind == "policy" for need in wanted if not need.present):
        entry, model = tried(FILES, "policy", partial(ModelSpec.of, config), _policy_state)
        yield entry
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            if not faulty or not _uses(spec, faulty):
                look = partial(reward_state, spec, f"rewards.{part}[{index}]", config, model)
                yield _file_entry("reward", look)
    if Path(config.data.train_prompts) not in faulty:
        yield _file_entry("prompts", partial(train_prompts_state, config))
    if Path(config.data.eval_prompts) not in faulty:
        yield _file_entry("prompts", partial(held_out_prompts_state, config))


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


def reward_state(spec: RewardSpec, key: str, config: RunConfig, model: ModelSpec | None) -> Finding:
    """A reward can be made, and reads what the policy makes; `model` is None while that is not whole."""
    if model is None:
        preflight(spec, config.placement.device)
        return fine(
            f"{key}: {spec.metric_name} can be made; whether it reads the policy's latents shows when that is whole"
        )
    rewards_that_fit([spec], model)
    return fine(f"{key}: {spec.metric_name} can be made")


def train_prompts_state(config: RunConfig) -> Finding:
    """The prompts to train on can be read, and are enough for a step."""
    prompts = train_prompts(config)
    prompt_order(config, prompts)
    return fine(f"{len(prompts):,} prompts in {config.data.train_prompts}, data.train_prompts")


def held_out_prompts_state(config: RunConfig) -> Finding:
    """The prompts to evaluate on can be read, and are enough for an evaluation."""
    return fine(f"{len(held_out_prompts(config)):,} prompts in {config.data.eval_prompts}, data.eval_prompts")


def fit_checks(config: RunConfig, machine: Machine, num_gpus: int) -> Generator[Entry, None, None]:
    """The run's plan, then what it asks of the machine; `num_gpus` are those of all nodes."""
    entry, plan = tried(FIT, "plan", partial(_plan_of, config), _counts)
    yield entry
    if plan is None:
        return
    if config.placement.device == "cuda":
        look = partial(verdict_here, config, plan, machine, num_gpus)
        entry, verdict = tried(FIT, "GPUs", look, partial(gpu_count, plan, machine, num_gpus))
        yield entry
        if verdict is not None:
            yield _fit_entry("GPU memory", partial(gpu_memory, plan, machine, verdict))
    yield _fit_entry("memory", partial(host_memory, config, plan, machine))
    yield _fit_entry("disk", partial(disk_room, config, plan, machine))


def _plan_of(config: RunConfig) -> RunPlan | None:
    """The plan; None of a model for which there is none, though it can be trained."""
    try:
        return run_plan(config)
    except UnplannedModelError:
        return None


def verdict_here(config: RunConfig, plan: RunPlan, machine: Machine, num_gpus: int) -> Verdict | None:
    """What the plan comes to on `num_gpus` of this machine's smallest GPU; None where it has none.

    While torch can use none of them, it is taken that there are as many as the run takes.
    """
    if not machine.visible_gpus:
        return None
    smallest = min(machine.visible_gpus, key=lambda gpu: gpu.total)
    # How fast it is nobody knows here, and nothing is asked that depends on it.
    gpu = Gpu(name=smallest.name, title=smallest.name, memory=smallest.total, flops=math.nan, float32_flops=math.nan)
    return judge(config, plan, gpu, share=math.nan, num_gpus=num_gpus or None)


def gpu_count(plan: RunPlan, machine: Machine, num_gpus: int, verdict: Verdict | None) -> Finding:
    """There are as many GPUs as the actors take."""
    wanted = plan.gpus
    if wanted <= num_gpus:
        return fine(f"the run takes {wanted} of {num_gpus}")
    if not num_gpus and machine.graphics.gpus:
        return problem(f"the run takes {wanted}, torch can use none", "put right what stands under GPUs first")
    where = "on a machine with a GPU" if wanted == 1 else f"where there are {wanted} GPUs"
    cluster = "make several machines a cluster (launch/README.md) and add placement.ray_address=HOST:PORT"
    advice = [f"start it {where}" + (f"; or {cluster}" if wanted > 1 else "")]
    if verdict is not None:
        advice += [f"or {way}" for way in _ways(verdict)]
    elif num_gpus:  # of other nodes alone, whose memory is not known here
        advice.append(f"or use fewer: flowrl plan CONFIG --gpu NAME --gpus {num_gpus} says how")
    have = f"here are {num_gpus}" if num_gpus > 1 else "here is 1" if num_gpus else "here is none"
    return problem(f"the run takes {wanted}, {have}", "\n".join(advice))


def gpu_memory(plan: RunPlan, machine: Machine, verdict: Verdict) -> Finding:
    """What shares a GPU fits on the smallest one."""
    gpu, fullest = verdict.gpu, plan.devices[0]
    roles = ", ".join(dict.fromkeys(role.role for role in fullest.roles))
    found = (
        f"{size(fullest.peak)} needed for {roles}; the GPU is {gpu.title} with {size(gpu.memory)}, of which "
        f"{size(room(gpu))} can be filled"
    )
    if fullest.peak <= room(gpu):
        taken = [one for one in machine.visible_gpus if one.free < fullest.peak]
        if not taken:
            return fine(found)
        names = ", ".join(f"GPU {one.index} has {size(one.free)}" for one in taken)
        return problem(f"{found}; but {names} free", "end what uses them, which stands under GPUs")
    return problem(found, "\nor ".join(_ways(verdict)) or "use a smaller model, such as SD3.5-Medium")


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
    several = ", or spread the actors over several" if plan.gpus > 1 else ""
    return problem(found, f"use a machine with more memory{several}")


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
            shrinks = largest.use == "run.dir" and config.checkpoint.keep > 1
            fewer = "; or keep fewer checkpoints: checkpoint.keep=1" if shrinks else ""
            elsewhere = f"add {largest.use}=/a/disk/with/room/{largest.path.name}"
            return problem(said[-1], f"make room, or use another disk for the largest: {elsewhere}{fewer}")
    return fine("; ".join(said))


def _policy_state(model: ModelSpec) -> Finding:
    return fine(f"model.path: {model.section.path} has all files and tensors; latents of {model.latent_space}")


def _ways(verdict: Verdict) -> list[str]:
    """What would make the run fit."""
    return [f"{'add' if one.gpu is None else 'use'} {one.text}" for one in verdict.proposals]


def _counts(plan: RunPlan | None) -> Finding:
    if plan is None:
        return note("of this model.family none is known", "look yourself whether GPUs, memory and disks are enough")
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
