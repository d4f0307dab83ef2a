"""Every configuration that is shipped loads, says in its header what it needs, and differs from the defaults."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from flowrl.base.config_tree import ConfigError
from flowrl.config import RunConfig, diff, load
from flowrl.config_kinds import KINDS, RUN, kind_of, load_any
from flowrl.registry import Plugin
from flowrl.seating import seating

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
RUNS = [path for path in CONFIGS if kind_of(path) is RUN]


def test_there_are_configs() -> None:
    assert {"ditreward.yaml", "hpsv3.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config(path: Path) -> None:
    load_any(path, [])
    header = "".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    assert "Hardware:" in header, f"{path}: the header must say what hardware it is for"
    if kind_of(path) is RUN or path.parent.name == "reward":
        assert "Time" in header, f"{path}: the header must say how long it takes"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_run_is_named_after_its_config(path: Path) -> None:
    assert load(path).run.name.startswith(path.stem)


def test_kinds_of_configs_are_told_apart_by_sections_of_their_own() -> None:
    sections = {}
    for kind in KINDS:
        schema = get_type_hints(Plugin(name=kind.name, target=kind.target).load())["return"]
        sections[kind.name] = {field.name for field in fields(schema)}
    for kind in KINDS:
        others = set().union(*(keys for name, keys in sections.items() if name != kind.name))
        assert kind.sections <= sections[kind.name] - others


def test_what_tells_no_kind_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "neither.yaml").write_text("run: {stepz: 3}\n", encoding="utf-8")
    assert kind_of(tmp_path / "neither.yaml") is kind_of(tmp_path / "missing.yaml") is RUN
    (tmp_path / "reward.yaml").write_text("loss: {kind: bradley}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"loss\.kind.*bradley_terry"):
        load_any(tmp_path / "reward.yaml", [])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_holds_only_what_differs_from_the_defaults(path: Path, tmp_path: Path) -> None:
    bare = tmp_path / path.name
    bare.write_text("rewards: {train: [{name: oracle}]}\n", encoding="utf-8")
    different = diff(load(bare, ["run.name=same"]), load(path, ["run.name=same"]))
    written = [
        f"{section}.{key}" for section, keys in yaml.safe_load(path.read_text(encoding="utf-8")).items() for key in keys
    ]
    assert sorted(written) == sorted(different)


PROFILES = [path.name for path in sorted((ROOT / "configs").glob("sd35-*"))]


def arm_of(profile: str, arm: str) -> RunConfig:
    return load(ROOT / "configs" / profile / f"{arm}.yaml", ["run.name=same"])


@pytest.mark.parametrize("profile", PROFILES)
def test_the_two_runs_of_a_profile_differ_in_the_reward_alone(profile: str) -> None:
    assert set(diff(arm_of(profile, "ditreward"), arm_of(profile, "hpsv3"))) == {"rewards.train"}


def test_profiles_of_a_model_differ_in_where_it_runs_alone() -> None:
    assert PROFILES == [f"sd35-{model}{size}" for model in ("large", "medium") for size in ("", "-1gpu", "-8gpu")]
    devices = {"": 16, "-1gpu": 1, "-8gpu": 8}
    for profile in PROFILES:
        family, size = (profile.removesuffix(one), one) if (one := profile[-5:]) in devices else (profile, "")
        config = arm_of(profile, "ditreward")
        assert len(seating(config.placement).shares) == devices[size]
        changed = diff(arm_of(family, "ditreward"), config)
        assert {key for key in changed if not key.startswith("placement.")} <= {"rollout.samples_per_forward"}
    models = set(diff(arm_of("sd35-large", "hpsv3"), arm_of("sd35-medium", "hpsv3")))
    assert models == {"model.path", "rollout.samples_per_forward"}


def test_the_two_pocket_runs_differ_in_the_reward_alone() -> None:
    arms = [load(ROOT / "configs" / "pocket" / f"{arm}.yaml", ["run.name=same"]) for arm in ("ditreward", "hpsv3")]
    assert set(diff(*arms)) == {"rewards.train", "rewards.watch"}
    trained = [[spec.name for spec in arm.rewards.train] for arm in arms]
    assert trained == [["dit_reward"], ["hpsv3"]]
    # Each arm watches what the other trains on, and both the oracle.
    assert [arm.rewards.watch[0].name for arm in arms] == ["hpsv3", "dit_reward"]
    assert arms[0].rewards.watch[1:] == arms[1].rewards.watch[1:]
    assert [spec.name for spec in arms[0].rewards.watch[1:]] == [
        "oracle",
        "oracle_attributes",
        "oracle_relation",
        "oracle_shape",
        "oracle_cleanliness",
    ]
