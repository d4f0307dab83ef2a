"""DiT-Reward folders without a backbone of their own, and DiT-Reward on images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from flowrl.base.errors import CheckpointError
from flowrl.models.sd3 import SD3
from flowrl.protocols import ShardableReward
from flowrl.types import RewardInput, TextCondition
from rewards.dit_reward import DiTReward, layout
from rewards.dit_reward.model import DiTRewardConfig
from rewards.dit_reward.pixels import DiTRewardPixels
from rewards.dit_reward.training import DiTRewardTraining, new_model
from tests import tiny

PROMPTS = ("a large red circle on sand", "a small blue square on snow")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("policy"))


def trained(policy: Path, mode: str) -> DiTRewardTraining:
    """A reward on the policy's backbone, its LoRA moved as training would."""
    config = DiTRewardConfig(
        text_length=28, layers=(0, 1), head_dims=(8,), latent_space=SD3.latent_space(policy), base=str(policy)
    )
    model = new_model(policy / "transformer", config, pretrained=True, seed=0)
    made = DiTRewardTraining(model, mode, lora_rank=4, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def save(made: DiTRewardTraining, folder: Path, *, whole: bool) -> Path:
    made.save(folder, made.module.state_dict(), dtype=torch.float32, notes="", whole=whole)
    return folder


def batch() -> RewardInput:
    generator = torch.Generator().manual_seed(1)
    return RewardInput(
        prompts=PROMPTS,
        seeds=torch.tensor([7, 8]),
        latents=torch.randn(2, *tiny.SHAPE, generator=generator),
        condition=TextCondition(
            embeds=torch.randn(2, 28, 96, generator=generator), pooled=torch.randn(2, 80, generator=generator)
        ),
    )


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_a_folder_without_a_backbone_scores_as_the_whole_one(policy: Path, tmp_path: Path, mode: str) -> None:
    made = trained(policy, mode)
    whole, small = save(made, tmp_path / "whole", whole=True), save(made, tmp_path / "small", whole=False)
    assert not (small / "transformer").exists()
    assert (small / "backbone_lora").is_dir() == (mode == "lora")
    expected = DiTReward(path=str(whole))(batch())
    torch.testing.assert_close(DiTReward(path=str(small))(batch()), expected, rtol=1e-5, atol=1e-5)
    if mode == "lora":
        frozen = save(trained(policy, "frozen"), tmp_path / "frozen", whole=False)
        assert not torch.allclose(DiTReward(path=str(frozen))(batch()), expected, atol=1e-3)


def test_a_base_that_has_moved_is_named_by_an_option(policy: Path, tmp_path: Path) -> None:
    small = save(trained(policy, "frozen"), tmp_path / "small", whole=False)
    settings = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(settings | {"base": "/gone"}))
    with pytest.raises(CheckpointError, match=r"holds no backbone, and /gone is not a folder with a transformer/"):
        DiTReward.check({"path": str(small)})
    assert DiTReward.check({"path": str(small), "base": str(policy)}) == SD3.latent_space(policy)
    assert DiTReward(path=str(small), base=str(policy))(batch()).isfinite().all()


def test_a_lora_of_other_layers_is_refused(policy: Path, tmp_path: Path) -> None:
    small = save(trained(policy, "lora"), tmp_path / "small", whole=False)
    file = small / layout.LORA / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"target_modules": settings["target_modules"][1:]}))
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: its tensors are not those of this LoRA"):
        DiTReward(path=str(small))


def test_images_get_the_scores_of_their_latents(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    seeds = torch.tensor([3, 4])
    found = DiTRewardPixels(path=str(whole))(RewardInput(prompts=PROMPTS, seeds=seeds, pixels=pixels))
    encoder = SD3.load_encoder(policy, max_sequence_length=14, dtype=torch.float32, device="cpu")
    conditions = [encoder.encode(prompt) for prompt in PROMPTS]
    latents = SD3.load_image_encoder(policy, device="cpu").encode(pixels)
    condition = TextCondition(
        embeds=torch.cat([one.embeds for one in conditions]), pooled=torch.cat([one.pooled for one in conditions])
    )
    expected = DiTReward(path=str(whole))(
        RewardInput(prompts=PROMPTS, seeds=seeds, latents=latents, condition=condition)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_images_are_brought_to_a_bucket(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    wide = RewardInput(prompts=PROMPTS[:1], seeds=torch.tensor([3]), pixels=torch.rand(1, 3, 40, 41))
    with pytest.raises(ValueError, match="has no latents"):
        DiTRewardPixels(path=str(whole))(wide)
    assert DiTRewardPixels(path=str(whole), image_size=64)(wide).isfinite().all()


def test_the_network_that_a_gang_puts_in_is_the_one_that_scores(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    reward = DiTRewardPixels(path=str(whole))
    assert isinstance(reward, ShardableReward)
    inner = reward.module
    seen = []

    class Sharded(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            seen.append(len(inputs))
            return inner(*inputs) + 1

    one = RewardInput(prompts=PROMPTS[:1], seeds=torch.tensor([3]), pixels=torch.rand(1, 3, 32, 32))
    before = reward(one)
    reward.module = Sharded()
    torch.testing.assert_close(reward(one), before + 1)
    assert seen == [4]


def test_encoders_of_another_latent_space_are_refused(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    other = tiny.write_folder(tmp_path / "other", shift=0.5)
    with pytest.raises(CheckpointError, match=r"makes latents of .*shift0.5, but .* was trained on .*shift0.0609"):
        DiTRewardPixels.check({"path": str(whole), "encoders": str(other)})


def test_a_backbone_that_was_left_behind_is_missed(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    shutil.rmtree(whole / "transformer")
    with pytest.raises(CheckpointError, match=r"whole: transformer/ is missing; copy the folder again"):
        DiTReward.check({"path": str(whole)})


def test_a_lora_that_was_left_behind_is_missed(policy: Path, tmp_path: Path) -> None:
    small = save(trained(policy, "lora"), tmp_path / "small", whole=False)
    shutil.rmtree(small / "backbone_lora")
    with pytest.raises(CheckpointError, match=r"backbone_lora/adapter_config.json: this file is missing"):
        DiTReward.check({"path": str(small)})
