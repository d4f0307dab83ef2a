"""Every configuration that is shipped loads, says in its header what it needs, and differs from the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flowrl.config import diff, load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))


def test_there_are_configs() -> None:
    assert {"ditreward.yaml", "hpsv3.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config(path: Path) -> None:
    config = load(path)
    assert config.run.name.startswith(path.stem)
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("Hardware:" in line for line in header), f"{path}: the header must say what hardware it is for"
    assert any("Time" in line for line in header), f"{path}: the header must say how long it takes"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_holds_only_what_differs_from_the_defaults(path: Path, tmp_path: Path) -> None:
    bare = tmp_path / path.name
    bare.write_text("rewards: {train: [{name: oracle}]}\n", encoding="utf-8")
    different = diff(load(bare, ["run.name=same"]), load(path, ["run.name=same"]))
    written = [
        f"{section}.{key}" for section, keys in yaml.safe_load(path.read_text(encoding="utf-8")).items() for key in keys
    ]
    assert sorted(written) == sorted(different)


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
