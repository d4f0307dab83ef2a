"""The memory that all ranks of a role hold together while they load: no host ever holds a second copy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import gang
from tests import loaded_roles as roles
from tests.large_folder import Sizes, size_of, write, write_dit_reward, write_hpsv3

pytestmark = pytest.mark.slow
ROLES = ("policy", "decoder", "encoder", "dit_reward gang", "dit_reward replicas", "hpsv3 gang", "hpsv3 replicas")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """One of each kind: SD3.5's layout, its transformer in shards with an index, and two rewards."""

    pipeline: Path
    dit_reward: Path
    hpsv3: Path

    def load(self, role: str, small: Folders) -> tuple[Callable[[int], Any], int]:
        """What a rank of a role does, a scorer beside the decoder of a small folder; and the bytes of one copy."""
        kind, _, spread = role.partition(" ")
        if kind in ("policy", "decoder", "encoder"):
            part = {"policy": "transformer", "decoder": "vae", "encoder": "text_encoder_3"}[kind]
            work: Callable[[Path, int], Any] = getattr(roles, kind)
            return partial(work, self.pipeline), size_of(self.pipeline / part)
        reward: Path = getattr(self, kind)
        copy = size_of(reward) + (size_of(self.pipeline / "transformer") if kind == "dit_reward" else 0)
        return partial(roles.scorer, small.pipeline, kind, reward, spread == "gang"), copy


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return _write(tmp_path_factory.mktemp("large"), Sizes())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """For a rehearsal, after which a process has imported all that it needs."""
    sizes = Sizes(heads=1, layers=2, channels=8, text_layers=1, language_width=128, language_layers=1)
    return _write(tmp_path_factory.mktemp("small"), sizes)


def _write(folder: Path, sizes: Sizes) -> Folders:
    pipeline = write(folder / "pipeline", sizes)
    return Folders(
        pipeline=pipeline,
        dit_reward=write_dit_reward(folder / "dit-reward", pipeline),
        hpsv3=write_hpsv3(folder / "hpsv3", sizes),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("role", ROLES)
def test_all_ranks_together_hold_little_more_than_one_copy(
    large: Folders, small: Folders, role: str, world: int
) -> None:
    assert len(list((large.pipeline / "transformer").glob("*.safetensors"))) > 5
    work, copy = large.load(role, small)
    rehearse, _ = small.load(role, small)
    peak = gang.measure(world, rehearse, work)
    print(f"{role}, {world} ranks: {peak.together / copy:.3f} copies of {copy / 2**20:.0f} MiB")  # noqa: T201
    assert 0.9 < peak.together / copy < 1.3
    if "gang" not in role:  # what is not of the files, each rank has for itself
        assert peak.anonymous / copy < 0.1 * world
