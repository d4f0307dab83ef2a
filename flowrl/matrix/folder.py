"""The folder of an experiment: where it is unless it is said, and what tells it from that of a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from flowrl.base.atomic_file import write_atomically
from flowrl.config import ConfigError
from flowrl.matrix.experiment import Experiment, read_experiment
from flowrl.matrix.manifest import CONFIGS, MANIFEST, read_manifest
from flowrl.matrix.progress import begun

EXPERIMENT_FILE = "experiment.yaml"
JUDGED = "judged"  # the folder in it of what a judge said


def is_experiment(folder: Path) -> bool:
    """Whether an experiment was expanded into this folder."""
    return (folder / MANIFEST).is_file() and (folder / CONFIGS).is_dir()


def runs_begun(folder: Path) -> list[Path]:
    """The folders of its runs that have begun, in the order of the manifest.

    They are looked for inside, as the whole may have been moved since the manifest was written. Raises ConfigError when
    there is no manifest.
    """
    places = (folder / element.dir.name for element in read_manifest(folder / MANIFEST))
    return [place for place in places if begun(place)]


def default_folder(file: Path, experiment: Experiment) -> Path:
    """Where the runs of an experiment's file go: runs/NAME-PROFILE; of the file that is kept with runs, beside it."""
    if file.name == EXPERIMENT_FILE and is_experiment(file.parent):
        return file.parent
    return Path("runs") / f"{file.stem}-{experiment.profile}"


def write_experiment(experiment: Experiment, folder: Path) -> Path:
    """Keep the experiment with its runs, all references resolved; expanded again it is the same runs.

    Raises ConfigError where runs have begun there for another question, or with other measures that decide.
    """
    path = folder / EXPERIMENT_FILE
    if path.is_file() and runs_begun(folder):
        _check_same_question(read_experiment(path, []), experiment, path)
    write_atomically(path, yaml.safe_dump(_escaped(asdict(experiment)), sort_keys=False, allow_unicode=True).encode())
    return path


def _check_same_question(before: Experiment, now: Experiment, path: Path) -> None:
    """Raise ConfigError where the answer would be looked for in another way after it may have been seen."""
    pairs = {
        "question": (before.question, now.question),
        "decided_by": (before.decided_by, now.decided_by),
        "differ": (before.differ, now.differ),
    }
    changed = [name for name, (one, other) in pairs.items() if one != other]
    if changed:
        raise ConfigError(
            f"{path}: {', '.join(changed)} may not change once runs have begun there, as what decides is settled "
            "before anything is seen; give --out another folder, or put it back"
        )


def _escaped(node: Any) -> Any:
    """The same, where a reference that is left is none of the experiment's: it is for the run's configuration."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    return node.replace("${", r"\${") if isinstance(node, str) else node
