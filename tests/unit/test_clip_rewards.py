"""The rewards on CLIP: their published layouts, their pixels, and their scores beside independent computations."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import CheckpointError
from flowrl.reward_protocols import CheckableReward, ShardableReward
from flowrl.types import RewardInput
from rewards.aesthetic import HEAD, AestheticReward
from rewards.clip.cosine import CosineReward
from rewards.clip.open_clip_keys import from_open_clip
from rewards.clip.preprocess import crop_pixels, pad_pixels
from rewards.clip.towers import CosineModel
from rewards.clip_score import CLIPScoreReward
from rewards.hpsv2 import HPSv2Reward
from rewards.linear_head import LinearHead
from rewards.pick_score import PickScoreReward
from tests.published import clip_family
from tests.published.clip_family import HUGE, TINY

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
BYTES = 0.035  # two bytes of 255 in normalised units: PIL rounds after each of its two passes
# What rounding to bytes makes of the cosine of a small random CLIP, where images are resized; with the other library's
# middle the last of these is 0.07 off.
RESIZED = [((28, 28), 1e-6), ((56, 80), 0.006), ((61, 85), 0.006)]
PROMPTS = ("a red cat", "Two  DOGS & 3 birds", "a red cat", "x " * 60)
Made = CosineReward | AestheticReward
REWARDS: dict[str, tuple[type, Callable[[Path], dict[str, object]]]] = {
    "hpsv2_1": (HPSv2Reward, clip_family.write_hpsv2),
    "pick_score": (PickScoreReward, clip_family.write_pick_score),
    "clip_score": (CLIPScoreReward, clip_family.write_clip_score),
    "aesthetic": (AestheticReward, clip_family.write_aesthetic),
}
WEIGHTS = {
    "hpsv2_1": "HPS_v2.1_compressed.pt",
    "pick_score": "model.safetensors",
    "clip_score": "model.safetensors",
    "aesthetic": "model.safetensors",
}


def options(name: str, folder: Path) -> dict[str, str]:
    """What a reward is made with."""
    return {"path": str(folder)} | ({"version": "2.1"} if name == "hpsv2_1" else {})


def smooth(batch: int, height: int, width: int) -> torch.Tensor:
    """Images of bytes as floats, soft enough that rounding to bytes is all that two ways of resizing differ by."""
    coarse = torch.rand(batch, 3, 5, 5, generator=torch.Generator().manual_seed(7))
    image = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    return (255 * image).round() / 255


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy())


def batch_of(pixels: torch.Tensor, prompts: tuple[str, ...] = PROMPTS) -> RewardInput:
    return RewardInput(prompts=prompts[: len(pixels)], seeds=torch.arange(len(pixels)), pixels=pixels)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clip")
    for name, (_, write) in REWARDS.items():
        write(root / name)
    clip_family.write_hpsv2(root / "hpsv2_1", "2.0")
    return {name: root / name for name in REWARDS}


@pytest.fixture(scope="module")
def made(folders: dict[str, Path]) -> dict[str, Made]:
    return {name: factory(**options(name, folders[name])) for name, (factory, _) in REWARDS.items()}


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# Independent computations.


def open_clip_block(x: torch.Tensor, weights: dict[str, torch.Tensor], heads: int, *, causal: bool) -> torch.Tensor:
    """One block of open_clip, from its published tensors alone."""
    count, length, width = x.shape

    def norm(name: str, value: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(value, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    qkv = norm("ln_1", x) @ weights["attn.in_proj_weight"].T + weights["attn.in_proj_bias"]
    query, key, value = qkv.reshape(count, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    logits = query @ key.transpose(-1, -2) / math.sqrt(width // heads)
    if causal:
        logits = logits + torch.full((length, length), -torch.inf).triu(1)
    mixed = (logits.softmax(-1) @ value).transpose(1, 2).reshape(count, length, width)
    x = x + mixed @ weights["attn.out_proj.weight"].T + weights["attn.out_proj.bias"]
    inner = F.gelu(norm("ln_2", x) @ weights["mlp.c_fc.weight"].T + weights["mlp.c_fc.bias"])
    return x + inner @ weights["mlp.c_proj.weight"].T + weights["mlp.c_proj.bias"]


def open_clip_tower(x: torch.Tensor, tensors: dict[str, torch.Tensor], prefix: str, heads: int) -> torch.Tensor:
    layers = {int(key.removeprefix(prefix).split(".")[2]) for key in tensors if key.startswith(f"{prefix}transformer.")}
    for layer in sorted(layers):
        block = f"{prefix}transformer.resblocks.{layer}."
        weights = {key.removeprefix(block): value for key, value in tensors.items() if key.startswith(block)}
        x = open_clip_block(x, weights, heads, causal=not prefix)
    return x


def open_clip_cosines(
    tensors: dict[str, torch.Tensor], images: torch.Tensor, ids: torch.Tensor, sizes: clip_family.Sizes = TINY
) -> torch.Tensor:
    """The diagonal of open_clip's logits without their scale; `ids` padded with 0 and ended by their greatest."""
    x = F.conv2d(images, tensors["visual.conv1.weight"], stride=sizes.patch).flatten(2).transpose(1, 2)
    x = (
        torch.cat([tensors["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + tensors["visual.positional_embedding"]
    )
    x = F.layer_norm(x, (sizes.width,), tensors["visual.ln_pre.weight"], tensors["visual.ln_pre.bias"])
    x = open_clip_tower(x, tensors, "visual.", sizes.heads)[:, 0]
    x = F.layer_norm(x, (sizes.width,), tensors["visual.ln_post.weight"], tensors["visual.ln_post.bias"])
    image = x @ tensors["visual.proj"]
    y = tensors["token_embedding.weight"][ids] + tensors["positional_embedding"][: ids.shape[1]]
    y = open_clip_tower(y, tensors, "", sizes.text_heads)
    y = F.layer_norm(y, (sizes.text_width,), tensors["ln_final.weight"], tensors["ln_final.bias"])
    text = y[torch.arange(len(y)), ids.argmax(-1)] @ tensors["text_projection"]
    return (image / image.norm(dim=-1, keepdim=True) * text / text.norm(dim=-1, keepdim=True)).sum(-1)


def open_clip_ids(folder: Path, prompts: tuple[str, ...]) -> torch.Tensor:
    """Tokens as open_clip has them: cut at the context, the last one the end, padded with 0."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = torch.zeros(len(prompts), TINY.context, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens = tokenizer(prompt)["input_ids"]
        tokens = tokens if len(tokens) <= TINY.context else [*tokens[: TINY.context - 1], TINY.vocab - 1]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids


def transformers_features(folder: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, CLIPModel]:
    """Unit vectors by transformers' own model, image processor and tokenizer, each in the ordinary way."""
    model = CLIPModel.from_pretrained(folder).eval()
    edge = TINY.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
    images = processor([pil(one) for one in pixels], return_tensors="pt")["pixel_values"]
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(
        list(PROMPTS[: len(pixels)]), padding=True, truncation=True, max_length=TINY.context, return_tensors="pt"
    )
    with torch.no_grad():
        image = model.get_image_features(images).pooler_output
        text = model.get_text_features(**tokens).pooler_output
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1), model


# Layouts.


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_hpsv2_is_the_cosine_of_open_clip(folders: dict[str, Path], version: str) -> None:
    file = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}[version]
    tensors = torch.load(folders["hpsv2_1"] / file)["state_dict"]
    pixels = torch.rand(4, 3, TINY.image_size, TINY.image_size, generator=torch.Generator().manual_seed(1))
    reward = HPSv2Reward(str(folders["hpsv2_1"]), version=version)
    expected = open_clip_cosines(tensors, (pixels - MEAN) / STD, open_clip_ids(folders["hpsv2_1"], PROMPTS))
    torch.testing.assert_close(reward(batch_of(pixels)), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.05


def test_hpsv2_sees_the_whole_of_an_image_that_is_not_square(folders: dict[str, Path], made: dict[str, Made]) -> None:
    pixels = torch.rand(4, 3, 20, 28, generator=torch.Generator().manual_seed(2))  # as long as the tower reads
    square = torch.zeros(4, 3, 28, 28)
    square[:, :, 4:24] = pixels
    tensors = torch.load(folders["hpsv2_1"] / WEIGHTS["hpsv2_1"])["state_dict"]
    expected = open_clip_cosines(tensors, (square - MEAN) / STD, open_clip_ids(folders["hpsv2_1"], PROMPTS))
    torch.testing.assert_close(made["hpsv2_1"](batch_of(pixels)), expected, rtol=1e-5, atol=1e-6)


def test_the_two_versions_of_hpsv2_are_two_files(folders: dict[str, Path]) -> None:
    batch = batch_of(smooth(2, 28, 28))
    rewards = [HPSv2Reward(str(folders["hpsv2_1"]), version=version) for version in ("2.0", "2.1")]
    assert [reward.name for reward in rewards] == ["hpsv2", "hpsv2_1"]
    one, two = (reward(batch) for reward in rewards)
    assert (one - two).abs().min() > 1e-3
    with pytest.raises(ConfigError, match=r"hpsv2: version must be one of '2.0', '2.1', a string, got 2.1"):
        HPSv2Reward.preflight(path=str(folders["hpsv2_1"]), version=2.1)


@pytest.mark.parametrize(("size", "tolerance"), RESIZED)
def test_pick_score_is_the_scaled_cosine_of_transformers(
    folders: dict[str, Path], made: dict[str, Made], size: tuple[int, int], tolerance: float
) -> None:
    pixels = smooth(4, *size)
    image, text, model = transformers_features(folders["pick_score"], pixels)
    expected = model.logit_scale.exp().item() * (image * text).sum(-1)
    torch.testing.assert_close(
        made["pick_score"](batch_of(pixels)), expected, rtol=1e-5, atol=tolerance * math.exp(3.1)
    )
    assert math.isclose(model.logit_scale.exp().item(), math.exp(3.1), rel_tol=1e-6)


@pytest.mark.parametrize(("size", "tolerance"), RESIZED)
def test_clip_score_is_the_cosine_of_transformers(
    folders: dict[str, Path], made: dict[str, Made], size: tuple[int, int], tolerance: float
) -> None:
    pixels = smooth(4, *size)
    image, text, _ = transformers_features(folders["clip_score"], pixels)
    expected = (image * text).sum(-1)
    torch.testing.assert_close(made["clip_score"](batch_of(pixels)), expected, rtol=1e-5, atol=tolerance)
    rescaled = CLIPScoreReward(str(folders["clip_score"]), rescale=True)(batch_of(pixels))
    torch.testing.assert_close(rescaled, 2.5 * expected.relu(), rtol=1e-5, atol=2.5 * tolerance)
    assert expected.min() < 0 < expected.max()


@pytest.mark.parametrize(("size", "tolerance"), [((28, 28), 1e-5), ((56, 80), 0.05)])
def test_the_aesthetic_score_is_affine_in_the_unit_vector(
    folders: dict[str, Path], made: dict[str, Made], size: tuple[int, int], tolerance: float
) -> None:
    pixels = smooth(4, *size)
    features, _, _ = transformers_features(folders["aesthetic"], pixels)
    tensors = torch.load(folders["aesthetic"] / HEAD)
    slope, offset = torch.eye(TINY.embed), torch.zeros(TINY.embed)
    for layer in (0, 2, 4, 6, 7):
        weight = tensors[f"layers.{layer}.weight"]
        slope, offset = weight @ slope, weight @ offset + tensors[f"layers.{layer}.bias"]
    expected = (features @ slope.T + offset)[:, 0]
    scores = made["aesthetic"](batch_of(pixels))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=tolerance)
    assert expected.std() > 0.1
    same = made["aesthetic"](replace(batch_of(pixels), prompts=("another",) * 4))
    assert torch.equal(scores, same)


def test_the_aesthetic_score_is_of_the_middle_that_torchvision_takes(made: dict[str, Made]) -> None:
    pixels = torch.rand(2, 3, 61, 85, generator=torch.Generator().manual_seed(6))  # resized to 28 x 39
    mine, other = (
        made["aesthetic"](batch_of(crop_pixels(pixels, 28, library) * STD + MEAN))
        for library in ("torchvision", "transformers")
    )
    torch.testing.assert_close(made["aesthetic"](batch_of(pixels)), mine, rtol=1e-4, atol=1e-4)
    assert (mine - other).abs().min() > 1e-2


def test_the_key_map_covers_the_real_vit_h_14() -> None:
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in clip_family.open_clip_shapes(HUGE).items()}
        config = clip_family.clip_config(HUGE, eos=49407, activation="gelu")
        model = CLIPModel(CLIPModel.config_class.from_dict(config))
    assert sum(value.numel() for value in published.values()) == 986_109_441
    assert sum(value.numel() for value in model.parameters()) == 986_109_441
    mapped = {key: tuple(value.shape) for key, value in from_open_clip(published).items()}
    assert mapped == {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert mapped == clip_family.transformers_shapes(HUGE)
    assert len(CosineModel(model).state_dict()) == len(mapped)


def test_the_published_head_has_its_published_size() -> None:
    with torch.device("meta"):
        head = LinearHead(768)
    assert {key: tuple(value.shape) for key, value in head.state_dict().items()} == clip_family.head_shapes(
        "layers.", 768
    )
    assert sum(value.numel() for value in head.parameters()) == 927_969


def test_old_buffers_are_no_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["hpsv2_1"], tmp_path / "hpsv2_1")
    tensors = torch.load(folder / WEIGHTS["hpsv2_1"])["state_dict"]
    torch.save({"state_dict": tensors | {"attn_mask": torch.zeros(20, 20)}}, folder / WEIGHTS["hpsv2_1"])
    batch = batch_of(smooth(2, 28, 28))
    assert torch.equal(HPSv2Reward(str(folder), "2.1")(batch), HPSv2Reward(str(folders["hpsv2_1"]), "2.1")(batch))
    assert "text_model.embeddings.position_ids" in load_file(folders["pick_score"] / "model.safetensors")


