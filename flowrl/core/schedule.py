"""Noise schedules: the sigmas that a denoising run steps through."""

from __future__ import annotations

import numpy as np
import torch


def flow_match_sigmas(num_steps: int, *, shift: float, num_train_timesteps: int = 1000) -> torch.Tensor:
    """The sigmas of diffusers' FlowMatchEulerDiscreteScheduler without dynamic shifting: [num_steps + 1] float32.

    They fall from 1 to 0. The shift s -> shift * s / (1 + (shift - 1) * s) acts twice at the low end, once on the
    training grid, whose last value sets the smallest sigma, and once on the sampling grid: so does the scheduler.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    lowest = np.float32(1) / np.float32(num_train_timesteps)
    lowest = shift * lowest / (1 + (shift - 1) * lowest)
    sigmas = np.linspace(float(num_train_timesteps), float(lowest) * num_train_timesteps, num_steps)
    sigmas = sigmas / num_train_timesteps
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return torch.cat([torch.from_numpy(sigmas).to(torch.float32), torch.zeros(1)])
