"""Plug-ins by name: built in, by entry point, by path; and what is said when there is none."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from flowrl import registry
from flowrl.config import ConfigError

EVERY = [(kind, name) for kind, table in registry.BUILT_IN.items() for name in table]


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed package that offers two rewards, one under a name that is taken."""
    (tmp_path / "some_package.py").write_text(
        "class Sharpness:\n    pass\n\nclass _Hidden:\n    pass\n", encoding="utf-8"
    )
    (tmp_path / "broken_package.py").write_text("import not_installed_anywhere\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entries = [
        EntryPoint(name="sharpness", value="some_package:Sharpness", group="flowrl.rewards"),
        EntryPoint(name="oracle", value="some_package:Sharpness", group="flowrl.rewards"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "flowrl.rewards" else [])


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_what_is_built_in_can_be_imported(kind: registry.Kind, name: str) -> None:
    factory, options = registry.resolve(kind, name)
    assert callable(factory) or isinstance(factory, type)
    assert factory.__name__ == registry.find(kind, name).target.partition(":")[2]
    assert isinstance(options, dict)


def test_a_name_can_stand_for_options() -> None:
    factory, options = registry.resolve("reward", "oracle_cleanliness")
    assert options == {"part": "cleanliness"}
    assert factory(**options).name == "oracle_cleanliness"
    options["part"] = "shape"
    assert registry.resolve("reward", "oracle_cleanliness")[1] == {"part": "cleanliness"}


@pytest.mark.usefixtures("offered")
def test_entry_points_are_found_and_built_in_names_win() -> None:
    factory, options = registry.resolve("reward", "sharpness")
    assert (factory.__name__, options) == ("Sharpness", {})
    assert registry.find("reward", "oracle").target == "flowrl.pocket.oracle_reward:OracleReward"


@pytest.mark.usefixtures("offered")
def test_a_path_names_a_class() -> None:
    assert registry.resolve("reward", "some_package:Sharpness")[0].__name__ == "Sharpness"


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dit_rewrad", "reward: unknown reward 'dit_rewrad'; did you mean 'dit_reward'?; "),
        ("sharpnes", "reward: unknown reward 'sharpnes'; did you mean 'sharpness'?; "),
        ("beauty", "reward: unknown reward 'beauty'; valid: dit_reward, hpsv3, oracle, "),
        ("some_package.Sharpness", "a class of your own is named by its path, package.module:Class"),
    ],
)
def test_unknown_names(name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.find("reward", name)
    assert expected in str(caught.value)


def test_the_error_begins_with_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^rewards.train\[0\].name: unknown reward 'x'"):
        registry.find("reward", "x", key="rewards.train[0].name")


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such_package:Reward", "'no_such_package:Reward': no_such_package cannot be imported: No module named"),
        ("broken_package:Reward", "broken_package cannot be imported: No module named 'not_installed_anywhere'"),
        ("some_package:Sharpnes", "some_package has no 'Sharpnes'; did you mean 'Sharpness'?"),
    ],
)
def test_plugins_that_are_not_there(name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.resolve("reward", name)
    assert expected in str(caught.value)
