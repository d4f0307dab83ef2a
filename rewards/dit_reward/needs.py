"""The folders that a DiT-Reward reads, named whether they are there or not."""

from __future__ import annotations

from pathlib import Path

from flowrl.base.embedded import POCKET
from flowrl.base.errors import CheckpointError
from flowrl.reward_protocols import NeededFiles
from rewards.dit_reward.layout import holds_backbone, named_base


def needs_latent(path: str, base: str, policy: str) -> tuple[NeededFiles, ...]:
    """What the reward on latents reads: its folder, and the base where its backbone is that one's."""
    bases = _model("base", base) if base else _base_in_config(path, for_encoders=False)
    return (*_reward(path, policy), *bases)


def needs_pixels(path: str, encoders: str, base: str, policy: str) -> tuple[NeededFiles, ...]:
    """What the reward on images reads: besides, the encoders, which are the base's unless others are named."""
    bases = _model("base", base) if base else _base_in_config(path, for_encoders=not encoders)
    return (*_reward(path, policy), *_model("encoders", encoders), *bases)


def _reward(path: str, policy: str) -> tuple[NeededFiles, ...]:
    if path == POCKET:
        return ()
    folder = Path(path)
    model = "medium" if policy.endswith("medium") else "large"
    command = f"flowrl reward train configs/reward/sd35-{model}-full.yaml"
    if folder.name == "reward":
        command += f" run.dir={folder.parent}"  # where it leaves a folder of that name
    advice = f"no DiT-Reward is public, so train one: {command} (rewards/TRAINING.md says with what data, and how long)"
    return (NeededFiles(option="path", path=folder, advice=advice),)


def _model(option: str, path: str) -> tuple[NeededFiles, ...]:
    return () if path in ("", POCKET) else (NeededFiles(option=option, path=Path(path), kind="base"),)


def _base_in_config(path: str, *, for_encoders: bool) -> tuple[NeededFiles, ...]:
    """The base that the folder's config.json names, where it is read."""
    if path == POCKET:
        return ()
    folder = Path(path)
    try:
        base = named_base(folder) if for_encoders or not holds_backbone(folder) else ""
    except CheckpointError:
        return ()  # the folder is not there yet, or not whole: until it is, nobody knows
    if base in ("", POCKET):
        return ()
    return (NeededFiles(option="base", path=Path(base), kind="base", said_in=str(folder / "config.json")),)
