"""A plan as a page of text."""

from __future__ import annotations

from collections.abc import Iterable

from flowrl.plan.gpus import Gpu
from flowrl.plan.memory import DeviceMemory, RoleMemory, room
from flowrl.plan.run_plan import RunPlan

_GIGA = 10**9


def page(plan: RunPlan, gpu: Gpu, share: float) -> str:
    """The plan on GPUs of one kind, with the times at which `share` of their peak rate is reached."""
    work = plan.work
    lines = [
        f"A step: {work.groups} groups, {work.samples} samples, {work.samples_per_forward} in a forward; "
        f"{work.sampler_steps} sampler steps, {work.trained_steps} trained; {work.inner_steps} inner steps of "
        f"{work.samples // work.inner_steps} samples.",
        f"The policy: {plan.policy.num_parameters:,} parameters, an adapter of {plan.policy.num_adapter_layers} layers "
        f"with {plan.policy.num_adapter_parameters:,}.",
        "",
        "Memory of each actor, GB",
    ]
    for role in plan.roles:
        lines += _memory(role)
    lines += ["", f"{plan.gpus} x {gpu.title}, of whose memory {room(gpu) / _GIGA:.1f} GB can be filled"]
    lines += [_device(kind, gpu) for kind in plan.devices]
    rate = gpu.flops * share
    lines += ["", f"Time, if {100 * share:.0f} % of {gpu.flops / 1e12:.0f} TFLOP/s are reached; without rewards"]
    total = 0.0
    for phase in plan.phases:
        seconds = phase.seconds(rate)
        total += seconds
        lines.append(_row(f"{phase.name}, {phase.flops / 1e15:,.1f} PFLOP on {phase.actors}", f"{seconds:,.1f} s"))
    lines.append(_row("step", f"{total:,.1f} s, {work.samples / total:.2f} images per second"))
    evaluation = plan.evaluation
    lines.append(_row("one evaluation", f"{evaluation.seconds(rate):,.1f} s"))
    lines += [
        "",
        "Moved and stored, GB",
        _row("trajectories of a step", f"{plan.trajectory_bytes / _GIGA:.2f}"),
        _row("weights to each rollout, a step", f"{plan.weight_bytes / _GIGA:.2f}"),
        _row("checkpoints", f"{plan.checkpoint_bytes / _GIGA:.2f}"),
    ]
    return "\n".join(lines) + "\n"


def _device(kind: DeviceMemory, gpu: Gpu) -> str:
    roles = ", ".join(role.role for role in kind.roles) + (", in turn" if kind.in_turn else "")
    fits = "fits" if kind.peak <= room(gpu) else "DOES NOT FIT"
    return _row(f"{kind.devices} with {roles}", f"{kind.peak / _GIGA:.2f}  {fits}")


def _memory(role: RoleMemory) -> Iterable[str]:
    yield f"  {role.role}, {role.actors} of them"
    for part in role.held:
        yield _row(f"  {part.name}", f"{part.size / _GIGA:.2f}")
    for part in role.in_turn:
        yield _row(f"  {part.name}, at its peak", f"{part.size / _GIGA:.2f}")
    more = f", without {role.not_counted}" if role.not_counted else ""
    yield _row("  in all", f"{role.peak / _GIGA:.2f}{more}")


def _row(name: str, value: str) -> str:
    return f"  {name:<44} {value}"
