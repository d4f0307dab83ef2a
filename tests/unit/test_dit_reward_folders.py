"""DiT-Reward folders without a backbone of their own, and DiT-Reward on images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowrl.base.errors import CheckpointError
from flowrl.base.fingerprint import fingerprint
from flowrl.config import ConfigError, RewardSpec
from flowrl.core.buckets import cover
from flowrl.models.sd3 import SD3
from flowrl.reward_loading import make_reward, preflight
from flowrl.reward_protocols import ShardableReward
from flowrl.types import RewardInput, TextCondition, TrainedOn
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
        DiTReward.preflight(path=str(small), base="")
    found = DiTReward.preflight(path=str(small), base=str(policy))
    assert found == TrainedOn(latent_space=SD3.latent_space(policy), text_length=28)
    assert DiTReward(path=str(small), base=str(policy))(batch()).isfinite().all()


def test_a_base_that_a_reward_does_not_need_is_an_error(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    options = {"path": str(whole), "base": str(policy)}
    says = rf"^{whole}: holds its own backbone; leave the option base out, which is {policy}$"
    for name, more in (("dit_reward", {}), ("dit_reward_pixels", {"encoders": str(policy)})):
        for ask in (preflight, make_reward):
            with pytest.raises(CheckpointError, match=says):
                ask(RewardSpec(name=name, options=options | more))
    preflight(RewardSpec(name="dit_reward_pixels", options=options))  # here it names the encoders
    make_reward(RewardSpec(name="dit_reward_pixels", options=options))
    with pytest.raises(
        CheckpointError, match=r"^encoders of dit_reward_pixels: elsewhere is not a Stable Diffusion 3 folder"
    ):
        preflight(RewardSpec(name="dit_reward_pixels", options=options | {"base": "elsewhere"}))


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


def test_images_are_brought_to_a_bucket_of_the_training_unless_options_say_otherwise(
    policy: Path, tmp_path: Path
) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    draw = torch.Generator().manual_seed(4)
    wide = RewardInput(prompts=PROMPTS[:1], seeds=torch.tensor([3]), pixels=torch.rand(1, 3, 33, 49, generator=draw))
    unknown = DiTRewardPixels(path=str(whole))
    with pytest.raises(ValueError, match="has no latents"):
        unknown(wide)
    settings = json.loads((whole / "config.json").read_text())
    sizes = {"image_size": 48, "bucket_step": 16, "max_aspect": 2}
    (whole / "config.json").write_text(json.dumps(settings | sizes))
    as_trained = DiTRewardPixels(path=str(whole))(wide)
    fitted = replace(wide, pixels=cover(wide.pixels, (32, 64)))  # beside 48 x 48 the nearest
    torch.testing.assert_close(as_trained, unknown(fitted))
    square = DiTRewardPixels(path=str(whole), max_aspect=1)(wide)
    torch.testing.assert_close(square, unknown(replace(wide, pixels=cover(wide.pixels, (48, 48)))))
    other = DiTRewardPixels(path=str(whole), image_size=32, bucket_step=32)(wide)
    torch.testing.assert_close(other, unknown(replace(wide, pixels=cover(wide.pixels, (32, 32)))))
    assert len({round(float(scores), 5) for scores in (as_trained, square, other)}) == 3
    with pytest.raises(ValueError, match="has no latents"):
        DiTRewardPixels(path=str(whole), image_size=0)(wide)


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
        preflight(RewardSpec(name="dit_reward_pixels", options={"path": str(whole), "encoders": str(other)}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bucket_step": 24}, "bucket_step must be a multiple of 16, the pixels of one token, got 24"),
        ({"image_size": 8}, "image_size, unless 0, must be at least 16"),
        ({"image_size": 24}, "image_size, unless 0, must be at least bucket_step = 64, the shortest side"),
        ({"max_aspect": 0.5}, "max_aspect must be at least 1, got 0.5"),
    ],
)
def test_buckets_that_cannot_be_are_refused_before_anything_is_loaded(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"do not fit reward 'dit_reward_pixels': dit_reward_pixels: {says}"):
        preflight(RewardSpec(name="dit_reward_pixels", options=options))


def test_encoders_that_cannot_make_texts_of_the_rewards_length_are_refused(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    settings = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(settings | {"text_length": 14}))  # those of CLIP alone
    spec = RewardSpec(name="dit_reward_pixels", options={"path": str(whole)})
    with pytest.raises(CheckpointError, match=r"makes texts of more than 14 tokens, but .*whole was trained on 14; "):
        preflight(spec)
    with pytest.raises(CheckpointError, match=r"makes texts of more than 14 tokens"):
        make_reward(spec)


def test_a_backbone_that_was_left_behind_is_missed(policy: Path, tmp_path: Path) -> None:
    whole = save(trained(policy, "frozen"), tmp_path / "whole", whole=True)
    shutil.rmtree(whole / "transformer")
    with pytest.raises(CheckpointError, match=r"whole: transformer/ is missing; copy the folder again"):
        DiTReward.preflight(path=str(whole), base="")


def test_a_lora_that_was_left_behind_is_missed(policy: Path, tmp_path: Path) -> None:
    small = save(trained(policy, "lora"), tmp_path / "small", whole=False)
    shutil.rmtree(small / "backbone_lora")
    with pytest.raises(CheckpointError, match=r"backbone_lora/adapter_config.json: this file is missing"):
        DiTReward.preflight(path=str(small), base="")


def copied(policy: Path, folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor], shards: int = 1) -> Path:
    """The policy with other weights, in so many files."""
    transformer = shutil.copytree(policy, folder) / "transformer"
    whole = transformer / f"{layout.STEM}.safetensors"
    weights = load_file(whole)
    whole.unlink()
    weights = {key: change(key, value).contiguous() for key, value in weights.items()}
    if shards == 1:
        save_file(weights, whole)
        return folder
    where = {key: f"{layout.STEM}-{number % shards}.safetensors" for number, key in enumerate(weights)}
    for name in set(where.values()):
        save_file({key: value for key, value in weights.items() if where[key] == name}, transformer / name)
    (transformer / f"{layout.STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_a_base_of_the_same_sizes_and_other_weights_is_refused(policy: Path, tmp_path: Path) -> None:
    small = save(trained(policy, "lora"), tmp_path / "small", whole=False)
    touched = "transformer_blocks.1.attn.to_v.weight"

    def merged(key: str, value: torch.Tensor) -> torch.Tensor:
        return 1.01 * value if key == touched else value  # all else is equal, as after a merged LoRA

    other = copied(policy, tmp_path / "other", merged)
    says = (
        rf"{small}: was trained on other weights than those in {other}/transformer; give .* \({policy}, .* option base"
    )
    with pytest.raises(CheckpointError, match=says):
        DiTReward.preflight(path=str(small), base=str(other))
    with pytest.raises(CheckpointError, match=says):
        DiTReward(path=str(small), base=str(other))


def test_a_base_in_other_shards_and_another_precision_is_the_same(policy: Path, tmp_path: Path) -> None:
    half = copied(policy, tmp_path / "half", lambda _, value: value.bfloat16())
    small = save(trained(half, "frozen"), tmp_path / "small", whole=False)
    copies = {
        "full": lambda _, value: value.bfloat16().float(),
        "float16": lambda _, value: value.bfloat16().half(),
        "table": lambda key, value: value + 1 if key == "pos_embed.pos_embed" else value.bfloat16(),
    }
    for name, change in copies.items():
        options = {"path": str(small), "base": str(copied(policy, tmp_path / name, change, shards=3))}
        assert DiTReward.preflight(**options) is not None
    # A base in full precision beside its copy in half.
    large = save(trained(policy, "frozen"), tmp_path / "large", whole=False)
    assert DiTReward.preflight(path=str(large), base=str(half)) is not None
    float16 = copied(policy, tmp_path / "of-float32", lambda _, value: value.half())
    with pytest.raises(CheckpointError, match=r"was trained on other weights"):
        DiTReward.preflight(path=str(large), base=str(float16))


def test_tiny_numbers_that_float16_cannot_hold_do_not_tell_bases_apart(policy: Path, tmp_path: Path) -> None:
    scaled = copied(policy, tmp_path / "scaled", lambda _, value: (1e-5 * value).bfloat16())
    half = copied(policy, tmp_path / "half", lambda _, value: (1e-5 * value).bfloat16().half())
    keys = [load_file(folder / "transformer" / f"{layout.STEM}.safetensors") for folder in (scaled, half)]
    assert any(not torch.equal(keys[0][key].float(), keys[1][key].float()) for key in keys[0])
    assert fingerprint(scaled / "transformer", layout.STEM) == fingerprint(half / "transformer", layout.STEM)


def test_all_copies_of_a_float16_model_are_one(policy: Path, tmp_path: Path) -> None:
    changes = {"half": torch.float16, "full": torch.float32, "bfloat16": torch.bfloat16}
    found = {
        fingerprint(
            copied(policy, tmp_path / name, lambda _, value, dtype=dtype: value.half().to(dtype)) / "transformer",
            layout.STEM,
        )
        for name, dtype in changes.items()
    }
    assert len(found) == 1


def test_a_folder_that_does_not_know_its_base_is_refused(policy: Path, tmp_path: Path) -> None:
    made = trained(policy, "frozen")
    small = save(made, tmp_path / "small", whole=False)
    settings = json.loads((small / "config.json").read_text())
    del settings["base_fingerprint"]
    (small / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        CheckpointError, match=r"config.json: has no base_fingerprint, so that the weights in .* export"
    ):
        DiTReward.preflight(path=str(small), base="")
    made.model.config = replace(made.model.config, base_fingerprint="")
    with pytest.raises(ValueError, match=r"only where the model has the fingerprint of its base"):
        save(made, tmp_path / "again", whole=False)
    save(made, tmp_path / "again", whole=True)


def test_the_card_says_which_base_is_needed(policy: Path, tmp_path: Path) -> None:
    made = trained(policy, "frozen")
    small, whole = save(made, tmp_path / "small", whole=False), save(made, tmp_path / "whole", whole=True)
    card = (small / "README.md").read_text()
    assert f"# DiT-Reward on {policy.name}\n" in card
    assert f'DiTReward(path="this-folder", base="{policy}")' in card
    assert "**This folder holds no backbone.**" in card
    other = (whole / "README.md").read_text()
    assert "no backbone" not in other
    assert 'DiTReward(path="this-folder")' in other
    assert "Blocks 0, 1; sigma 0.05." in other
    assert "Trained on images" not in other
    made.model.config = replace(made.model.config, image_size=512, bucket_step=64, max_aspect=2.0)
    known = save(made, tmp_path / "known", whole=True)
    assert "images of about 512 x 512 pixels, in buckets of 64 up to 2 : 1.\n" in (known / "README.md").read_text()