def test_a_pt_file_may_hold_its_tensors_plain(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["hpsv2_1"], tmp_path / "hpsv2_1")
    torch.save(torch.load(folder / WEIGHTS["hpsv2_1"])["state_dict"], folder / WEIGHTS["hpsv2_1"])
    batch = batch_of(smooth(2, 28, 28))
    assert torch.equal(HPSv2Reward(str(folder), "2.1")(batch), HPSv2Reward(str(folders["hpsv2_1"]), "2.1")(batch))


def test_a_tokenizer_of_vocab_and_merges_will_do(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["clip_score"], tmp_path / "clip")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "tokenizer.json").unlink()
    CLIPScoreReward.preflight(path=str(folder))
    batch = batch_of(smooth(4, 28, 28))
    assert torch.equal(CLIPScoreReward(str(folder))(batch), CLIPScoreReward(str(folders["clip_score"]))(batch))


# Pixels.


@pytest.mark.parametrize("size", [(1216, 832), (500, 333), (333, 500), (1024, 1024), (100, 160)])
def test_cropping_agrees_with_transformers(size: tuple[int, int]) -> None:
    image = smooth(1, *size)
    expected = CLIPImageProcessorPil()(pil(image[0]), return_tensors="pt")["pixel_values"]
    assert (crop_pixels(image, 224, "transformers") - expected).abs().max() < BYTES


