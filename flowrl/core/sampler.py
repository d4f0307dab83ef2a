"""The denoising loop, written out, and its replay: both take every step through `policy_step`."""

from __future__ import annotations

import torch

from flowrl.core import sde, seeds
from flowrl.core.sde import Transition
from flowrl.protocols import Policy
from flowrl.types import (
    DenoisePath,
    RolloutRequest,
    SamplingPlan,
    TextCondition,
    Trajectory,
)


def policy_step(
    policy: Policy,
    latents: torch.Tensor,
    *,
    sigmas: torch.Tensor,
    step_index: int,
    plan: SamplingPlan,
    condition: TextCondition,
    negative: TextCondition,
    guidance_scale: float,
) -> Transition:
    """The distribution of the latents after sampler step `step_index` under the policy, for latents [B, ...]."""
    velocity = policy.velocity(latents, sigmas[step_index], condition, negative, guidance_scale)
    return sde.transition(plan.kinds[step_index], latents, velocity, sigmas, step_index, plan.noise_level)


def sample(
    policy: Policy,
    request: RolloutRequest,
    condition: TextCondition,
    negative: TextCondition,
    *,
    policy_version: int,
    samples_per_forward: int,
    device: torch.device,
) -> Trajectory:
    """Sample one group; `samples_per_forward` of it share a forward, as they will in replay."""
    sigmas = policy.sigmas(len(request.plan.kinds))
    sample_seeds = seeds.sample_seeds(request.seed, request.step, request.prompt.id, request.num_samples)
    parts = [
        _sample_part(policy, request, condition, negative, part, sigmas, device)
        for part in sample_seeds.split(samples_per_forward)
    ]
    finals, latents, log_probs, means = zip(*parts, strict=True)
    path = None
    if request.plan.trained:
        path = DenoisePath(
            latents=torch.cat(latents),
            log_probs=torch.cat(log_probs),
            means=torch.cat(means) if request.keep_means else None,
        )
    return Trajectory(
        prompt=request.prompt,
        seeds=sample_seeds,
        condition=condition,
        negative=negative,
        final_latents=torch.cat(finals),
        plan=request.plan,
        guidance_scale=request.guidance_scale,
        path=path,
        policy_version=policy_version,
    )


def _sample_part(
    policy: Policy,
    request: RolloutRequest,
    condition: TextCondition,
    negative: TextCondition,
    sample_seeds: torch.Tensor,
    sigmas: torch.Tensor,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Final latents [B, ...], stored latents [B, K+1, ...], log-probs [B, K] and means [B, K or 0, ...], on the CPU."""
    plan = request.plan
    x = seeds.initial_noise(sample_seeds, policy.latent_shape).to(device)
    stored, log_probs, means = [], [], []
    with torch.no_grad():
        for i, kind in enumerate(plan.kinds):
            step = policy_step(
                policy,
                x,
                sigmas=sigmas,
                step_index=i,
                plan=plan,
                condition=condition,
                negative=negative,
                guidance_scale=request.guidance_scale,
            )
            if i in plan.trained:
                stored.append(x)
            if kind == "ode":
                x = step.mean
            else:
                x = sde.draw(step, seeds.step_noise(sample_seeds, policy.latent_shape, i).to(device))
            if i in plan.trained:
                log_probs.append(sde.log_prob(step, x))
                means += [step.mean] if request.keep_means else []
            if i + 1 == plan.stop and plan.trained:
                stored.append(x)
    none = torch.zeros(len(sample_seeds), 0)

    def stack(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(tensors, 1).cpu() if tensors else none

    return x.cpu(), stack(stored), stack(log_probs), stack(means)


def replay(
    policy: Policy, trajectory: Trajectory, samples: slice, step_index: int, device: torch.device
) -> tuple[Transition, torch.Tensor]:
    """The transition of a stored sampler step under the policy as it is now, and the stored latents it led to.

    `samples` must be one of the parts that the rollout put through a forward together: outputs of a network may
    depend on the batch they are computed in.
    """
    if trajectory.path is None or step_index not in trajectory.plan.trained:
        raise ValueError(f"sampler step {step_index} is not stored: the trajectory holds {trajectory.plan.trained}")
    k = step_index - trajectory.plan.start
    stored = trajectory.path.latents[samples]
    step = policy_step(
        policy,
        stored[:, k].to(device),
        sigmas=policy.sigmas(len(trajectory.plan.kinds)),
        step_index=step_index,
        plan=trajectory.plan,
        condition=trajectory.condition,
        negative=trajectory.negative,
        guidance_scale=trajectory.guidance_scale,
    )
    return step, stored[:, k + 1].to(device)
