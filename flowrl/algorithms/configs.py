"""The configuration of Flow-GRPO, apart from its code so that configs load without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class FlowGRPOConfig:
    """Flow-GRPO (arXiv:2505.05470) with its published variants as options; the defaults are the published SD3 run."""

    name: Literal["flow_grpo"] = "flow_grpo"
    kl_beta: float = 0.01
    kl_form: Literal["gaussian", "velocity"] = "gaussian"
    clip_range: float = 1e-4
    advantage_clip: float = 5.0
    std: Literal["global", "group"] = "global"
    step_kind: Literal["sde", "cps"] = "sde"
    noise_level: float = 0.7
    trained_steps: Literal["all", "fraction", "window"] = "all"  # "all" leaves out the last, whose noise is tiny
    fraction: float = 0.5  # of the sampler steps, the first ones
    window_size: int = 2
    window_low: int = 0  # the window lies within [window_low, window_high)
    window_high: int = 5
    window_schedule: Literal["random", "fixed", "progressive"] = "random"
    window_every: int = 25  # steps between two moves of a progressive window (arXiv:2507.21802)
    ratio_norm: bool = False  # GRPO-Guard (arXiv:2510.22319)
    reweight_steps: bool = False  # GRPO-Guard: divide the policy loss by |d sigma|
    inner_steps: int = 2

    def problem(self, num_steps: int) -> str | None:
        """What is wrong with this configuration for a run of `num_steps` sampler steps, or None."""
        if self.kl_beta < 0:
            return f"kl_beta must not be negative, got {self.kl_beta}"
        if self.clip_range <= 0:
            return f"clip_range must be positive, got {self.clip_range}"
        if self.advantage_clip <= 0:
            return f"advantage_clip must be positive, got {self.advantage_clip}"
        if not 0 < self.noise_level <= 2:
            return f"noise_level must lie in (0, 2], got {self.noise_level}"
        if self.step_kind == "cps" and self.noise_level > 1:
            return f"noise_level must be at most 1 with step_kind cps, got {self.noise_level}"
        if self.step_kind == "cps" and self.kl_beta > 0 and self.kl_form == "gaussian":
            return "kl_form gaussian is not defined for step_kind cps; use kl_form=velocity or kl_beta=0"
        if (self.ratio_norm or self.reweight_steps) and self.step_kind != "sde":
            return "ratio_norm and reweight_steps are defined for step_kind sde only"
        if self.trained_steps == "fraction" and not 1 <= int(num_steps * self.fraction) < num_steps:
            return (
                f"fraction must leave at least one trained and one untrained of rollout.num_steps = {num_steps}, "
                f"got {self.fraction}"
            )
        if self.trained_steps == "window":
            if not 0 <= self.window_low < self.window_high < num_steps:
                return (
                    f"window_low and window_high must satisfy 0 <= low < high < rollout.num_steps = {num_steps} "
                    f"(the last step is not trained), got {self.window_low} and {self.window_high}"
                )
            if not 1 <= self.window_size <= self.window_high - self.window_low:
                return (
                    f"window_size must lie in [1, window_high - window_low = {self.window_high - self.window_low}], "
                    f"got {self.window_size}"
                )
        return None