@pytest.mark.parametrize("size", [(1216, 832), (832, 1216), (500, 333), (1024, 1024)])
def test_cropping_agrees_with_torchvision(size: tuple[int, int]) -> None:
    """PIL's resize, and torchvision's rule for the middle."""
    image = smooth(1, *size)
    height, width = (int(224 * edge / min(size)) for edge in size)
    resized = np.asarray(pil(image[0]).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - 224) / 2.0), round((width - 224) / 2.0)
    middle = torch.from_numpy(resized[top : top + 224, left : left + 224].copy()).permute(2, 0, 1) / 255
    assert (crop_pixels(image, 224, "torchvision")[0] - (middle - MEAN) / STD).abs().max() < BYTES


def test_the_two_libraries_take_another_middle_where_it_lies_between_pixels() -> None:
    noise = torch.rand(1, 3, 1216, 832, generator=torch.Generator().manual_seed(3))
    mine, other = (crop_pixels(noise, 224, library) for library in ("torchvision", "transformers"))
    torch.testing.assert_close(mine[:, :, :-1], other[:, :, 1:])  # 327 rows: 51.5 is rounded to 52, and cut to 51
    assert (mine - other).abs().mean() > 0.1
    square = noise[:, :, :832]
    assert torch.equal(crop_pixels(square, 224, "torchvision"), crop_pixels(square, 224, "transformers"))


