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


class _State:
    """Everything that training changes, with a checkpoint that an interrupted stage continues from."""

    def __init__(
        self, module: torch.nn.Module, plan: FitPlan, lr_scale: Callable[[str], float], checkpoint: Path
    ) -> None:
        self.named = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p], "lr": plan.lr * lr_scale(key), "base": plan.lr * lr_scale(key)} for key, p in self.named
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=plan.weight_decay)
        self.ema = {key: p.detach().clone() for key, p in self.named}
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self._plan = plan
        self._checkpoint = checkpoint
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            for key, p in self.named:
                p.data.copy_(state["weights"][key])
            self.ema, self.step, self.seconds = state["ema"], state["step"], state["seconds"]
            self.losses = state["losses"]
            self.optimizer.load_state_dict(state["optimizer"])
        self._began = self._saved = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training, those before an interruption included."""
        return self.seconds + time.monotonic() - self._began

    def take(self, loss: torch.Tensor) -> None:
        """One optimizer step and one step of the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * lr_factor(self.step, self._plan)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters: list[torch.Tensor] = [p for _, p in self.named]
        torch.nn.utils.clip_grad_norm_(parameters, self._plan.clip_norm)
        self.optimizer.step()
        decay = min(self._plan.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_([self.ema[key] for key, _ in self.named], parameters, 1 - decay)
        self.losses.append(loss.item())
        self.step += 1

    def save(self, *, at_once: bool = False) -> None:
        """Write the checkpoint if the last one is old."""
        if not at_once and time.monotonic() - self._saved < _CHECKPOINT_EVERY_S:
            return
        state = {
            "weights": {key: p.detach() for key, p in self.named},
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.elapsed(),
            "losses": self.losses,
        }
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self._checkpoint.with_suffix(".tmp"))
        os.replace(self._checkpoint.with_suffix(".tmp"), self._checkpoint)
        self._saved = time.monotonic()


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
    state = _State(module, plan, lr_scale, checkpoint)
    steps = range(state.step, plan.steps)
    bar = tqdm(steps, initial=state.step, total=plan.steps, desc=name, mininterval=5, smoothing=0.05)
    for step in bar:
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"pocket build: the loss of stage {name!r} is {loss.item()} at step {step}")
        state.take(loss)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(state.losses[-50:]) / len(state.losses[-50:]):.4f}")
        state.save()
    state.save(at_once=True)
    for key, p in state.named:
        p.data.copy_(state.ema[key])
    part = max(1, plan.steps // 20)
    parts = [state.losses[i : i + part] for i in range(0, len(state.losses), part)]
    return FitRecord(
        steps=plan.steps,
        seconds=round(state.elapsed(), 1),
        parameters=sum(p.numel() for _, p in state.named),
        losses=[round(sum(losses) / len(losses), 5) for losses in parts][:20],
    )
