"""A plan as a page of text."""

from __future__ import annotations

from collections.abc import Iterator

from flowrl.base.amounts import count, size
from flowrl.plan.memory import DeviceMemory, RoleMemory, room
from flowrl.plan.run_plan import RunPlan
from flowrl.plan.storage import GPUS_PER_NODE, Amount
from flowrl.plan.timing import BANDWIDTH, PhaseTime, timeout_for
from flowrl.plan.verdict import Verdict

_HOUR, _DAY = 3600, 86400


def page(plan: RunPlan, verdict: Verdict) -> str:
    """The plan on GPUs of one kind: the answer first, then how it comes about."""
    gpu = verdict.gpu
    lines = [*_answer(plan, verdict), "", *_counts(plan), "", "Memory of each actor"]
    for role in plan.roles:
        lines += _role(role)
    lines += _other_checkpointing(plan)
    lines += ["", f"{plan.gpus} x {gpu.title}, of whose memory {size(room(gpu))} can be filled"]
    lines += [_device(kind, room(gpu)) for kind in plan.devices]
    lines += ["", *_time(plan, verdict)]
    if plan.transfers:
        lines += ["", "Moved in a step, over all actors"]
        lines += [_row(transfer.name, size(transfer.size)) for transfer in plan.transfers]
    lines += ["", "On disk", *_amounts(plan.disk)]
    lines += ["", f"Memory of {_host(plan)}", *_amounts(plan.host)]
    return "\n".join(lines) + "\n"


def time_of(plan: RunPlan, rate: float) -> str:
    """The time of a step and of the whole run in words."""
    return f"{_seconds(plan.step.seconds(rate))} a step, {_seconds(plan.seconds(rate))} in all"


def _answer(plan: RunPlan, verdict: Verdict) -> Iterator[str]:
    if plan.costs.config.placement.device == "cpu":
        yield "placement.device is cpu: this is what the run would need on GPUs, and says nothing of its time here."
    fullest, rate, gpu, config = plan.devices[0], verdict.rate, verdict.gpu, plan.costs.config
    names = ", ".join(dict.fromkeys(role.role for role in fullest.roles))
    small = "It does not fit" if fullest.peak > room(gpu) else "There are too few GPUs"
    fits = "It fits" if verdict.fits else small
    yield f"{fits}: the fullest GPU needs {size(fullest.peak)} ({names}); {gpu.title} has room for {size(room(gpu))}."
    if verdict.num_gpus is not None and plan.gpus > verdict.num_gpus:
        yield f"It takes {plan.gpus} GPUs; there {'is' if verdict.num_gpus == 1 else 'are'} {verdict.num_gpus}."
    many = f"{plan.gpus} GPUs" if plan.gpus > 1 else "one GPU"
    steps = "1 step with its" if config.run.steps == 1 else f"{config.run.steps} steps with their"
    yield f"On {many}: {time_of(plan, rate)} for {steps} evaluations."
    if verdict.more_samples:
        yield f"There is room for more: rollout.samples_per_forward={verdict.more_samples} fits as well."
    if not verdict.fits:
        yield "What would fit:" if verdict.proposals else "Nothing that is known here would fit: use a smaller model."
    for proposal in verdict.proposals:
        yield f"  {proposal.text}" + (f"    # {time_of(proposal.plan, rate)}" if proposal.plan else "")
    missing = [reward.name for reward in plan.costs.rewards if reward.cost is None]
    if missing:
        yield f"Not counted, as they do not say what they take: {', '.join(missing)}."
    if (timeout := timeout_for(config, plan.step, rate)) is not None:
        yield (
            "An update is one call, and takes longer here than placement.timeout_s = "
            f"{config.placement.timeout_s:g} s: set placement.timeout_s={timeout}."
        )
    if config.model.quantisation != "none":
        yield f"What unpacking {config.model.quantisation} weights costs is not known, and not in the times."