@pytest.mark.parametrize("size", [(1216, 832), (300, 500), (64, 48), (512, 512), (224, 100)])
def test_padding_agrees_with_a_resize_of_floats(size: tuple[int, int]) -> None:
    """PIL resizes floats by the same filter, without rounding or limits; black comes around."""
    blocks = (torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(4)) > 0.5).float()
    image = F.interpolate(blocks, size, mode="nearest")
    scale = 224 / max(size)
    height, width = (round(edge * scale) for edge in size)
    planes = [
        np.asarray(Image.fromarray(plane.numpy(), mode="F").resize((width, height), Image.Resampling.BICUBIC))
        for plane in image[0]
    ]
    expected = torch.zeros(3, 224, 224)
    top, left = (224 - height) // 2, (224 - width) // 2
    expected[:, top : top + height, left : left + width] = torch.from_numpy(np.stack(planes))
    assert (expected.min() < 0) == (size != (224, 100))  # what overshoots stays
    torch.testing.assert_close(pad_pixels(image, 224)[0], (expected - MEAN) / STD, rtol=1e-4, atol=1e-4)


# Behaviour.


@pytest.mark.parametrize("name", REWARDS)
def test_it_is_a_reward_that_can_be_checked_and_sharded(
    folders: dict[str, Path], made: dict[str, Made], name: str
) -> None:
    assert isinstance(made[name], ShardableReward)
    assert isinstance(REWARDS[name][0], CheckableReward)
    assert REWARDS[name][0].preflight(**options(name, folders[name])) is None
    assert (made[name].name, made[name].input_kind, made[name].latent_space) == (name, "pixel", None)
    assert not any(parameter.requires_grad for parameter in made[name].module.parameters())


