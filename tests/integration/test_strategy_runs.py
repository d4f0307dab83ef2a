"""Runs on Ray whose learners share the model: stopped, resumed and exported like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl.config import LearnerStrategy
from flowrl.run import run_training
from tests.integration.runs import TinyRun, TinyRuns, difference, same

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("strategy", ["fsdp2", "zero2", "zero3"])
def test_learners_that_were_stopped_go_on_as_if_they_had_not_been(
    runs: TinyRuns, tmp_path: Path, strategy: LearnerStrategy
) -> None:
    changes = {"run__steps": 3, "rollout__prompts_per_step": 4, "checkpoint__every": 2}
    local = runs.run(**changes)
    shared = {**changes, "placement__mode": "split", "placement__num_rollouts": 1, "placement__num_scorers": 1}
    shared |= {"placement__num_learners": 2, "placement__learner_strategy": strategy}
    whole = runs.run(**shared)
    folder = tmp_path / strategy
    assert run_training(runs.config(folder, **{**shared, "run__steps": 2})) == 0
    assert run_training(runs.config(folder, **shared), resume=True) == 0
    stopped = TinyRun(folder=folder)
    assert same(stopped.adapter, whole.adapter)
    assert [row["policy/ratio_absdev_max"] for row in stopped.metrics[1:]] == [0.0] * 3
    assert stopped.numbers[3]["policy/grad_norm"] == whole.numbers[3]["policy/grad_norm"]
    moved = max(tensor.abs().max().item() for name, tensor in local.adapter.items() if ".lora_B." in name)
    assert difference(whole.adapter, local.adapter) < 1e-3 * moved