def _counts(plan: RunPlan) -> Iterator[str]:
    work, policy, geometry = plan.work, plan.policy, plan.costs.geometry
    yield (
        f"A step: {count(work.groups, 'group')}, {count(work.samples, 'sample')}, {work.samples_per_forward} in a "
        f"forward; {count(work.sampler_steps, 'sampler step')}, {work.trained_steps} trained; inner steps of "
        f"{count(work.samples // work.inner_steps, 'sample')}: {work.inner_steps}."
    )
    share = work.groups // work.learners
    learners = "1 learner trains" if work.learners == 1 else f"{work.learners} learners train, each"
    yield (
        f"{learners} on {count(share, 'group')}, {share // work.inner_steps} in an inner step of "
        f"{count(work.losses // work.learners // work.inner_steps, 'micro-batch', 'micro-batches')}; who samples "
        f"makes up to {count(-(-work.groups // work.rollouts), 'group')}."
    )
    yield (
        f"The policy: {policy.num_parameters:,} parameters, an adapter of "
        f"{count(policy.num_adapter_layers, 'layer')} with {policy.num_adapter_parameters:,}."
    )
    rows = geometry.samples * (2 if geometry.guided else 1)
    width = int(plan.costs.model.transformer["caption_projection_dim"])
    keys = 2 * rows * geometry.text_length * width * geometry.dtype.itemsize
    yield (
        f"The text condition of a forward: {rows} x {geometry.text_length} tokens, "
        f"{size(rows * plan.costs.condition_bytes)}, and {size(keys)} of keys and values in each block; the peaks "
        "below hold both."
    )


def _role(role: RoleMemory) -> Iterator[str]:
    yield f"  {role.role}" + (f", {role.actors} of them" if role.actors > 1 else "")
    for part in role.held:
        yield _row(f"  {part.name}", size(part.size))
    for part in role.in_turn:
        yield _row(f"  {part.name}, at its peak", size(part.size))
    more = f", without {role.not_counted}" if role.not_counted else ""
    yield _row("  in all", f"{size(role.peak)}{more}")


def _other_checkpointing(plan: RunPlan) -> Iterator[str]:
    now, other = plan.policy, plan.costs.with_other_checkpointing()
    setting = "false" if plan.costs.config.model.gradient_checkpointing else "true"
    work = other.update_flops / now.update_flops
    yield (
        f"  With model.gradient_checkpointing={setting} the update's peak would be {size(other.update_rise)}, not "
        f"{size(now.update_rise)}, and its work {work:.2f} times as much."
    )


def _host(plan: RunPlan) -> str:
    if plan.costs.config.placement.device == "cpu":
        return "the machine"
    where = "the machine" if plan.gpus <= GPUS_PER_NODE else f"a node with {GPUS_PER_NODE} of the GPUs"
    return f"{where} itself, beside that of the GPUs"


def _device(kind: DeviceMemory, most: int) -> str:
    roles = ", ".join(role.role for role in kind.roles) + (", in turn" if kind.in_turn else "")
    return _row(f"{kind.devices} with {roles}", f"{size(kind.peak)}  {'fits' if kind.peak <= most else 'DOES NOT FIT'}")


def _time(plan: RunPlan, verdict: Verdict) -> Iterator[str]:
    rate = verdict.rate
    yield (
        f"Time, if {100 * verdict.share:.0f} % of the {verdict.peak / 1e12:.0f} TFLOP/s of the data sheet are reached: "
        "an assumption (--efficiency), not a measurement"
    )
    if any(phase.moved for phase in plan.step.phases):
        yield f"What is moved, at {BANDWIDTH / 1e9:.0f} GB/s of each GPU: assumed too, and many times more over NVLink"
    for time in plan.step.times(rate):
        yield _phase(time)
    seconds = plan.step.seconds(rate)
    yield _row("step", f"{_seconds(seconds)}, {plan.work.samples / seconds:,.2f} images per second")
    yield _row("one evaluation", _seconds(plan.evaluation.seconds(rate)))
    yield _row("the run", _seconds(plan.seconds(rate)))


def _phase(time: PhaseTime) -> str:
    phase = time.phase
    hidden = f", {_seconds(time.hidden)} of it while others are sampled" if time.hidden > 0.01 * time.seconds else ""
    amounts = [f"{phase.flops / 1e15:,.3g} PFLOP"] if phase.flops else []
    amounts += [f"{size(phase.moved)} moved by each"] if phase.moved else []
    actors = f"{phase.actors} GPUs" if phase.actors > 1 else "one"
    return _row(f"{phase.name}, {' and '.join(amounts)} on {actors}", f"{_seconds(time.seconds)}{hidden}")


def _amounts(amounts: tuple[Amount, ...]) -> Iterator[str]:
    for amount in amounts:
        yield _row(amount.name, size(amount.size))
    yield _row("in all", size(sum(amount.size for amount in amounts)))


def _row(name: str, value: str) -> str:
    return f"  {name:<60} {value}"


def _seconds(seconds: float) -> str:
    """A time with about three digits."""
    if seconds >= _DAY:
        return f"{seconds / _DAY:.1f} days"
    if seconds >= 2 * _HOUR:
        return f"{seconds / _HOUR:.1f} hours"
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