@pytest.mark.parametrize("name", REWARDS)
def test_a_score_depends_on_its_own_sample_alone(made: dict[str, Made], name: str) -> None:
    reward, pixels = made[name], smooth(4, 40, 56)
    state = torch.get_rng_state()
    scores = reward(batch_of(pixels))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(scores, reward(batch_of(pixels)))
    assert scores.shape == (4,)
    assert scores.dtype == torch.float32
    assert len(set(scores.tolist())) == 4
    for chosen in ([2, 0, 3, 1], [1], [3, 2]):
        part = batch_of(pixels[chosen], tuple(PROMPTS[place] for place in chosen))
        torch.testing.assert_close(reward(part), scores[chosen], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", REWARDS)
def test_the_gradient_reaches_every_pixel_that_is_seen(made: dict[str, Made], name: str) -> None:
    pixels = smooth(2, 28, 28).clamp(0.1, 0.9).requires_grad_()
    made[name](batch_of(pixels)).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    assert (pixels.grad != 0).float().mean() > 0.99
    step = 1e-3 * pixels.grad / pixels.grad.norm()
    rise = made[name](batch_of(pixels + step)).sum() - made[name](batch_of(pixels - step)).sum()
    torch.testing.assert_close(rise.detach(), 2e-3 * pixels.grad.norm(), rtol=0.05, atol=1e-5)


@pytest.mark.parametrize("name", ["hpsv2_1", "pick_score", "clip_score"])
def test_a_prompt_beyond_the_context_is_cut(made: dict[str, Made], name: str) -> None:
    pixels = smooth(1, 28, 28)
    longest = "a b c d e f g h i j k l m n o p q r"  # 18 tokens, a start and an end
    scores = [made[name](batch_of(pixels, (text,))) for text in (longest, f"{longest} and more", "a b c d")]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("name", REWARDS)
def test_half_precision_scores_nearly_alike(folders: dict[str, Path], made: dict[str, Made], name: str) -> None:
    batch = batch_of(smooth(4, 28, 28))
    half = REWARDS[name][0](**options(name, folders[name]), dtype="bfloat16")
    expected = made[name](batch)
    scores = half(batch)
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 0.1 * expected.abs().max()
    assert {parameter.dtype for parameter in half.module.parameters()} >= {torch.bfloat16}


def test_the_head_stays_exact_in_half_precision(folders: dict[str, Path]) -> None:
    reward = AestheticReward(str(folders["aesthetic"]), dtype="bfloat16")
    weight = torch.load(folders["aesthetic"] / HEAD)["layers.0.weight"]
    assert torch.equal(reward.module.state_dict()["head.layers.0.weight"], weight)


@pytest.mark.parametrize("name", REWARDS)
def test_a_batch_without_pixels_is_refused(made: dict[str, Made], name: str) -> None:
    batch = RewardInput(prompts=("a",), seeds=torch.zeros(1, dtype=torch.long), latents=torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=f"{name} scores images: the batch must hold pixels"):
        made[name](batch)


# Files that cannot be used.


def rewrite(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / WEIGHTS[name]
    if file.suffix == ".pt":
        torch.save({"state_dict": change(torch.load(file)["state_dict"])}, file)
    else:
        save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("hpsv2_1", "visual.transformer.resblocks.1.attn.extra_weight"),
        ("pick_score", "vision_model.embeddings.extra"),
        ("clip_score", "extra"),
        ("aesthetic", "vision_model.extra"),
    ],
)
def test_one_key_too_many_is_named(folders: dict[str, Path], tmp_path: Path, name: str, key: str) -> None:
    folder = copied(folders[name], tmp_path / name)
    rewrite(folder, name, lambda tensors: tensors | {key: torch.zeros(3)})
    with pytest.raises(CheckpointError, match=f"{WEIGHTS[name]}: .*missing none, unexpected {key}; copy it again"):
        REWARDS[name][0](**options(name, folder))


