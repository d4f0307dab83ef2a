"""The kinds of configuration files, told apart by a section that only one kind has.

Each kind is read by its own `load`, found by its dotted path, so that nothing is imported for a kind that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.base.config_file import top_level_keys
from flowrl.base.config_tree import ConfigError
from flowrl.registry import Plugin


@dataclass(frozen=True, kw_only=True)
class ConfigKind:
    """A kind of configuration: the sections that no other kind has, and what reads and checks it.

    Example: ``ConfigKind(name="reward evaluation", sections={"benchmarks"}, target="rewards.evaluation.config:load",
    command="reward eval")``
    """

    name: str
    sections: set[str]
    target: str  # "module:load", called with the path and a list of overrides
    command: str  # what is done with it

    def load(self, path: Path, overrides: list[str]) -> Any:
        """Read a file of this kind; raises ConfigError."""
        return Plugin(name=self.name, target=self.target).load()(path, overrides)


RUN = ConfigKind(
    name="run",
    sections={"rollout", "algorithm", "gate", "placement"},
    target="flowrl.config:load",
    command="train",
)
REWARD_TRAINING = ConfigKind(
    name="reward training",
    sections={"dit_reward", "loss", "export"},
    target="rewards.training.config:load",
    command="reward train",
)
REWARD_EVALUATION = ConfigKind(
    name="reward evaluation",
    sections={"benchmarks"},
    target="rewards.evaluation.config:load",
    command="reward eval",
)
REWARD_PROBE = ConfigKind(
    name="reward probe",
    sections={"head", "layers", "pairs"},
    target="rewards.probe.config:load",
    command="reward probe",
)
EXPERIMENT = ConfigKind(
    name="experiment",
    sections={"arms", "differ", "question"},
    target="flowrl.matrix.experiment:read_experiment",
    command="matrix",
)
KINDS = (EXPERIMENT, REWARD_TRAINING, REWARD_EVALUATION, REWARD_PROBE, RUN)


def kind_of(path: Path) -> ConfigKind:
    """The kind of a file; a run's where it names no section that tells, or cannot be read."""
    named = top_level_keys(path)
    return next((kind for kind in KINDS if named & kind.sections), RUN)


def load_any(path: Path, overrides: list[str]) -> Any:
    """Read and check a configuration file of whatever kind; raises ConfigError."""
    return kind_of(path).load(path, overrides)


def load_as(kind: ConfigKind, path: Path, overrides: list[str]) -> Any:
    """Read and check a configuration of a kind; raises ConfigError, also for one of another kind."""
    found = kind_of(path)
    if found != kind and top_level_keys(path) & found.sections:
        raise ConfigError(f"{path}: is of another kind ({found.name}); start it with flowrl {found.command}")
    return kind.load(path, overrides)
