"""A plan as a page of text."""

from __future__ import annotations

from collections.abc import Iterator

from flowrl.plan.figures import Verdict
from flowrl.plan.memory import DeviceMemory, RoleMemory, room
from flowrl.plan.run_plan import RunPlan
from flowrl.plan.storage import GPUS_PER_NODE, Amount
from flowrl.plan.timing import PhaseTime

_GIGA = 10**9
_DAY = 86400


def page(plan: RunPlan, verdict: Verdict) -> str:
    """The plan on GPUs of one kind: the answer first, then how it comes about."""
    lines = [*_answer(plan, verdict), "", *_counts(plan), "", "Memory of each actor, GB"]
    for role in plan.roles:
        lines += _role(role)
    gpu = verdict.gpu
    lines += ["", f"{plan.gpus} x {gpu.title}, of whose memory {room(gpu) / _GIGA:.1f} GB can be filled"]
    lines += [_device(kind, room(gpu)) for kind in plan.devices]
    lines += ["", *_time(plan, verdict), "", "Moved in a step, GB over all actors"]
    lines += [_row(transfer.name, f"{transfer.size / _GIGA:,.2f}") for transfer in plan.transfers]
    lines += ["", "On disk, GB", *_amounts(plan.disk)]
    node = "the machine" if plan.gpus <= GPUS_PER_NODE else f"a node with {GPUS_PER_NODE} of the GPUs"
    lines += ["", f"Memory of {node} itself, GB, beside that of the GPUs", *_amounts(plan.host)]
    return "\n".join(lines) + "\n"


def _answer(plan: RunPlan, verdict: Verdict) -> Iterator[str]:
    fullest, rate, gpu = plan.devices[0], verdict.rate, verdict.gpu
    names = ", ".join(dict.fromkeys(role.role for role in fullest.roles))
    fits = "It fits" if verdict.fits else "IT DOES NOT FIT"
    has = f"{gpu.title} has room for {room(gpu) / _GIGA:.1f} GB"
    yield f"{fits}: the fullest GPU needs {fullest.peak / _GIGA:.1f} GB ({names}); {has}."
    if verdict.num_gpus is not None and plan.gpus > verdict.num_gpus:
        yield f"It takes {plan.gpus} GPUs; there {'is' if verdict.num_gpus == 1 else 'are'} {verdict.num_gpus}."
    many = "GPUs" if plan.gpus > 1 else "GPU"
    yield f"On {plan.gpus} {many}: {time_of(plan, rate)}."
    if verdict.more_samples:
        yield f"There is room for more: rollout.samples_per_forward={verdict.more_samples} fits as well."
    if not verdict.fits:
        yield "What would fit:" if verdict.proposals else "Nothing that is known here would fit: use a smaller model."
    for proposal in verdict.proposals:
        yield f"  {proposal.keys}" + (f"    # {time_of(proposal.plan, rate)}" if proposal.plan else "")
    missing = [reward.name for reward in plan.costs.rewards if reward.cost is None]
    if missing:
        yield f"Not counted: {', '.join(missing)}, whose class does not say what it takes."
    if plan.costs.config.placement.device == "cpu":
        yield "placement.device is cpu; this is what the run would need on GPUs."


def time_of(plan: RunPlan, rate: float) -> str:
    """The time of a step and of the whole run in words."""
    seconds, steps = plan.seconds(rate), plan.costs.config.run.steps
    long = f"{seconds / _DAY:.1f} days" if seconds > _DAY else f"{seconds / 3600:.1f} hours"
    return f"{plan.step.seconds(rate):,.1f} s a step, {long} for {steps} steps and their evaluations"


def _counts(plan: RunPlan) -> Iterator[str]:
    work, policy = plan.work, plan.policy
    yield (
        f"A step: {work.groups} groups, {work.samples} samples, {work.samples_per_forward} in a forward; "
        f"{work.sampler_steps} sampler steps, {work.trained_steps} trained; {work.inner_steps} inner steps of "
        f"{work.samples // work.inner_steps} samples."
    )
    yield (
        f"Of {work.learners} learners each trains on {work.groups // work.learners} groups, "
        f"{work.groups // work.learners // work.inner_steps} in an inner step of "
        f"{work.losses // work.learners // work.inner_steps} micro-batches; of {work.rollouts} that sample each makes "
        f"{-(-work.groups // work.rollouts)} groups at most."
    )
    yield (
        f"The policy: {policy.num_parameters:,} parameters, an adapter of {policy.num_adapter_layers} layers "
        f"with {policy.num_adapter_parameters:,}."
    )
    geometry = plan.costs.geometry
    rows = geometry.samples * (2 if geometry.guided else 1)
    width = int(plan.costs.model.transformer["caption_projection_dim"])
    keys = 2 * rows * geometry.text_length * width * geometry.dtype.itemsize
    yield (
        f"The text condition of a forward: {rows} x {geometry.text_length} tokens, "
        f"{rows * plan.costs.condition_bytes / 1e6:,.1f} MB, and in each block {keys / 1e6:,.1f} MB of keys and "
        "values; both are in the peaks of sampling and update."
    )


def _role(role: RoleMemory) -> Iterator[str]:
    yield f"  {role.role}, {role.actors} of them"
    for part in role.held:
        yield _row(f"  {part.name}", f"{part.size / _GIGA:.2f}")
    for part in role.in_turn:
        yield _row(f"  {part.name}, at its peak", f"{part.size / _GIGA:.2f}")
    more = f", without {role.not_counted}" if role.not_counted else ""
    yield _row("  in all", f"{role.peak / _GIGA:.2f}{more}")


def _device(kind: DeviceMemory, most: int) -> str:
    roles = ", ".join(role.role for role in kind.roles) + (", in turn" if kind.in_turn else "")
    fits = "fits" if kind.peak <= most else "DOES NOT FIT"
    return _row(f"{kind.devices} with {roles}", f"{kind.peak / _GIGA:.2f}  {fits}")


def _time(plan: RunPlan, verdict: Verdict) -> Iterator[str]:
    gpu, share, rate = verdict.gpu, verdict.share, verdict.rate
    yield (
        f"Time, if {100 * share:.0f} % of the {gpu.flops / 1e12:.0f} TFLOP/s of the data sheet are reached: an "
        "assumption (--efficiency), not a measurement"
    )
    for time in plan.step.times(rate):
        yield _phase(time)
    seconds = plan.step.seconds(rate)
    yield _row("step", f"{seconds:,.1f} s, {plan.work.samples / seconds:.2f} images per second")
    yield _row("one evaluation", f"{plan.evaluation.seconds(rate):,.1f} s")
    yield _row(f"{plan.costs.config.run.steps} steps and their evaluations", f"{plan.seconds(rate) / _DAY:,.2f} days")


def _phase(time: PhaseTime) -> str:
    phase = time.phase
    hidden = f", {time.hidden:,.1f} s of it while others sample" if time.hidden >= 0.05 else ""
    actors = f"on {phase.actors}" if phase.actors > 1 else "on one"
    return _row(f"{phase.name}, {phase.flops / 1e15:,.1f} PFLOP {actors}", f"{time.seconds:,.1f} s{hidden}")


def _amounts(amounts: tuple[Amount, ...]) -> Iterator[str]:
    for amount in amounts:
        yield _row(amount.name, f"{amount.size / _GIGA:,.2f}")
    yield _row("in all", f"{sum(amount.size for amount in amounts) / _GIGA:,.2f}")


def _row(name: str, value: str) -> str:
    return f"  {name:<60} {value}"
