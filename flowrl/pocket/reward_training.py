"""How the pocket rewards are trained: the configurations that `flowrl pocket build` gives to the training of rewards.

The label of a pair is the oracle's ranking and nothing else of the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from flowrl.pocket.preference_store import CAPTIONER
from flowrl.pocket.text import MAX_TOKENS
from rewards.training.config import (
    CheckpointSection,
    DataSection,
    DiTRewardSection,
    EvalSection,
    ExportSection,
    LossSection,
    ModelSection,
    OptimSection,
    RewardTrainConfig,
    RunSection,
)

LAYERS = [1, 3, 5]
HEAD_DIMS = [128, 32]
NOTES = "Trained on pairs of the pocket policy's samples and edited renderings; see ../provenance.json."


@dataclass(frozen=True, kw_only=True)
class RewardSteps:
    """How long each reward trains, in optimizer steps."""

    dit_reward: int = 500
    hpsv3: int = 800


def dit_reward_config(work: Path, policy: Path, *, seed: int, steps: int) -> RewardTrainConfig:
    """DiT-Reward on the policy's backbone, all of which learns; the same as configs/reward/pocket/full.yaml."""
    optim = replace(_optim(steps), weight_decay=0.05, warmup_ratio=0.1, ema_decay=0.99)
    model = ModelSection(kind="dit_reward", path=str(policy), mode="full")
    head = DiTRewardSection(layers=LAYERS, head_dims=HEAD_DIMS)
    return replace(_config(work, "dit_reward", model, optim, seed=seed), dit_reward=head)


def hpsv3_config(work: Path, *, seed: int, steps: int) -> RewardTrainConfig:
    """HPSv3 on the captioner, with its own loss; the same as configs/reward/pocket/hpsv3.yaml."""
    optim = replace(_optim(steps), warmup_ratio=0.075, ema_decay=0.995)
    model = ModelSection(kind="hpsv3", path=str(work / "preferences" / CAPTIONER), mode="full")
    loss = LossSection(kind="uncertainty", draws=100)
    return replace(_config(work, "hpsv3", model, optim, seed=seed), loss=loss)


def _optim(steps: int) -> OptimSection:
    return OptimSection(
        lr_head=1.5e-3,
        lr_backbone=6e-4,
        betas=(0.9, 0.99),
        epochs=0,
        max_steps=steps,
        batch_size=16,
        micro_batch_size=16,
        hold_ratio=0.5,
        final_lr_share=0.02,
    )


def _config(work: Path, name: str, model: ModelSection, optim: OptimSection, *, seed: int) -> RewardTrainConfig:
    return RewardTrainConfig(
        run=RunSection(name=name, dir=str(work / name), seed=seed),
        model=model,
        data=DataSection(store=str(work / "preferences"), max_sequence_length=MAX_TOKENS),
        optim=optim,
        eval=EvalSection(every=100, batch_size=256),
        checkpoint=CheckpointSection(every=25),
        export=ExportSection(dtype="float16", notes=NOTES),
    )
