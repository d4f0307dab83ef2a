"""The directory of a run: made safely, never overwritten by accident, with a record of where the run came from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from flowrl.base.amounts import count, size
from flowrl.base.atomic_file import write_atomically
from flowrl.base.environment import environment, read_environments, write_environments
from flowrl.base.folder_lock import make_writable, take_lock
from flowrl.config import ConfigError, RunConfig, dump

LATEST = "latest"
# What a run writes, and so all that starting anew in its directory may delete.
_CONTENTS = (
    *("config.yaml", "env.json", "metrics.jsonl", "tb", "samples", "evaluations", "checkpoints", "lora"),
    "report.html",
)
LOCK = ".lock"
# What an earlier run left waits in _BEFORE until the new one has a figure to show. It is moved there and back by way of
# _MOVING, and goes by way of _TRASH: each of these appears and vanishes at once, so that a kill at any moment loses
# nothing, and what stands beside _BEFORE is the new run's alone.
_BEFORE, _MOVING, _TRASH = ".before", ".moving", ".trash"
_LOGS = 256 * 10**6  # bytes: what all that a run writes beside checkpoints and adapter may take
_COPIES = 4  # of the adapter in a checkpoint: itself, its moving average and two moments


@dataclass(frozen=True, kw_only=True)
class RunDir:
    """A run directory that this process may write to, as long as it keeps this object.

    Example: ``claim(config).lora`` is ``runs/<name>/lora``.
    """

    path: Path
    lock: IO[str] | None = field(default=None, repr=False, compare=False)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def samples(self) -> Path:
        """Image grids by step."""
        return self.path / "samples"

    @property
    def evaluations(self) -> Path:
        """Every score of every evaluation, by step."""
        return self.path / "evaluations"

    @property
    def checkpoints(self) -> Path:
        """Resumable state."""
        return self.path / "checkpoints"

    @property
    def lora(self) -> Path:
        """The trained adapter as diffusers loads it."""
        return self.path / "lora"


def claim(config: RunConfig, *, resume: bool = False, adapter_bytes: int = 0) -> RunDir:
    """Make `config.run.dir` where it is not there yet and keep others out of it; what is in it stays as it is.

    A directory in which no step was recorded yet counts as new. `adapter_bytes` is the size of the adapter, from
    which that of checkpoints follows. Raises ConfigError when the directory is in use, holds another run, cannot be
    written, or when what the run will write does not fit on its disk.
    """
    path = Path(config.run.dir)
    if path.name == LATEST:
        raise ConfigError(f"run.dir must not be called {LATEST}, the word for the newest run; use another run.name")
    interrupted = _moved(path)
    if resume and not interrupted and not (path / "config.yaml").is_file():
        raise ConfigError(f"run.dir={path} must hold a run to resume, but there is no {path / 'config.yaml'}")
    if not resume and not interrupted:
        _refuse_to_overwrite(path, overwrite=config.run.overwrite)
    make_writable(path, "run.dir")
    lock = take_lock(path, "run.dir", LOCK)
    if interrupted:
        _restore(path)
        if resume:
            raise ConfigError(
                f"run.dir={path} has nothing to resume: a start that was to overwrite the run in it was interrupted "
                "before its first evaluation. The earlier run is back: resume that, or start with run.overwrite=true"
            )
        _refuse_to_overwrite(path, overwrite=config.run.overwrite)
    _check_space(path, config, adapter_bytes)
    return RunDir(path=path, lock=lock)


def begin(folder: RunDir, config: RunConfig, *, resume: bool = False) -> None:
    """Start a run in a claimed directory: set aside what an earlier one left (not with `resume`), and write
    config.yaml and env.json.
    """
    if not resume:
        _restore(folder.path)
        moving = folder.path / _MOVING
        moving.mkdir()
        for name in _CONTENTS:
            if (folder.path / name).exists():
                (folder.path / name).rename(moving / name)
        moving.rename(folder.path / _BEFORE)
    folder.samples.mkdir(exist_ok=True)
    write_atomically(folder.config, dump(config).encode())
    env = folder.path / "env.json"
    write_environments(env, [*(read_environments(env) if resume else []), environment()])


def settle(folder: RunDir) -> None:
    """The run has figures to show: what an earlier one left can go."""
    if (folder.path / _BEFORE).exists():
        (folder.path / _BEFORE).rename(folder.path / _TRASH)
        shutil.rmtree(folder.path / _TRASH)


def release(folder: RunDir) -> None:
    """Let others in; what a run that came to no figure has made goes, and what was there before it comes back."""
    _restore(folder.path)
    if folder.lock is None:
        return
    if [child.name for child in folder.path.iterdir()] == [LOCK]:
        (folder.path / LOCK).unlink()
        folder.path.rmdir()
    folder.lock.close()


def _refuse_to_overwrite(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"run.dir={path} must be a directory, but a file of that name exists; use another run.name")
    contents = {child.name for child in path.iterdir()} if path.exists() else set()
    if not contents - {LOCK, _TRASH}:
        return
    if not contents & {*_CONTENTS, _BEFORE}:
        raise ConfigError(
            f"run.dir={path} must be new or hold a run, but it holds other files ({', '.join(sorted(contents)[:3])}); "
            f"use another run.name or run.dir"
        )
    begun = _has_content(path / "metrics.jsonl") or _has_content(path / "checkpoints")
    if begun and not overwrite:
        raise ConfigError(
            f"run.dir={path} must be new, but it holds a run already. Either continue that run: "
            f"flowrl train --resume {path}; or start anew in its place: run.overwrite=true; "
            f"or write elsewhere: run.name={path.name}-2"
        )


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def _moved(path: Path) -> bool:
    """Whether an earlier run was moved aside, or was about to be, by a start that came to no figure."""
    return any(place.is_dir() and any(place.iterdir()) for place in (path / _BEFORE, path / _MOVING))


def _restore(path: Path) -> None:
    """Undo a start that was not settled; where this is interrupted, the next call goes on with it."""
    before, moving = path / _BEFORE, path / _MOVING
    if before.is_dir():
        _clear(path)
        before.rename(moving)
    if moving.is_dir():
        for child in moving.iterdir():
            child.rename(path / child.name)
        moving.rmdir()
    shutil.rmtree(path / _TRASH, ignore_errors=True)


def _clear(path: Path) -> None:
    for name in _CONTENTS:
        child = path / name
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink(missing_ok=True)


def _check_space(path: Path, config: RunConfig, adapter_bytes: int) -> None:
    """Raise ConfigError when the checkpoints that will be there at a time, the adapter and the logs do not fit.

    What is in the folder already makes room for the new: it is of this run, or of one whose place this run takes.
    """
    steps, every, keep = config.run.steps, config.checkpoint.every, config.checkpoint.keep
    saved = -(-steps // every) if every else min(steps, 1)  # the last step is saved in any case
    at_once = min(saved, keep + 1)  # the oldest goes once a new one is whole
    old = (file for name in ("checkpoints", "lora") for file in (path / name).rglob("*") if file.is_file())
    large = (_COPIES * at_once + 1) * adapter_bytes - sum(file.stat().st_size for file in old)
    needed, free = max(0, large) + _LOGS, shutil.disk_usage(path).free
    if free < needed:
        raise ConfigError(
            f"run.dir={path} needs {size(needed)} of free disk space, for {count(at_once, 'checkpoint')} of "
            f"{size(_COPIES * adapter_bytes)} and what else a run writes; its disk has {size(free)}",
            advice="free some, lower checkpoint.keep, or use another run.dir",
        )