@pytest.mark.parametrize(
    ("name", "key", "missing"),
    [
        ("hpsv2_1", "visual.ln_post.bias", "vision_model.post_layernorm.bias"),
        ("hpsv2_1", "logit_scale", "logit_scale"),
        ("pick_score", "logit_scale", "logit_scale"),
        ("clip_score", "text_projection.weight", "text_projection.weight"),
        ("aesthetic", "visual_projection.weight", "visual_projection.weight"),
    ],
)
def test_one_key_too_few_is_named(folders: dict[str, Path], tmp_path: Path, name: str, key: str, missing: str) -> None:
    folder = copied(folders[name], tmp_path / name)
    rewrite(folder, name, lambda tensors: {each: value for each, value in tensors.items() if each != key})
    with pytest.raises(CheckpointError, match=f"{WEIGHTS[name]}: .*missing {missing}, unexpected none; copy it again"):
        REWARDS[name][0](**options(name, folder))


def test_a_head_that_does_not_fit_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["aesthetic"], tmp_path / "aesthetic")
    tensors = torch.load(folder / HEAD)
    torch.save(tensors | {"layers.0.weight": torch.zeros(1024, 768)}, folder / HEAD)
    with pytest.raises(CheckpointError, match=r"linearMSE.pth: layers.0.weight must have shape \[1024, 16\], got"):
        AestheticReward(str(folder))


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("hpsv2_1", "HPS_v2.1_compressed.pt", "HPS_v2.1_compressed.pt: this file is missing"),
        ("hpsv2_1", "config.json", "config.json: this file is missing"),
        ("hpsv2_1", "tokenizer.json", "the tokenizer is missing: .*vocab.json and merges.txt; .*laion/CLIP-ViT-H-14"),
        ("pick_score", "tokenizer_config.json", "the tokenizer is missing"),
        ("pick_score", "model.safetensors", "model.safetensors: this file is missing"),
        ("clip_score", "tokenizer.json", "tokenizer files of openai/clip-vit-large-patch14"),
        ("aesthetic", HEAD.replace("+", r"\+"), "this file is missing"),
        ("aesthetic", "model.safetensors", "model.safetensors: this file is missing"),
    ],
)
def test_a_missing_file_is_named_before_anything_is_loaded(
    folders: dict[str, Path], tmp_path: Path, name: str, file: str, message: str
) -> None:
    folder = copied(folders[name], tmp_path / name)
    (folder / file.replace("\\", "")).unlink()
    factory = REWARDS[name][0]
    with pytest.raises(CheckpointError, match=message):
        factory.preflight(**options(name, folder))
    with pytest.raises(CheckpointError, match=message):
        factory(**options(name, folder))


