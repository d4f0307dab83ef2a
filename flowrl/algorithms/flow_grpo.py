"""Flow-GRPO: group-relative policy optimisation of a flow model's sampler steps (arXiv:2505.05470).

Its published variants are options: Flow-GRPO-Fast and MixGRPO (arXiv:2507.21802) train a window of SDE steps with ODE
steps around it, Flow-CPS (arXiv:2509.05952) takes another stochastic step, GRPO-Guard (arXiv:2510.22319) normalises
the ratio and reweights the steps. What this is not: the reference policy is always the base model, never updated, and
the trained steps of a run are consecutive.
"""

from __future__ import annotations

import math

import torch

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.core import sde, seeds
from flowrl.core.advantages import group_advantages
from flowrl.core.sampler import replay
from flowrl.core.sde import Transition
from flowrl.protocols import Policy
from flowrl.types import LossOutput, Metric, SamplingPlan, Scores, StepKind, TrainBatch


class FlowGRPO:
    """The algorithm of one run; `seed` picks random windows."""

    def __init__(self, config: FlowGRPOConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.needs_means = config.ratio_norm
        self.inner_steps = config.inner_steps

    def plan(self, step: int, num_steps: int) -> SamplingPlan:
        """Which sampler steps are stochastic and trained in a step; outside a window they are ODE steps."""
        config = self.config
        kind: StepKind = config.step_kind
        if config.trained_steps == "window":
            start = self._window_start(step)
            stop = start + config.window_size
            kinds = tuple(kind if start <= i < stop else "ode" for i in range(num_steps))
            return SamplingPlan(kinds=kinds, noise_level=config.noise_level, start=start, stop=stop)
        # The last step's noise is so small that its log-probability overflows: it is sampled, never trained.
        stop = num_steps - 1 if config.trained_steps == "all" else int(num_steps * config.fraction)
        return SamplingPlan(kinds=(kind,) * num_steps, noise_level=config.noise_level, start=0, stop=stop)

    def _window_start(self, step: int) -> int:
        config = self.config
        last = config.window_high - config.window_size
        if config.window_schedule == "fixed":
            return config.window_low
        if config.window_schedule == "progressive":
            return min(config.window_low + (step - 1) // config.window_every, last)
        chosen = torch.randint(
            config.window_low, last + 1, (1,), generator=seeds.generator(self.seed, step, seeds.WINDOW)
        )
        return int(chosen.item())

    def advantages(self, scores: list[Scores]) -> list[torch.Tensor]:
        """Group-relative advantages of the total scores: one [G] float32 tensor per group."""
        return group_advantages(
            [group.total for group in scores],
            [group.valid for group in scores],
            std=self.config.std,
            clip=self.config.advantage_clip,
        )

    def loss(self, policy: Policy, batch: TrainBatch, samples: slice, step_index: int) -> LossOutput:
        """Clipped surrogate plus beta KL, the mean over the samples [B] of a micro-batch (arXiv:2505.05470 eq. 4, 5).

        The device is that of the policy's parameters. Gradients flow through both branches of the guidance.
        """
        trajectory = batch.trajectory
        assert trajectory.path is not None
        device = next(iter(policy.trainable()))[1].device
        step, following = replay(policy, trajectory, samples, step_index, device)
        k = step_index - trajectory.plan.start
        old_log_prob = trajectory.path.log_probs[samples, k].to(device)
        advantages = batch.advantages[samples].to(device)
        log_prob = sde.log_prob(step, following)
        log_ratio = log_prob - old_log_prob
        if self.config.ratio_norm:
            assert trajectory.path.means is not None
            drift = (step.mean - trajectory.path.means[samples, k].to(device)).square().flatten(1).mean(1)
            log_ratio = (log_ratio + drift / (2 * step.std**2)) * step.std
        ratio = torch.exp(log_ratio)
        clip = self.config.clip_range
        policy_loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
        if self.config.reweight_steps:
            sigmas = policy.sigmas(len(trajectory.plan.kinds))
            policy_loss = policy_loss / (sigmas[step_index] - sigmas[step_index + 1]).item()
        kl, loss = torch.tensor(math.nan), policy_loss  # unknown without the reference, whose forward is saved
        if self.config.kl_beta > 0:
            kl = self._kl(batch, policy, samples, step_index, step).mean()
            loss = policy_loss + self.config.kl_beta * kl
        return LossOutput(
            loss=loss,
            metrics=_metrics(ratio, policy_loss, kl, loss, clip),
            drift=_drift(ratio, log_prob - old_log_prob, step_index),
            ratio_absdev=(ratio.detach() - 1).abs().max().item(),
        )

    def _kl(self, batch: TrainBatch, policy: Policy, samples: slice, step_index: int, step: Transition) -> torch.Tensor:
        """The divergence [B] from the adapter-off reference at a stored step; gradients reach the policy only."""
        with torch.no_grad(), policy.reference():
            reference, _ = replay(policy, batch.trajectory, samples, step_index, step.mean.device)
        if self.config.kl_form == "gaussian":
            return sde.gaussian_kl(step, reference)
        # Equal x cancels in the difference of the means, so dividing by the velocity's factor gives velocities.
        scalars = sde.coefficients(
            step.kind, policy.sigmas(len(batch.trajectory.plan.kinds)), step_index, batch.trajectory.plan.noise_level
        )
        return ((step.mean - reference.mean) / scalars.v_scale).square().flatten(1).mean(1)


def _metrics(
    ratio: torch.Tensor, policy_loss: torch.Tensor, kl: torch.Tensor, loss: torch.Tensor, clip: float
) -> list[Metric]:
    clipped = (ratio.detach() - 1).abs() > clip
    return [
        Metric(key="policy/loss", value=loss.item()),
        Metric(key="policy/policy_loss", value=policy_loss.item()),
        Metric(key="policy/kl", value=kl.item()),
        Metric(key="policy/ratio_mean", value=ratio.detach().mean().item()),
        Metric(key="policy/clip_fraction", value=clipped.float().mean().item()),
    ]


def _drift(ratio: torch.Tensor, log_ratio: torch.Tensor, step_index: int) -> list[Metric]:
    deviation = (ratio.detach() - 1).abs().max().item()
    return [
        Metric(key="policy/ratio_absdev_max", value=deviation, reduce="max"),
        Metric(key=f"policy/ratio_absdev_step_{step_index}", value=deviation, reduce="max"),
        Metric(key="policy/logp_absdiff_max", value=log_ratio.detach().abs().max().item(), reduce="max"),
    ]
