"""What a run's configuration needs that does not come with flowrl: where it is expected and where it can be had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowrl.base.embedded import POCKET
from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import read_json
from flowrl.config_sections import RewardSpec, RunConfig
from flowrl.fetch.faults import faults_of
from flowrl.fetch.sources import CLIPS, FOLDERS, PROMPTS, REWARDS, Bundle

Kind = Literal["policy", "reward", "base", "prompts"]
_DIT_REWARDS = ("dit_reward", "dit_reward_pixels")


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

    What comes with flowrl ("pocket"), and a path for which no source is known and where something is, is no need.
    """
    found: dict[Path, Need] = {}
    for need in _all(config):
        needed = need.bundle is not None or not need.present
        if needed and need.path not in found:
            found[need.path] = need
    return list(found.values())


def named_paths(config: RunConfig) -> list[Path]:
    """Every path that a configuration names to be read, each once, whether something is there or not."""
    return list(dict.fromkeys(need.path for need in _all(config)))


def _all(config: RunConfig) -> Iterator[Need]:
    if config.model.path != POCKET:
        yield _folder_need("policy", "model.path", config.model.path)
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            yield from _of_reward(spec, f"rewards.{part}[{index}].options", config.model.path)
    for name, value in {"train": config.data.train_prompts, "eval": config.data.eval_prompts}.items():
        if value != POCKET:
            yield _prompts_need(f"data.{name}_prompts", Path(value))


def _of_reward(spec: RewardSpec, key: str, policy: str) -> Iterator[Need]:
    """What a reward's options name: `path`, and the models that it is made from."""
    options: Mapping[str, Any] = spec.options
    path = options.get("path")
    if isinstance(path, str) and path != POCKET:
        yield _reward_need(spec.name, f"{key}.path", Path(path), policy)
    bases = {name: options[name] for name in ("base", "encoders") if isinstance(options.get(name), str)}
    for name, value in bases.items():
        if value not in ("", POCKET):
            yield _folder_need("base", f"{key}.{name}", value)
    if spec.name in _DIT_REWARDS and isinstance(path, str) and not bases:
        base = _base_of(Path(path), always=spec.name == "dit_reward_pixels")
        if base:
            yield _folder_need("base", f"{key}.base (as {Path(path) / 'config.json'} has it)", base)


def _base_of(folder: Path, *, always: bool) -> str:
    """The model that a DiT-Reward's folder names in place of a backbone of its own; empty where it needs none."""
    try:
        settings = read_json(folder / "config.json")
    except CheckpointError:
        return ""  # it is not there yet, which is a need of its own
    base = settings.get("base")
    wanted = always or settings.get("backbone") in ("base", "base and lora")
    return base if wanted and isinstance(base, str) and base != POCKET else ""


def _folder_need(kind: Kind, key: str, value: str) -> Need:
    path = Path(value)
    return _need(kind, key, path, FOLDERS.get(path.name), _unknown("folders", FOLDERS))


def _reward_need(name: str, key: str, path: Path, policy: str) -> Need:
    if name in _DIT_REWARDS:
        return _need("reward", key, path, None, _train_dit_reward(path, policy))
    if name == "clip_score":
        return _need("reward", key, path, CLIPS.get(path.name), _unknown("folders", CLIPS))
    return _need("reward", key, path, REWARDS.get(name), _unknown("the rewards", REWARDS))


def _prompts_need(key: str, path: Path) -> Need:
    return _need("prompts", key, path, PROMPTS.get("/".join(path.parts[-2:])), _unknown("files", PROMPTS))


def _need(kind: Kind, key: str, path: Path, bundle: Bundle | None, advice: str) -> Need:
    faults = tuple(faults_of(path, bundle, is_file=kind == "prompts"))
    return Need(
        kind=kind, key=key, path=path, bundle=bundle, advice="" if bundle is not None else advice, faults=faults
    )


def _unknown(what: str, known: Iterable[str]) -> str:
    return f"flowrl fetch does not know where to get this, so put it there; it knows {what} called {', '.join(known)}"


def _train_dit_reward(path: Path, policy: str) -> str:
    """The command that trains the reward at `path`, on the model that the policy is."""
    model = "medium" if Path(policy).name.endswith("medium") else "large"
    command = f"flowrl reward train configs/reward/sd35-{model}-full.yaml"
    if path.name == "reward":
        command += f" run.dir={path.parent}"  # where it leaves a folder of that name
    return f"no DiT-Reward is public, so train one: {command} (rewards/TRAINING.md says with what data, and how long)"
