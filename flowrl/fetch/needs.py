"""What a run's configuration needs that does not come with flowrl: where it is expected and where it can be had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowrl.base.embedded import POCKET
from flowrl.config_sections import RunConfig
from flowrl.fetch.faults import faults_of
from flowrl.fetch.sources import FOLDERS, PROMPTS, REWARDS, Bundle
from flowrl.reward_loading import files_of
from flowrl.reward_protocols import NeededFiles

Kind = Literal["policy", "reward", "base", "prompts"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """A folder or a file of prompts that a configuration names and that does not come with flowrl.

    Example: ``needs(load("configs/sd35-large/hpsv3.yaml"))[0].key`` is "model.path"
    """

    kind: Kind  # "base": a model that a reward is made from, or whose encoders it uses
    key: str  # in the configuration, such as rewards.train[0].options.path
    path: Path  # of a folder, or for prompts of a file
    bundle: Bundle | None  # what `flowrl fetch` would put there; None where it knows no public source
    advice: str  # what to do where it knows none; empty where it knows one
    faults: tuple[str, ...]  # what is missing or cut off there, weights judged by their headers; empty: nothing is

    @property
    def present(self) -> bool:
        """Whether it is there and nothing is seen to be missing; no checksum is made for this."""
        return not self.faults

    @property
    def gated(self) -> bool:
        """Whether a person must accept a licence before it can be downloaded."""
        return self.bundle is not None and bool(self.bundle.gates)

    @property
    def source(self) -> str:
        """Where it can be had, such as huggingface.co/MizzenAI/HPSv3; empty where nothing is known."""
        return "" if self.bundle is None else " and ".join(part.label for part in self.bundle.parts)


def needs(config: RunConfig) -> list[Need]:
    """What a configuration needs, each path once: policy, rewards with what they are made from, prompts.

    What comes with flowrl ("pocket"), and a path for which no source is known and where something is, is no need. What
    a reward reads its class says, which is imported for it. Raises ConfigError when a reward's options do not fit.
    """
    found: dict[Path, Need] = {}
    for need in _all(config):
        needed = need.bundle is not None or not need.present
        if needed and need.path not in found:
            found[need.path] = need
    return list(found.values())


def named_paths(config: RunConfig) -> list[Path]:
    """Every path that a configuration names to be read, each once, whether something is there or not.

    Raises what `needs` raises.
    """
    return list(dict.fromkeys(need.path for need in _all(config)))


def _all(config: RunConfig) -> Iterator[Need]:
    if config.model.path != POCKET:
        policy = Path(config.model.path)
        yield _need("policy", "model.path", policy, FOLDERS.get(policy.name), _named("folders", FOLDERS))
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            for files in files_of(spec, Path(config.model.path).name):
                yield _files_need(spec.name, f"rewards.{part}[{index}].options.{files.option}", files)
    for name, value in {"train": config.data.train_prompts, "eval": config.data.eval_prompts}.items():
        if value != POCKET:
            path = Path(value)
            bundle = PROMPTS.get("/".join(path.parts[-2:]))
            yield _need("prompts", f"data.{name}_prompts", path, bundle, _named("files", PROMPTS))


def _files_need(reward: str, key: str, files: NeededFiles) -> Need:
    """What a reward, by its name, says that it reads."""
    path, advice = files.path, files.advice
    if files.said_in:
        key += f" (as {files.said_in} has it)"
    if files.kind == "base":
        return _need("base", key, path, FOLDERS.get(path.name), advice or _named("folders", FOLDERS))
    bundle = REWARDS.get(reward)
    if bundle is not None and bundle.folder not in ("", path.name):
        return _need("reward", key, path, None, advice or _named("a folder", [bundle.folder]))
    unknown = f"flowrl fetch does not know where to get {reward}, so put it there; it knows {', '.join(REWARDS)}"
    return _need("reward", key, path, bundle, advice or unknown)


def _need(kind: Kind, key: str, path: Path, bundle: Bundle | None, advice: str) -> Need:
    """`advice` is for where there is no bundle."""
    faults = tuple(faults_of(path, bundle, is_file=kind == "prompts"))
    return Need(
        kind=kind, key=key, path=path, bundle=bundle, advice="" if bundle is not None else advice, faults=faults
    )


def _named(what: str, known: Iterable[str]) -> str:
    """What to do where a path ends in none of these, by which a source is known."""
    return f"flowrl fetch knows where to get {what} called {', '.join(known)}; call it so, or put yours there"
