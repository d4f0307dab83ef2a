"""Fixtures of whole runs: a tiny policy, prompt files, and configurations on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import tiny
from tests.integration.runs import TinyRuns
from tests.sd3_fixture import sd3_folder

__all__ = ["runs", "sd3_folder", "tiny_reward"]

# Actors import the rewards of the tests by dotted path, wherever they were started.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
)


@pytest.fixture(scope="session")
def tiny_reward(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiT-Reward folder of random weights. Read it only."""
    return tiny.write_reward(tmp_path_factory.mktemp("tiny-reward"), sd3_folder)


@pytest.fixture(scope="session")
def runs(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Runs on the tiny policy; equal ones are done once."""
    return TinyRuns(sd3_folder, tmp_path_factory.mktemp("runs"))
