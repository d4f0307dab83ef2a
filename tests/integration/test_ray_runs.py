"""Runs on Ray: the same numbers as in one process, whatever the number of actors, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flowrl.config import RewardSpec
from flowrl.run import run_training
from flowrl.summary import RewardError
from tests.cheap_rewards import BRIGHT, LATENT
from tests.integration.runs import TinyRun, TinyRuns, same, unequal

pytestmark = pytest.mark.ray

DIT = "dit_reward"


def processes() -> dict[int, str]:
    """The Ray processes on this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "raylet" in command or "gcs_server" in command or command.startswith("ray::"):
            found[int(folder.name)] = command[:80]
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Every process of Ray that a test starts has ended when the test has, and so has its folder gone."""
    before, folders = processes(), set(Path("/tmp").glob("flowrl-*"))
    yield
    assert {pid: command for pid, command in processes().items() if pid not in before} == {}
    assert set(Path("/tmp").glob("flowrl-*")) <= folders


def run_with_reward(runs: TinyRuns, reward: Path, **placement: Any) -> TinyRun:
    """Train on the latent reward, watch a pixel one."""
    changes = {f"placement__{key}": value for key, value in placement.items()}
    train = [RewardSpec(name=DIT, options={"path": str(reward)})]
    return runs.run(rewards__train=train, rewards__watch=[RewardSpec(name=BRIGHT)], **changes)


@pytest.mark.parametrize(
    "placement",
    [
        {"mode": "split", "num_rollouts": 1, "num_scorers": 1, "num_learners": 1},
        {"mode": "split", "num_rollouts": 2, "num_scorers": 2, "num_learners": 1},
    ],
    ids=["split 1+1", "split 2+2 sharded"],
)
def test_a_run_is_the_same_bit_for_bit_wherever_its_actors_are(
    runs: TinyRuns, tiny_reward: Path, placement: dict[str, Any]
) -> None:
    local = run_with_reward(runs, tiny_reward)
    found = run_with_reward(runs, tiny_reward, **placement)
    assert [row["policy/ratio_absdev_max"] for row in found.metrics[1:]] == [0.0] * 5
    assert same(found.adapter, local.adapter)
    assert unequal(found, local) == []
    assert local.metrics[5]["policy/kl"] > 0
    assert local.metrics[1][f"reward/{DIT}/std"] > 1e-3
    assert found.metrics[5]["memory/actors_gib"] > 0


def test_a_fused_run_is_the_same_as_well_and_ends_with_the_error_of_its_reward(runs: TinyRuns, tmp_path: Path) -> None:
    # Six samples of the evaluation and two steps of eight are scored; the third step fails.
    reward = RewardSpec(name=LATENT, options={"nan_after": 6 + 2 * 8})
    common = {"rewards__train": [reward], "rewards__watch": [], "checkpoint__every": 1}
    fused = {"placement__mode": "fused", "placement__num_scorers": 1, "placement__num_learners": 1}
    found = []
    for name, placement in {"local": {}, "fused": fused}.items():
        with pytest.raises(RewardError, match=r"8 of 8 samples have no finite score from .*LatentNorm"):
            run_training(runs.config(tmp_path / name, **common, **placement))
        found.append(TinyRun(folder=tmp_path / name))
    assert [row["step"] for row in found[1].metrics] == [0, 1, 2]
    assert unequal(*found) == []
    for file in ("adapter.safetensors", "ema.safetensors"):
        local, other = (load_file(run.folder / "checkpoints" / "step_000002" / file) for run in found)
        assert same(local, other)
