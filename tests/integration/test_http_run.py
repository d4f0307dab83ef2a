"""Runs whose reward is behind HTTP: the same numbers as without, and what happens when the server goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flowrl.config import RewardSpec
from flowrl.run import run_training
from flowrl.types import RewardInput
from rewards.http import RewardServerError
from rewards.http.server import RewardServer
from tests.cheap_rewards import BRIGHT, LATENT, LatentNorm
from tests.integration.runs import TinyRun, TinyRuns, same


class StopsItself(LatentNorm):
    """Takes its server away after so many samples."""

    server: RewardServer
    last = 10**9

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        scores = super().__call__(batch)
        if self.scored > self.last:
            self.server.shutdown()
            self.server.socket.close()
        return scores


@pytest.fixture
def reward() -> Iterator[StopsItself]:
    reward = StopsItself()
    reward.server = RewardServer(reward)
    thread = threading.Thread(target=reward.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield reward
    reward.server.shutdown()
    reward.server.close()
    thread.join()


def spec(server: RewardServer) -> RewardSpec:
    return RewardSpec(name="http", label="LatentNorm", options={"url": server.url, "retries": 1})


def test_a_run_on_a_served_reward_is_the_run_on_the_reward_itself(
    runs: TinyRuns, tmp_path: Path, reward: StopsItself
) -> None:
    changes = {"rewards__train": [RewardSpec(name=LATENT)], "rewards__watch": [RewardSpec(name=BRIGHT)]}
    direct = runs.run(run__steps=2, eval__every=2, **changes)
    changes |= {"rewards__train": [spec(reward.server)]}
    assert run_training(runs.config(tmp_path / "served", run__steps=2, eval__every=2, **changes)) == 0
    served = TinyRun(folder=tmp_path / "served")
    assert same(served.adapter, direct.adapter)
    assert served.numbers == direct.numbers


def test_a_server_that_goes_stops_the_run_with_an_error_that_names_it(
    runs: TinyRuns, tmp_path: Path, reward: StopsItself
) -> None:
    reward.last = 6 + 2 * 8  # the evaluation before the first step, and two steps
    config = runs.config(tmp_path / "run", rewards__train=[spec(reward.server)], checkpoint__every=1)
    with pytest.raises(RewardServerError, match=rf"{reward.server.url}: POST /score failed, tried 2 times .* refused"):
        run_training(config)
    assert [row["step"] for row in TinyRun(folder=tmp_path / "run").metrics] == [0, 1, 2]
    assert (tmp_path / "run" / "checkpoints" / "step_000002").is_dir()


def test_a_server_that_is_not_there_is_an_error_before_anything_starts(
    runs: TinyRuns, tmp_path: Path, reward: StopsItself
) -> None:
    reward.server.shutdown()
    reward.server.server_close()
    config = runs.config(tmp_path / "run", rewards__train=[spec(reward.server)])
    with pytest.raises(RewardServerError, match=r"GET /reward failed, tried 2 times"):
        run_training(config)
    assert not (tmp_path / "run").exists()


def test_a_served_reward_of_another_latent_space_is_refused_before_anything_starts(
    runs: TinyRuns, tmp_path: Path, reward: StopsItself
) -> None:
    reward.latent_space = "vae4x8"
    config = runs.config(tmp_path / "run", rewards__train=[spec(reward.server)])
    with pytest.raises(ValueError, match="'http' reads latents of vae4x8, but the policy makes latents of vae16x8"):
        run_training(config)
    assert not (tmp_path / "run").exists()
