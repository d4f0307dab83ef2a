"""What gangs of scorers read and hold, and what they say when something is amiss: all of them, and at once."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from flowrl.base.errors import CheckpointError
from flowrl.models.sd3 import SD3
from rewards.dit_reward.model import DiTRewardConfig
from rewards.dit_reward.training import DiTRewardTraining, new_model
from tests import gang, loaded_roles, tiny
from tests.large_folder import Sizes, write_hpsv3


@pytest.fixture(scope="module")
def group(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a group of five samples."""
    sampled = tiny.trajectory(tiny.policy(sd3_folder), num_samples=5)
    [condition] = tiny.conditions(sd3_folder, tiny.TEXTS[0])
    path = tmp_path_factory.mktemp("group") / "group.pt"
    torch.save(tiny.with_condition(sampled, condition), path)
    return path


@pytest.fixture(scope="module")
def in_shards(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiT-Reward whose backbone lies in several files with an index."""
    folder = tiny.write_reward(tmp_path_factory.mktemp("in-shards"), sd3_folder, shard_size="50KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 3
    return folder


@pytest.fixture(scope="module")
def with_lora(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiT-Reward that holds a LoRA, and no backbone but the policy's."""
    config = DiTRewardConfig(
        text_length=28, layers=(0, 1), head_dims=(8,), latent_space=SD3.latent_space(sd3_folder), base=str(sd3_folder)
    )
    model = new_model(sd3_folder / "transformer", config, pretrained=True, seed=0)
    made = DiTRewardTraining(model, "lora", lora_rank=4, seed=0)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    folder = tmp_path_factory.mktemp("with-lora")
    made.save(folder, model.state_dict(), dtype=torch.float32, notes="", whole=False)
    return folder


@pytest.fixture(scope="module")
def hpsv3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HPSv3 with a float32 head on a network in half precision."""
    return write_hpsv3(tmp_path_factory.mktemp("hpsv3"), Sizes(language_width=128, language_layers=2))


def without_weights(folder: Path, to: Path) -> Path:
    """A copy that has all but the weights."""
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_first_rank_alone_reads_weights_each_holds_its_share_and_scores_are_those_of_one(
    sd3_folder: Path, in_shards: Path, with_lora: Path, hpsv3: Path, group: Path, tmp_path: Path, world: int
) -> None:
    others = world - 1
    moved = without_weights(with_lora, tmp_path / "lora")
    base = without_weights(sd3_folder, tmp_path / "base")
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(settings | {"base": str(base)}))
    whole = {"dit_reward": in_shards, "dit_reward#lora": with_lora, "hpsv3": hpsv3}
    rewards = {
        "dit_reward": [in_shards, *[without_weights(in_shards, tmp_path / "bare")] * others],
        "dit_reward#lora": [with_lora, *[moved] * others],
        "hpsv3": [hpsv3] * world,  # the size of its vocabulary is in the header of its file
    }
    found = gang.run(world, partial(loaded_roles.score, sd3_folder, rewards, group))
    alone = loaded_roles.scorer_of(sd3_folder, {name: [path] for name, path in whole.items()}, 0, sharded=False)
    expected = alone.score(torch.load(group, weights_only=False)).per_reward
    for name, reward in alone._rewards.items():
        total = sum(weight.numel() for weight in reward.module.parameters())
        assert [scores for scores, _ in (rank[name] for rank in found)] == [expected[name].tolist()] * world
        assert expected[name].std() > 0
        held = [elements for _, elements in (rank[name] for rank in found)]
        assert sum(held) >= total
        # Small weights are on every rank.
        small = sum(weight.numel() for weight in reward.module.parameters() if weight.numel() < 4096)
        assert max(held) <= small + (total - small) / world + 1000


def test_a_shard_that_is_missing_ends_all_ranks_with_its_name(
    sd3_folder: Path, in_shards: Path, tmp_path: Path
) -> None:
    harmed = shutil.copytree(in_shards, tmp_path / "harmed")
    shard = sorted((harmed / "transformer").glob("*.safetensors"))[1]
    shard.unlink()
    bare = without_weights(in_shards, tmp_path / "bare")
    work = partial(loaded_roles.score, sd3_folder, {"dit_reward": [harmed, bare, bare]}, tmp_path)
    first, *others = gang.run(3, work)
    assert isinstance(first, CheckpointError)
    assert str(first) == f"{shard}: this file is missing; copy or download it again"
    assert [(type(other), str(other)) for other in others] == [
        (CheckpointError, f"{first} (found by rank 0 of the gang)")
    ] * 2


def test_a_reward_that_only_one_rank_cannot_make_ends_all_ranks(
    sd3_folder: Path, in_shards: Path, tmp_path: Path
) -> None:
    work = partial(loaded_roles.score, sd3_folder, {"dit_reward": [in_shards, tmp_path / "gone"]}, tmp_path)
    first, second = gang.run(2, work)
    assert str(second).startswith(f"{tmp_path}/gone: no such folder")
    assert str(first) == f"{second} (found by rank 1 of the gang)"


def test_a_failure_between_two_tensors_ends_all_ranks() -> None:
    first, second = gang.run(2, loaded_roles.stop_reading)
    assert isinstance(first, OSError)
    assert isinstance(second, CheckpointError)
    assert str(second) == "the disk is gone (found by rank 0 of the gang)"


def test_a_network_that_no_file_holds_is_spread_as_it_is(sd3_folder: Path) -> None:
    [alone] = gang.run(1, partial(loaded_roles.make, sd3_folder, {}))
    assert gang.run(2, partial(loaded_roles.make, sd3_folder, {})) == [alone, alone]
    whole = loaded_roles.Weighted().module(torch.ones(1, tiny.DIMS)).sum(1).tolist()
    assert alone == whole


def test_a_buffer_that_differs_is_named_with_its_ranks_on_all_ranks(sd3_folder: Path) -> None:
    found = gang.run(3, partial(loaded_roles.make, sd3_folder, {"offset": 1}))
    says = (
        "the buffer table of Linear differs between the ranks of a gang: those of rank 1 are not that of rank 0; give "
        "all of them the same files and versions of the libraries"
    )
    assert [(type(error), str(error)) for error in found] == [(CheckpointError, says)] * 3
