"""What is said of a plan on a named GPU, and all of it as figures for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from flowrl.config import RunConfig
from flowrl.plan.gpus import Gpu
from flowrl.plan.memory import room
from flowrl.plan.proposals import Proposal, proposals, room_for_more, too_large
from flowrl.plan.run_plan import RunPlan
from flowrl.plan.timing import timeout_for


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a run fits on GPUs of one kind, and what would or could be changed.

    Example: ``judge(config, run_plan(config), GPUS["h100"], share=0.4).fits``
    """

    gpu: Gpu
    num_gpus: int | None  # there are; None: as many as it takes
    peak: float  # FLOP/s of it for the model's dtype, by its data sheet
    share: float  # of that, assumed
    fits: bool
    proposals: tuple[Proposal, ...]  # where it does not
    more_samples: int  # in a forward, where it does; 0: not more than the configuration has

    @property
    def rate(self) -> float:
        """FLOP/s of each GPU."""
        return self.peak * self.share


def judge(config: RunConfig, plan: RunPlan, gpu: Gpu, *, share: float, num_gpus: int | None = None) -> Verdict:
    """The verdict on a plan, on `num_gpus` GPUs or as many as it takes."""
    fits = not too_large(plan, gpu) and (num_gpus is None or plan.gpus <= num_gpus)
    most = room_for_more(config, gpu) if fits else 0
    peak = gpu.rate(config.model.dtype)
    return Verdict(
        gpu=gpu,
        num_gpus=num_gpus,
        peak=peak,
        share=share,
        fits=fits,
        proposals=() if fits else tuple(_in_time(one, peak * share) for one in proposals(config, gpu, num_gpus)),
        more_samples=most if most > plan.work.samples_per_forward else 0,
    )


def _in_time(proposal: Proposal, rate: float) -> Proposal:
    """The proposal, and where its updates take longer than the timeout another timeout."""
    timeout = None if proposal.plan is None else timeout_for(proposal.plan.costs.config, proposal.plan.step, rate)
    if timeout is None:
        return proposal
    return replace(proposal, overrides=(*proposal.overrides, f"placement.timeout_s={timeout}"))


def as_json(plan: RunPlan, verdict: Verdict) -> str:
    """One object: bytes, FLOPs and seconds."""
    rate = verdict.rate
    figures = {
        "gpu": asdict(verdict.gpu) | {"room": room(verdict.gpu)},
        "efficiency": verdict.share,
        "gpus": plan.gpus,
        "fits": verdict.fits,
        "proposals": [proposal.text for proposal in verdict.proposals],
        "more_samples_per_forward": verdict.more_samples or None,
        "not_counted": [reward.name for reward in plan.costs.rewards if reward.cost is None],
        "work": asdict(plan.work),
        "policy": asdict(plan.policy),
        "policy_with_other_checkpointing": asdict(plan.costs.with_other_checkpointing()),
        "roles": [
            {
                "role": role.role,
                "actors": role.actors,
                "held": [asdict(part) for part in role.held],
                "in_turn": [asdict(part) for part in role.in_turn],
                "not_counted": role.not_counted,
                "peak": role.peak,
            }
            for role in plan.roles
        ],
        "devices": [
            {"roles": [role.role for role in kind.roles], "devices": kind.devices, "peak": kind.peak}
            for kind in plan.devices
        ],
        "phases": [
            asdict(time.phase) | {"seconds": time.seconds, "hidden": time.hidden} for time in plan.step.times(rate)
        ],
        "step_seconds": plan.step.seconds(rate),
        "evaluation_seconds": plan.evaluation.seconds(rate),
        "run_seconds": plan.seconds(rate),
        "moved": {transfer.name: transfer.size for transfer in plan.transfers},
        "disk": {amount.name: amount.size for amount in plan.disk},
        "host": {amount.name: amount.size for amount in plan.host},
    }
    return json.dumps(figures, indent=2)
