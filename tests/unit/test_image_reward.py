"""ImageReward: its published layout, its pixels and texts, and its scores beside the arithmetic written out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import BertTokenizer

from flowrl.base.errors import CheckpointError
from flowrl.reward_protocols import CheckableReward, ShardableReward
from flowrl.types import RewardInput
from rewards.clip.preprocess import crop_pixels
from rewards.image_reward import ImageReward, ImageRewardModel, from_published, text_config, vision_config
from tests.published import image_reward
from tests.published.image_reward import LARGE, TINY

PROMPTS = ("a red cat", "A circle on 3 sands.", "a red cat", "cat " * 50)
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
Tensors = dict[str, torch.Tensor]


def images(batch: int, height: int = TINY.image_size, width: int = TINY.image_size) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(8))


def batch_of(pixels: torch.Tensor, prompts: tuple[str, ...] = PROMPTS) -> RewardInput:
    return RewardInput(prompts=prompts[: len(pixels)], seeds=torch.arange(len(pixels)), pixels=pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image_reward")
    image_reward.write_image_reward(path)
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageReward:
    return ImageReward(str(folder))


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# The published model, from its tensors alone.


def linear(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def norm(x: torch.Tensor, tensors: Tensors, name: str, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def mixed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, bias: torch.Tensor) -> torch.Tensor:
    """Attention of [B, L, D] to [B, M, D]; `bias` [B, 1, 1, M] is added to the logits."""

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    logits = split(query) @ split(key).transpose(2, 3) / math.sqrt(query.shape[-1] // heads) + bias
    return (logits.softmax(-1) @ split(value)).transpose(1, 2).flatten(2)


def vision_forward(pixels: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    weight, bias = (tensors[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    x = F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), x], 1) + tensors["pos_embed"]
    for layer in range(TINY.layers):
        block = f"blocks.{layer}"
        qkv = linear(norm(x, tensors, f"{block}.norm1", 1e-6), tensors, f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(mixed(*qkv, TINY.width // 64, torch.zeros(1)), tensors, f"{block}.attn.proj")
        inner = F.gelu(linear(norm(x, tensors, f"{block}.norm2", 1e-6), tensors, f"{block}.mlp.fc1"))
        x = x + linear(inner, tensors, f"{block}.mlp.fc2")
    return norm(x, tensors, "norm", 1e-6)


def text_forward(ids: torch.Tensor, mask: torch.Tensor, patches: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x, tensors, "embeddings.LayerNorm", 1e-12)
    hidden = torch.zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None]
    for layer in range(TINY.text_layers):
        block = f"encoder.layer.{layer}"
        for name, source, bias in (("attention", None, hidden), ("crossattention", patches, torch.zeros(1))):
            unit = f"{block}.{name}"
            seen = x if source is None else source
            query = linear(x, tensors, f"{unit}.self.query")
            key, value = (linear(seen, tensors, f"{unit}.self.{part}") for part in ("key", "value"))
            out = linear(mixed(query, key, value, TINY.text_heads, bias), tensors, f"{unit}.output.dense")
            x = norm(out + x, tensors, f"{unit}.output.LayerNorm", 1e-12)
        inner = F.gelu(linear(x, tensors, f"{block}.intermediate.dense"))
        x = norm(linear(inner, tensors, f"{block}.output.dense") + x, tensors, f"{block}.output.LayerNorm", 1e-12)
    return x


def published_scores(folder: Path, pixels: torch.Tensor, prompts: tuple[str, ...]) -> torch.Tensor:
    """The standardised score; the head as the one affine map that it is."""
    tensors = torch.load(folder / "ImageReward.pt")

    def part(prefix: str) -> Tensors:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    tokens = BertTokenizer.from_pretrained(folder)(
        list(prompts), padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    patches = vision_forward((pixels - MEAN) / STD, part("blip.visual_encoder."))
    hidden = text_forward(tokens["input_ids"], tokens["attention_mask"], patches, part("blip.text_encoder."))
    head, slope, offset = part("mlp.layers."), torch.eye(TINY.text_width), torch.zeros(TINY.text_width)
    for layer in (0, 2, 4, 6, 7):
        weight = head[f"{layer}.weight"]
        slope, offset = weight @ slope, weight @ offset + head[f"{layer}.bias"]
    raw = (hidden[:, 0] @ slope.T + offset)[:, 0]
    return (raw - 0.16717362830052426) / 1.0333394966054072


def test_the_score_is_that_of_the_published_arithmetic(folder: Path, reward: ImageReward) -> None:
    pixels = images(4)
    expected = published_scores(folder, pixels, PROMPTS)
    torch.testing.assert_close(reward(batch_of(pixels)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_images_of_other_sizes_are_cropped_as_torchvision_does(folder: Path, reward: ImageReward) -> None:
    pixels = images(2, 64, 86)  # 32 x 43: the middle lies between two pixels
    expected, other = (
        published_scores(folder, crop_pixels(pixels, TINY.image_size, library) * STD + MEAN, PROMPTS[:2])
        for library in ("torchvision", "transformers")
    )
    torch.testing.assert_close(reward(batch_of(pixels)), expected, rtol=1e-4, atol=1e-4)
    assert (expected - other).abs().min() > 1e-2


def test_the_real_encoders_have_their_published_sizes(tmp_path: Path) -> None:
    (tmp_path / "med_config.json").write_text(json.dumps(image_reward.med_config(LARGE)))
    with torch.device("meta"):
        published = {key: torch.empty(shape) for key, shape in image_reward.published_shapes(LARGE).items()}
        mapped = from_published(published)
        vision = vision_config(mapped, tmp_path)
        model = ImageRewardModel(vision, text_config(tmp_path, vision.hidden_size))
    assert (vision.num_hidden_layers, vision.num_attention_heads, vision.image_size) == (24, 16, 224)
    sizes = [sum(value.numel() for value in part.parameters()) for part in (model.vision, model.text, model.head)]
    assert sizes == [303_301_632, 141_977_088, 927_969]
    assert {key: value.shape for key, value in mapped.items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_it_is_a_reward_that_can_be_checked_and_sharded(folder: Path, reward: ImageReward) -> None:
    assert isinstance(reward, ShardableReward)
    assert isinstance(ImageReward, CheckableReward)
    assert ImageReward.preflight(path=str(folder)) is None
    assert (reward.name, reward.input_kind, reward.latent_space) == ("image_reward", "pixel", None)


def test_a_score_depends_on_its_own_sample_alone(reward: ImageReward) -> None:
    pixels = images(4, 48, 40)
    state = torch.get_rng_state()
    scores = reward(batch_of(pixels))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(scores, reward(batch_of(pixels)))
    assert scores.dtype == torch.float32
    assert len(set(scores.tolist())) == 4
    for chosen in ([2, 0, 3, 1], [1], [3, 2]):
        part = batch_of(pixels[chosen], tuple(PROMPTS[place] for place in chosen))
        torch.testing.assert_close(reward(part), scores[chosen], rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_every_pixel(reward: ImageReward) -> None:
    pixels = images(2).requires_grad_()
    reward(batch_of(pixels)).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    assert (pixels.grad != 0).float().mean() > 0.99
    step = 1e-3 * pixels.grad / pixels.grad.norm()
    rise = reward(batch_of(pixels + step)).sum() - reward(batch_of(pixels - step)).sum()
    torch.testing.assert_close(rise.detach(), 2e-3 * pixels.grad.norm(), rtol=0.05, atol=1e-4)


def test_a_prompt_beyond_35_tokens_is_cut(reward: ImageReward) -> None:
    pixels = images(1)
    longest = "cat " * 33  # with [CLS] and [SEP]
    scores = [reward(batch_of(pixels, (text,))) for text in (longest, f"{longest} red circle", "cat " * 32)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_capitals_do_not_count(reward: ImageReward) -> None:
    pixels = images(1)
    assert torch.equal(reward(batch_of(pixels, ("A Red CAT",))), reward(batch_of(pixels, ("a red cat",))))


def test_the_head_stays_exact_in_half_precision(folder: Path, reward: ImageReward) -> None:
    half = ImageReward(str(folder), dtype="bfloat16")
    weights = half.module.state_dict()
    assert torch.equal(weights["head.layers.0.weight"], torch.load(folder / "ImageReward.pt")["mlp.layers.0.weight"])
    assert weights["vision.post_layernorm.weight"].dtype == torch.bfloat16
    scores, expected = half(batch_of(images(4))), reward(batch_of(images(4)))
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_batch_without_pixels_is_refused(reward: ImageReward) -> None:
    batch = RewardInput(prompts=("a",), seeds=torch.zeros(1, dtype=torch.long), latents=torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="image_reward scores images: the batch must hold pixels"):
        reward(batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors | {"blip.itm_head.weight": torch.zeros(2, 2)},
            "unexpected blip.itm_head.weight; copy",
        ),
        (lambda tensors: tensors | {"blip.vision_projection.x": torch.zeros(2)}, "unexpected blip.vision_projection.x"),
        (
            lambda tensors: {key: value for key, value in tensors.items() if key != "mlp.layers.7.bias"},
            "missing head.layers.7.bias, unexpected none",
        ),
        (
            lambda tensors: {key: value for key, value in tensors.items() if "patch_embed" not in key},
            "has no image tower of BLIP",
        ),
        (
            lambda tensors: tensors | {"blip.text_encoder.embeddings.LayerNorm.bias": torch.zeros(3)},
            r"text.embeddings.LayerNorm.bias must have shape \[48\], got \[3\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    folder: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    target = copied(folder, tmp_path / "changed")
    torch.save(change(torch.load(folder / "ImageReward.pt")), target / "ImageReward.pt")
    with pytest.raises(CheckpointError, match=rf"ImageReward.pt: .*{message}"):
        ImageReward(str(target))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("ImageReward.pt", r"ImageReward.pt: this file is missing"),
        ("med_config.json", r"med_config.json: this file is missing"),
        (
            "tokenizer.json",
            r"the tokenizer is missing: .* and vocab.txt; copy the tokenizer files of bert-base-uncased",
        ),
    ],
)
def test_a_missing_file_is_named_before_anything_is_loaded(
    folder: Path, tmp_path: Path, file: str, message: str
) -> None:
    target = copied(folder, tmp_path / "lacking")
    (target / file).unlink()
    with pytest.raises(CheckpointError, match=message):
        ImageReward.preflight(path=str(target))
    with pytest.raises(CheckpointError, match=message):
        ImageReward(str(target))


def test_a_config_that_lacks_a_size_is_named(folder: Path, tmp_path: Path) -> None:
    target = copied(folder, tmp_path / "lacking")
    settings = image_reward.med_config(TINY)
    del settings["num_attention_heads"]
    (target / "med_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"med_config.json: has no 'num_attention_heads'"):
        ImageReward.preflight(path=str(target))


def test_the_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    target = copied(folder, tmp_path / "other")
    BertTokenizer(vocab={"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(target)
    with pytest.raises(CheckpointError, match=r"the tokenizer has 5 tokens and pads with 1, med_config.json says 100"):
        ImageReward(str(target))


def test_a_vocabulary_alone_will_do(folder: Path, tmp_path: Path, reward: ImageReward) -> None:
    target = copied(folder, tmp_path / "vocab")
    vocabulary = json.loads((target / "tokenizer.json").read_text())["model"]["vocab"]
    (target / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    (target / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    (target / "tokenizer.json").unlink()
    batch = batch_of(images(4))
    assert torch.equal(ImageReward(str(target))(batch), reward(batch))