@pytest.mark.parametrize("name", REWARDS)
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"nowhere: no such folder; {name} needs one that holds "):
        REWARDS[name][0].preflight(**options(name, tmp_path / "nowhere"))


def test_a_torn_file_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["hpsv2_1"], tmp_path / "hpsv2_1")
    file = folder / WEIGHTS["hpsv2_1"]
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"HPS_v2.1_compressed.pt: cut off, or not a file of torch.save"):
        HPSv2Reward.preflight(path=str(folder), version="2.1")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("else", "where")
    with pytest.raises(CheckpointError, match=r"HPS_v2.1_compressed.pt: damaged, or holds more than tensors"):
        HPSv2Reward(str(folder), "2.1")


def test_a_file_that_would_run_code_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["aesthetic"], tmp_path / "aesthetic")
    torch.save({"layers.0.weight": Path("/")}, folder / HEAD)
    with pytest.raises(CheckpointError, match=r"linearMSE.pth: damaged, or holds more than tensors"):
        AestheticReward(str(folder))
    torch.save({"state_dict": {"epoch": 3}}, folder / HEAD)
    with pytest.raises(CheckpointError, match=r"linearMSE.pth: must hold tensors by name"):
        AestheticReward(str(folder))


def test_the_config_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["pick_score"], tmp_path / "pick")
    clip_family.write_config(folder, {"model_type": "bert"})
    with pytest.raises(CheckpointError, match=r"config.json: expected model_type clip, got 'bert'"):
        PickScoreReward.preflight(path=str(folder))


def test_the_tokenizer_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["pick_score"], tmp_path / "pick")
    clip_family.write_config(folder, clip_family.clip_config(TINY, eos=5, activation="gelu"))
    with pytest.raises(CheckpointError, match=r"has 518 tokens and ends a text with 517, the model has 518 and 5;"):
        PickScoreReward(str(folder))
