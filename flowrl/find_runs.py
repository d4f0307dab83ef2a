"""Finds runs and experiments for the command line: by path, by name under runs/, or the latest."""

from __future__ import annotations

import difflib
from pathlib import Path

from flowrl.config import ConfigError, load
from flowrl.config_kinds import EXPERIMENT, kind_of
from flowrl.matrix.experiment import read_experiment
from flowrl.matrix.folder import default_folder, is_experiment
from flowrl.matrix.manifest import MANIFEST
from flowrl.run_dir import LATEST

RUNS = Path("runs")


def run_dir(text: str) -> Path:
    """The folder of a run, given as a path or as its name under runs/; "latest" and runs/latest are the newest."""
    if Path(text) in (Path(LATEST), RUNS / LATEST) and not Path(text).exists():
        return latest_run()
    for path in (Path(text), RUNS / text):
        if (path / "config.yaml").is_file():
            return path.parent / path.resolve().name if path.is_symlink() else path
    close = difflib.get_close_matches(Path(text).name, [run.name for run in _by_age()], n=1)
    hint = f"; did you mean {RUNS / close[0]}?" if close else ""
    raise ConfigError(f"{text}: not a run: there is no config.yaml in it{hint}")


def experiment_dir(text: str) -> Path | None:
    """The folder of an experiment, given as a path, as its name under runs/, by its manifest or by its YAML file.

    None where it is none of these; raises ConfigError when the experiment of the file was never expanded.
    """
    path = Path(text)
    for folder in (path.parent,) if path.name == MANIFEST else (path, RUNS / text):
        if is_experiment(folder):
            return folder
    if path.suffix not in (".yaml", ".yml") or not path.is_file() or kind_of(path) != EXPERIMENT:
        return None
    folder = default_folder(path, read_experiment(path, []))
    if not is_experiment(folder):
        raise ConfigError(
            f"{path}: has not been run: there is no {folder / MANIFEST}; run it with flowrl matrix {path} --run, or "
            "name the folder that it went to by --out or --profile"
        )
    return folder


def config_file(text: str) -> Path:
    """The file of a config, or the one that a run has saved."""
    path = Path(text)
    if path.is_dir() and not (path / "config.yaml").is_file():
        inside = ", ".join(map(str, sorted(path.rglob("*.yaml"))[:3])) or "no .yaml file"
        raise ConfigError(f"{text}: a folder, neither a config nor a run; in it: {inside}")
    return path if path.is_file() or path.suffix in (".yaml", ".yml") else run_dir(text) / "config.yaml"


def latest_run() -> Path:
    """The run under runs/ that was started last."""
    runs = _by_age()
    if not runs:
        raise ConfigError(f"{RUNS}/: no run here; make one with flowrl train configs/pocket/ditreward.yaml")
    return runs[0]


def latest_training_run(*, unlike: Path | None = None) -> Path:
    """The run under runs/ that was started last and trained; on another reward than the run `unlike`, if given."""
    other = _trained_on(unlike) if unlike else ()
    for run in _by_age():
        if _trained_on(run) not in ((), other):
            return run
    what = f"that trained on another reward than {unlike}" if unlike else "that trained"
    raise ConfigError(f"{RUNS}/: no run {what}; make rl-ditreward and make rl-hpsv3 make two to compare")


def _by_age() -> list[Path]:
    """All runs that got as far as a figure, the latest first; config.yaml is as old as the last start or resume."""
    files = [file for file in RUNS.glob("*/config.yaml") if not file.parent.is_symlink() and _has_figures(file.parent)]
    return [file.parent for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file), reverse=True)]


def _has_figures(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def _trained_on(run: Path) -> tuple[str, ...]:
    """The rewards a run was trained on; none for an evaluation, or where this version cannot read the config."""
    try:
        config = load(run / "config.yaml")
    except ConfigError:
        return ()
    return tuple(spec.name for spec in config.rewards.train) if config.run.steps else ()
