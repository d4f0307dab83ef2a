"""The folder of a reward training: config, environment, metrics, checkpoints, accuracy, and the trained reward."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_file import diff_configs, dump_config, flat_config, read_config
from flowrl.base.config_tree import ConfigError
from flowrl.base.environment import environment, read_environments, write_environments
from flowrl.base.folder_lock import LOCK, make_writable, take_lock
from rewards.training.config import RewardTrainConfig

_CONTENTS = (
    *("config.yaml", "env.json", "metrics.jsonl", "tb", "checkpoints", "sharded", "features", "validation.json"),
    "reward",
)
# What there is, beside the lock, of a training that ended before it began.
_NOT_BEGUN: tuple[list[str], ...] = ([], ["config.yaml", "env.json"])
# Keys that shape no number of a step: `encode_batch` has done its work where there is a set to train on.
_MAY_CHANGE = (
    "run.dir",
    "run.name",
    "run.overwrite",
    "eval.",
    "checkpoint.",
    "export.",
    "data.device",
    "data.encode_batch",
)


@dataclass(frozen=True, kw_only=True)
class TrainingFolder:
    """A training's folder; the main process, which holds its lock, writes most of it."""

    path: Path
    lock: IO[str] | None = field(default=None, repr=False, compare=False)

    @property
    def checkpoints(self) -> Path:
        """Resumable state."""
        return self.path / "checkpoints"

    @property
    def features(self) -> Path:
        """Features of a frozen backbone."""
        return self.path / "features"

    @property
    def reward(self) -> Path:
        """The trained reward, in the layout that its reward class loads."""
        return self.path / "reward"

    @property
    def validation(self) -> Path:
        """The accuracy at the end."""
        return self.path / "validation.json"


def check_folder(config: RewardTrainConfig, *, resume: bool) -> None:
    """Raise ConfigError when the folder holds something else, or a training that was begun with another config."""
    path = Path(config.run.dir)
    begun = path / "config.yaml"
    if resume and not begun.is_file():
        raise ConfigError(f"run.dir={path} must hold a training to resume, but there is no {begun}")
    held = sorted(child.name for child in path.iterdir() if child.name != LOCK) if path.is_dir() else []
    if not resume and held not in _NOT_BEGUN and not config.run.overwrite:
        raise ConfigError(
            f"run.dir={path} must be new, but it holds {', '.join(held[:3])}. Either go on with it: "
            f"flowrl reward train --resume {path}; or start anew: run.overwrite=true; or use another run.name"
        )
    if resume:
        _check_same(config, begun)


def claim(config: RewardTrainConfig, *, resume: bool) -> TrainingFolder:
    """Make the folder, or take one to go on in; raises ConfigError when it is in use, or `check_folder` does."""
    check_folder(config, resume=resume)
    path = Path(config.run.dir)
    make_writable(path, "run.dir")
    lock = take_lock(path, "run.dir")
    if not resume:
        _clear(path)
    write_atomically(path / "config.yaml", dump_config(config).encode())
    earlier = read_environments(path / "env.json") if resume else []
    write_environments(path / "env.json", [*earlier, environment()])
    return TrainingFolder(path=path, lock=lock)


def fixed_settings(config: RewardTrainConfig) -> dict[str, str]:
    """The keys that shape the numbers of a training, with their values as text."""
    return {key: repr(value) for key, value in flat_config(config).items() if not key.startswith(_MAY_CHANGE)}


def _check_same(config: RewardTrainConfig, begun: Path) -> None:
    before = read_config(RewardTrainConfig, begun, [])
    changed = sorted(key for key in diff_configs(before, config) if not key.startswith(_MAY_CHANGE))
    if changed:
        raise ConfigError(
            f"{begun}: a resumed training goes on as it began, but these keys differ: {', '.join(changed)}; drop the "
            f"overrides, or start a new one. What may change: {', '.join(_MAY_CHANGE)}"
        )


def _clear(path: Path) -> None:
    """Remove what an earlier training left; anything else stays."""
    for name in _CONTENTS:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)
