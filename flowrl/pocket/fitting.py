"""The training loop that all stages of the pocket build share: AdamW, EMA, a progress bar, and resume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

_CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """How long and how fast one stage trains."""

    steps: int
    lr: float
    warmup: int = 100
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """What a stage cost and how its loss fell; `losses` holds up to 20 averages over equal parts of the run."""

    steps: int
    seconds: float
    parameters: int
    losses: list[float]


def lr_factor(step: int, plan: FitPlan) -> float:
    """Linear warm-up, constant for the first half, then half a cosine down to 2 %."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    progress = max(0.0, 2 * step / plan.steps - 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    name: str,
    module: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    plan: FitPlan,
    *,
    checkpoint: Path,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
) -> FitRecord:
    """Train `module` so that `loss_at(step)` falls, and leave the averaged (EMA) weights in it.

    `loss_at` must derive all randomness from its argument: a run that was interrupted continues from `checkpoint`
    with the numbers of an uninterrupted one. `lr_scale` maps a parameter's name to its share of the learning rate.
    """
    named = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
    groups = [{"params": [p], "lr": plan.lr * lr_scale(key), "base": plan.lr * lr_scale(key)} for key, p in named]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=plan.weight_decay)
    ema = {key: p.detach().clone() for key, p in named}
    start, seconds, losses = 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for key, p in named:
            p.data.copy_(state["weights"][key])
        ema, start, seconds, losses = state["ema"], state["step"], state["seconds"], state["losses"]
        optimizer.load_state_dict(state["optimizer"])
    began = saved = time.monotonic()

    def save(step: int) -> None:
        state = {
            "weights": {key: p.detach() for key, p in named},
            "ema": ema,
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": seconds + time.monotonic() - began,
            "losses": losses,
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    bar = tqdm(range(start, plan.steps), initial=start, total=plan.steps, desc=name, mininterval=5, smoothing=0.05)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * lr_factor(step, plan)
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"pocket build: the loss of stage {name!r} is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], plan.clip_norm)
        optimizer.step()
        decay = min(plan.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([ema[key] for key, _ in named], [p for _, p in named], 1 - decay)
        losses.append(loss.item())
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}")
        if time.monotonic() - saved > _CHECKPOINT_EVERY_S:
            save(step + 1)
            saved = time.monotonic()
    save(plan.steps)
    for key, p in named:
        p.data.copy_(ema[key])
    part = max(1, plan.steps // 20)
    means = [round(sum(losses[i : i + part]) / len(losses[i : i + part]), 5) for i in range(0, len(losses), part)]
    return FitRecord(
        steps=plan.steps,
        seconds=round(seconds + time.monotonic() - began, 1),
        parameters=sum(p.numel() for _, p in named),
        losses=means[:20],
    )
