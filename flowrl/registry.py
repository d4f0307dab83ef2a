"""Plug-ins by name: built-in ones, those that installed packages offer, and any `package.module:Attribute`.

A package offers a reward with an entry point, in its pyproject.toml::

    [project.entry-points."flowrl.rewards"]
    my_reward = "my_package.rewards:MyReward"

Nothing is imported to find a name, so a misspelt one is an error before torch is loaded.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Literal

from flowrl.base.config_tree import ConfigError, did_you_mean

Kind = Literal["reward", "policy", "algorithm"]


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """Where a plug-in is found, and the options that its name stands for.

    Example: ``Plugin(name="oracle", target="flowrl.pocket.oracle_reward:OracleReward", options={"part": "total"})``
    """

    name: str
    target: str  # "module:Attribute"
    options: Mapping[str, Any] = field(default_factory=dict)  # defaults below the options of a configuration

    def load(self) -> Any:
        """Import the plug-in and return the class or function; raises ConfigError when it is not there."""
        module_name, _, attribute = self.target.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise ConfigError(f"{self.name!r}: {module_name} cannot be imported: {error}") from error
        try:
            return getattr(module, attribute)  # not vars(): a module may make its names when they are asked for
        except AttributeError:
            public = [name for name in dir(module) if not name.startswith("_")]
            raise ConfigError(
                f"{self.name!r}: {module_name} has no {attribute!r}; {did_you_mean(attribute, public)}"
            ) from None


def _table(*plugins: Plugin) -> dict[str, Plugin]:
    return {plugin.name: plugin for plugin in plugins}


def _oracle(name: str, part: str) -> Plugin:
    return Plugin(name=name, target="flowrl.pocket.oracle_reward:OracleReward", options={"part": part})


BUILT_IN: dict[Kind, dict[str, Plugin]] = {
    "reward": _table(
        Plugin(name="dit_reward", target="rewards.dit_reward:DiTReward"),
        Plugin(name="hpsv3", target="rewards.hpsv3:HPSv3Reward"),
        _oracle("oracle", "total"),
        _oracle("oracle_attributes", "attributes"),
        _oracle("oracle_relation", "relation"),
        _oracle("oracle_shape", "shape"),
        _oracle("oracle_cleanliness", "cleanliness"),
        Plugin(name="dina_lrm", target="rewards.dina_lrm:DiNaLRM"),
        Plugin(name="dit_reward_pixels", target="rewards.dit_reward.pixels:DiTRewardPixels"),
        Plugin(name="hpsv2", target="rewards.hpsv2:HPSv2Reward", options={"version": "2.0"}),
        Plugin(name="hpsv2_1", target="rewards.hpsv2:HPSv2Reward", options={"version": "2.1"}),
        Plugin(name="pick_score", target="rewards.pick_score:PickScoreReward"),
        Plugin(name="clip_score", target="rewards.clip_score:CLIPScoreReward"),
        Plugin(name="aesthetic", target="rewards.aesthetic:AestheticReward"),
        Plugin(name="image_reward", target="rewards.image_reward:ImageReward"),
        Plugin(name="http", target="rewards.http:HTTPReward"),
    ),
    "policy": _table(Plugin(name="sd3", target="flowrl.models.sd3:SD3")),
    "algorithm": _table(Plugin(name="flow_grpo", target="flowrl.algorithms.flow_grpo:FlowGRPO")),
}
ENTRY_POINTS: dict[Kind, str] = {"reward": "flowrl.rewards"}
_DOTTED_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def find(kind: Kind, name: str, *, key: str = "") -> Plugin:
    """The plug-in of a name, not yet imported; raises ConfigError, which begins with `key`, when there is none.

    A built-in name wins over an entry point of the same name, so that a configuration means the same everywhere.
    """
    if name in BUILT_IN[kind]:
        return BUILT_IN[kind][name]
    offered = {one.name: one.value for one in entry_points(group=ENTRY_POINTS[kind])} if kind in ENTRY_POINTS else {}
    if name in offered:
        return Plugin(name=name, target=offered[name])
    if _DOTTED_PATH.fullmatch(name):
        return Plugin(name=name, target=name)
    valid = [*BUILT_IN[kind], *sorted(offered)]
    raise ConfigError(
        f"{key or kind}: unknown {kind} {name!r}; {did_you_mean(name, valid)}; "
        "a class of your own is named by its path, package.module:Class"
    )


def resolve(kind: Kind, name: str) -> tuple[Any, dict[str, Any]]:
    """The imported class or function of a name, and the options that the name stands for."""
    plugin = find(kind, name)
    return plugin.load(), dict(plugin.options)


def part_of(name: str, measures: Sequence[str]) -> str | None:
    """The measure that `name` is a part of: oracle for oracle_shape, where both were measured and are one reward."""
    known = BUILT_IN["reward"]
    wholes = [whole for whole in measures if name.startswith(f"{whole}_") and {whole, name} <= known.keys()]
    return next((whole for whole in wholes if known[whole].target == known[name].target), None)
