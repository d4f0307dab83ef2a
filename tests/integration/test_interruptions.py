"""Runs that are stopped, harmed or resumed: the numbers are those of an uninterrupted run, or there is an error."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from flowrl.base import checkpoint
from flowrl.config import ConfigError, RewardSpec
from flowrl.data import PromptOrder
from flowrl.reward_call import RewardCallError
from flowrl.run import run_training
from flowrl.summary import RewardError
from flowrl.types import Prompt
from tests.cheap_rewards import LATENT, LATENT_KEY
from tests.integration.runs import TinyRun, TinyRuns, same, unequal

EVERY = {"eval__every": 3, "checkpoint__every": 1, "checkpoint__keep": 9}


def resumed(runs: TinyRuns, folder: Path, **changes: Any) -> TinyRun:
    assert run_training(runs.config(folder, **{**EVERY, **changes}), resume=True) == 0
    return TinyRun(folder=folder)


@pytest.fixture
def stopped(runs: TinyRuns, tmp_path: Path) -> TinyRun:
    """A copy of a run that ended after three steps."""
    return TinyRun(folder=shutil.copytree(runs.run(run__steps=3, **EVERY).folder, tmp_path / "stopped"))


def assert_equal_runs(found: TinyRun, expected: TinyRun) -> None:
    assert same(found.adapter, expected.adapter)
    assert unequal(found, expected) == []


def test_three_steps_and_two_more_equal_five(runs: TinyRuns, stopped: TinyRun) -> None:
    assert [row["step"] for row in stopped.metrics] == [0, 1, 2, 3]
    assert_equal_runs(resumed(runs, stopped.folder), runs.run(**EVERY))


@pytest.mark.parametrize("weights", ["policy", "ema"])
def test_the_moving_average_goes_on_as_well(runs: TinyRuns, tmp_path: Path, weights: str) -> None:
    part = runs.run(run__steps=3, eval__weights=weights, **EVERY)
    folder = shutil.copytree(part.folder, tmp_path / "copy")
    whole = runs.run(eval__weights=weights, **EVERY)
    assert_equal_runs(resumed(runs, folder, eval__weights=weights), whole)


def test_a_torn_checkpoint_costs_a_step_and_nothing_else(
    runs: TinyRuns, stopped: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = stopped.folder / "checkpoints" / "step_000003" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-10])
    run = resumed(runs, stopped.folder)
    said = capsys.readouterr().out
    assert "checkpoint passed over" in said
    assert "optimizer.pt is not as it was written" in said
    assert_equal_runs(run, runs.run(**EVERY))


def test_where_no_checkpoint_can_be_used_the_run_is_left_as_it_is(runs: TinyRuns, stopped: TinyRun) -> None:
    for adapter in (stopped.folder / "checkpoints").glob("*/adapter.safetensors"):
        adapter.write_bytes(adapter.read_bytes()[:-10])
    before = (stopped.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ConfigError, match=r"no checkpoint can be used: .*adapter\.safetensors is not as it was written"
    ):
        resumed(runs, stopped.folder)
    assert (stopped.folder / "metrics.jsonl").read_bytes() == before


def test_without_any_checkpoint_a_resumed_run_starts_from_the_beginning_and_logs_each_step_once(
    runs: TinyRuns, stopped: TinyRun
) -> None:
    shutil.rmtree(stopped.folder / "checkpoints")
    assert_equal_runs(resumed(runs, stopped.folder), runs.run(**EVERY))


def test_resuming_what_has_ended_changes_nothing(runs: TinyRuns, stopped: TinyRun) -> None:
    before, numbers = stopped.adapter, stopped.numbers
    run = resumed(runs, stopped.folder, run__steps=3)
    assert same(run.adapter, before)
    assert run.numbers == numbers


def test_a_resumed_run_keeps_its_number_of_learners_whatever_its_mode(runs: TinyRuns, tmp_path: Path) -> None:
    # Sums in another order are other numbers. One process has one learner, the default on Ray two.
    folder = tmp_path / "run"
    assert run_training(runs.config(folder, run__steps=1, rollout__prompts_per_step=4)) == 0
    for mode in ("split", "fused"):
        changes = {"rollout__prompts_per_step": 4, "placement__mode": mode}
        with pytest.raises(ConfigError, match=r"keeps its number of learners, 1, because .*, got 2"):
            run_training(runs.config(folder, **changes), resume=True)


def test_resuming_where_there_is_no_run_is_an_error(runs: TinyRuns, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must hold a run to resume"):
        run_training(runs.config(tmp_path / "absent"), resume=True)


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_the_run_after_the_step_at_hand_and_it_can_go_on(
    runs: TinyRuns,
    tmp_path: Path,
    signal_name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take = PromptOrder.take

    def take_and_send(order: PromptOrder, step: int) -> list[Prompt]:
        if step == 2:
            os.kill(os.getpid(), signal.Signals[signal_name])
        return take(order, step)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(PromptOrder, "take", take_and_send)
        assert run_training(runs.config(folder, **EVERY)) == 0
    assert f"{signal_name}: stopped after step 2; continue with --resume {folder}" in capsys.readouterr().out
    assert [row["step"] for row in TinyRun(folder=folder).metrics] == [0, 1, 2]
    assert_equal_runs(resumed(runs, folder), runs.run(**EVERY))


def test_a_reward_that_fails_on_too_many_samples_stops_the_run_before_they_are_trained_on(
    runs: TinyRuns, tmp_path: Path
) -> None:
    reward = RewardSpec(name=LATENT, options={"nan_every": 3})
    config = runs.config(tmp_path / "run", rewards__train=[reward])
    with pytest.raises(RewardError, match=r"4 of 8 samples have no finite score from .*LatentNorm"):
        run_training(config)
    run = TinyRun(folder=tmp_path / "run")
    assert [row["step"] for row in run.metrics] == [0]
    assert run.metrics[0][f"eval/{LATENT_KEY}/invalid"] == 0.5
    assert checkpoint.newest(run.folder / "checkpoints") == (None, [])


def test_failures_that_are_allowed_are_masked_and_counted(runs: TinyRuns) -> None:
    reward = RewardSpec(name=LATENT, options={"nan_every": 3})
    run = runs.run(rewards__train=[reward], rewards__max_invalid_fraction=0.5, run__steps=2, eval__every=0)
    for row in run.metrics[1:]:
        assert row[f"reward/{LATENT_KEY}/invalid"] == 0.5
        assert row["policy/grad_norm"] > 0
    assert all(tensor.isfinite().all() for tensor in run.adapter.values())


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        (LATENT, {"latent_space": "another"}, ConfigError, "reads latents of another, but the policy makes latents of"),
        ("tests.cheap_rewards:Broken", {}, RewardCallError, "fails on a batch of .*: the judge has left the room"),
        ("tests.cheap_rewards:Absent", {}, ConfigError, "has no 'Absent'"),
    ],
)
def test_a_reward_that_cannot_work_ends_the_run_with_its_error(
    runs: TinyRuns, tmp_path: Path, name: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    config = runs.config(tmp_path / "run", rewards__train=[RewardSpec(name=name, options=options)], rewards__watch=[])
    with pytest.raises(error, match=says):
        run_training(config)


def test_a_learning_rate_that_explodes_is_stopped_by_a_gate_and_not_trained_on(runs: TinyRuns, tmp_path: Path) -> None:
    from flowrl.actors.learner import TrainingError

    with pytest.raises((TrainingError, RewardError)):
        run_training(runs.config(tmp_path / "run", optim__lr=1e30, run__steps=3))
    for row in TinyRun(folder=tmp_path / "run").metrics[1:]:
        assert row["policy/ratio_absdev_max"] == 0.0
