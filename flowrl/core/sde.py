"""One sampler step as a Gaussian transition, its log-probability, and the KL between two of them. Float32 throughout.

Convention: x_sigma = (1 - sigma) x0 + sigma eps, velocity v = eps - x0, and a step goes from sigma down to sigma'.
With dt = sigma' - sigma < 0 and the diffusion d = a sqrt(sigma / (1 - sigma)):

    sde   mean = x (1 + d^2 dt / (2 sigma)) + v (1 + d^2 (1 - sigma) / (2 sigma)) dt,   std = d sqrt(-dt)
          (arXiv:2505.05470 eq. 9)
    cps   mean = (1 - sigma') x0 + sqrt(sigma'^2 - std^2) x1,   std = sigma' sin(a pi / 2)
          with x0 = x - sigma v and x1 = x + (1 - sigma) v   (arXiv:2509.05952)
    ode   mean = x + v dt,   std = 0

Log-probabilities are means, not sums, over the latent dimensions: a ratio of them is the likelihood ratio to the
power of 1 / (number of dimensions), and clip ranges are stated for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from flowrl.types import StepKind


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The scalars of one transition: mean = x_scale x + v_scale v, noise std, and the diffusion d (of cps: the std)."""

    x_scale: float
    v_scale: float
    std: float
    diffusion: float


@dataclass(frozen=True, kw_only=True)
class Transition:
    """The distribution of the next latents."""

    mean: torch.Tensor  # [B, ...] float32
    std: float
    diffusion: float
    kind: StepKind


def coefficients(kind: StepKind, sigmas: torch.Tensor, step_index: int, noise_level: float) -> Coefficients:
    """The scalars of sampler step `step_index` on the schedule `sigmas` [T + 1]; raises ValueError outside it."""
    if not 0 <= step_index < len(sigmas) - 1:
        raise ValueError(f"step_index must lie in [0, {len(sigmas) - 1}), got {step_index}")
    sigma, following = sigmas[step_index].item(), sigmas[step_index + 1].item()
    dt = following - sigma
    if kind == "ode":
        return Coefficients(x_scale=1.0, v_scale=dt, std=0.0, diffusion=0.0)
    if kind == "cps":
        std = following * math.sin(noise_level * math.pi / 2)
        noise_scale = math.sqrt(max(following**2 - std**2, 0.0))
        return Coefficients(
            x_scale=(1 - following) + noise_scale,
            v_scale=-(1 - following) * sigma + noise_scale * (1 - sigma),
            std=std,
            diffusion=std,
        )
    # At sigma = 1 the diffusion has a pole; the published guard takes the second sigma of the schedule there.
    guarded = sigmas[1].item() if sigma == 1.0 else sigma
    diffusion = noise_level * math.sqrt(sigma / (1 - guarded))
    return Coefficients(
        x_scale=1 + diffusion**2 * dt / (2 * sigma),
        v_scale=(1 + diffusion**2 * (1 - sigma) / (2 * sigma)) * dt,
        std=diffusion * math.sqrt(-dt),
        diffusion=diffusion,
    )


def transition(
    kind: StepKind,
    latents: torch.Tensor,
    velocity: torch.Tensor,
    sigmas: torch.Tensor,
    step_index: int,
    noise_level: float,
) -> Transition:
    """The next latents' distribution from latents [B, ...] and velocity [B, ...]; the one step for sampling,
    replay and KL."""
    scalars = coefficients(kind, sigmas, step_index, noise_level)
    mean = scalars.x_scale * latents.float() + scalars.v_scale * velocity.float()
    return Transition(mean=mean, std=scalars.std, diffusion=scalars.diffusion, kind=kind)


def draw(step: Transition, noise: torch.Tensor) -> torch.Tensor:
    """The next latents [B, ...] for standard normal noise [B, ...]; an ODE step ignores the noise."""
    if step.kind == "ode":
        return step.mean
    return step.mean + step.std * noise


def log_prob(step: Transition, following: torch.Tensor) -> torch.Tensor:
    """The log-probability [B] float32 of the next latents, mean over latent dims; raises ValueError for an ODE step.

    For "cps" the published form drops every constant, 1 / (2 std^2) included: -mean((x' - mean)^2).
    """
    if step.kind == "ode":
        raise ValueError("an ODE step has no log-probability: it must not be a trained step")
    squared = (following.float() - step.mean).square().flatten(1).mean(1)
    if step.kind == "cps":
        return -squared
    return -squared / (2 * step.std**2) - math.log(step.std) - 0.5 * math.log(2 * math.pi)


def gaussian_kl(policy: Transition, reference: Transition) -> torch.Tensor:
    """KL of two sde transitions times |dt| per latent dim, [B] float32: mean((mu - mu_ref)^2) / (2 d^2).

    The published form divides by the squared diffusion, without |dt| (flow_grpo since 2025-07), and so weighs late
    steps, whose |dt| is large, more than the KL itself does. Raises ValueError for steps that are not of kind sde.
    """
    if policy.kind != "sde" or reference.kind != "sde":
        raise ValueError(f"the Gaussian KL is defined for sde steps, got {policy.kind} and {reference.kind}")
    squared = (policy.mean - reference.mean).square().flatten(1).mean(1)
    return squared / (2 * policy.diffusion**2)
