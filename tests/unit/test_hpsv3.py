"""HPSv3: the text it was trained on, its pixels, its published file layout, and its scores."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from flowrl.pocket.vision_language import Captioner, caption_mask, new_config, new_tokenizer
from flowrl.types import RewardInput
from rewards.files import CheckpointError
from rewards.hpsv3 import HPSv3Reward, layout, template
from rewards.hpsv3.model import HPSv3Model, from_published, to_published, tokenize
from rewards.hpsv3.preprocess import PatchSpec, patchify, smart_resize
from rewards.hpsv3.training import HPSv3Training

SHORT = "a small red circle on sand"
LONG = "a large green square left of a small pink triangle on slate"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tiny(seed: int = 0) -> Captioner:
    torch.manual_seed(seed)
    return Captioner(HPSv3Model(new_config(new_tokenizer()))).eval()


def pixels(batch: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hpsv3")
    captioner = tiny()
    head = captioner.lm_head.weight
    layout.save(captioner.model, new_tokenizer(), path, area=64 * 64, lm_head=head, dtype=torch.float32)
    return path


def test_the_template_is_the_published_one() -> None:
    assert len(template.INSTRUCTION) == 2523
    assert sha(template.INSTRUCTION) == "0393599dad45a971903d1d62a3acf9bad3ccccdafa7f40f680523419e1f68b7a"
    assert len(template.SUFFIX) == 67
    assert sha(template.SUFFIX) == "2471faca094ae5bd6fe17b71dce20c3d7583625545e235889f7e74e7eeb69d0a"
    assert len(template.text("a cat")) == 2582
    assert sha(template.text("a cat")) == "58f765b8739946ac474c741df3766ebc3df8c43e966cea2edbdce196c41a2bd4"


def test_the_chat_keeps_braces_and_names_each_image_token() -> None:
    chat = template.render("{x} {0}", 3)
    assert "Textual prompt - {x} {0}\n" in chat
    begin = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    assert chat.startswith(begin + "<|image_pad|>" * 3 + "<|vision_end|>\nYou are tasked")
    assert chat.endswith("<|Reward|>\n\nEND\n<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("size", "grid", "tokens"),
    [
        ((1024, 1024), (32, 32), 256),
        ((512, 512), (32, 32), 256),
        ((720, 1280), (24, 42), 252),
        ((1216, 832), (38, 26), 247),
        ((300, 900), None, 243),
    ],
)
def test_published_image_sizes(size: tuple[int, int], grid: tuple[int, int] | None, tokens: int) -> None:
    spec = PatchSpec()
    height, width = spec.resized(*size)
    assert spec.num_tokens(*size) == tokens
    if grid is not None:
        assert (height // 14, width // 14) == grid


def test_an_image_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"over 200 times as long as wide, got 10 x 3000"):
        smart_resize(10, 3000, factor=28, min_pixels=1, max_pixels=10**9)


def test_patches_are_those_of_transformers_own_processor() -> None:
    image = (255 * pixels(2, 96, 64)).round().to(torch.uint8)
    spec = PatchSpec(area=96 * 64, patch_size=8)
    patches, grid = patchify(image / 255, spec)
    processor = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 6144, "longest_edge": 6144}
    )
    expected = processor([np.asarray(one.permute(1, 2, 0)) for one in image], return_tensors="pt")
    assert grid.tolist() == expected["image_grid_thw"].tolist() == [[1, 12, 8]] * 2
    torch.testing.assert_close(patches, expected["pixel_values"], rtol=1e-5, atol=1e-5)


def test_resizing_agrees_with_the_published_bicubic() -> None:
    ramp = torch.linspace(0, 1, 512)[None, None, None, :].expand(1, 3, 512, 512)
    image = (255 * (0.7 * ramp + 0.3 * ramp.transpose(2, 3))).round().to(torch.uint8)
    patches, grid = patchify(image / 255, PatchSpec())
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 200704, "longest_edge": 200704})
    expected = processor([np.asarray(image[0].permute(1, 2, 0))], return_tensors="pt")
    assert grid.tolist() == expected["image_grid_thw"].tolist() == [[1, 32, 32]]
    assert (patches - expected["pixel_values"]).abs().max() < 0.02  # a rounded byte is 1/255/std = 0.015


def test_the_pocket_tokenizer_makes_few_tokens_of_the_real_text() -> None:
    tokenizer = new_tokenizer()
    chats = tokenize(tokenizer, (SHORT, LONG), 16)
    rows = [ids[mask.bool()] for ids, mask in zip(chats.input_ids, chats.attention_mask, strict=True)]
    assert [tokenizer.decode(row) for row in rows] == [template.render(SHORT, 16), template.render(LONG, 16)]
    assert [len(row) for row in rows] == [16 + 16 + 6, 16 + 16 + 12]
    assert chats.image_mask.sum(1).tolist() == [16, 16]
    assert chats.attention_mask[0].tolist() == [1] * 38 + [0] * 6  # padded on the right
    reward = tokenizer.convert_tokens_to_ids(template.REWARD_TOKEN)
    assert [ids[p] for ids, p in zip(chats.input_ids, chats.reward_position, strict=True)] == [reward, reward]
    caption = caption_mask(tokenizer, chats)
    assert tokenizer.decode(rows[0][caption[0, :38]][:-1]) == f" {SHORT}"
    other = "ünïcode {x}, 100 % of it"
    assert template.render(other, 16) == tokenizer.decode(tokenize(tokenizer, (other,), 16).input_ids[0])


def test_the_score_is_read_by_an_independent_computation(folder: Path) -> None:
    """The published layout, read here by transformers' own renaming and a head written out."""
    tensors = load_file(folder / layout.WEIGHTS)
    config = new_config(tokenizer := new_tokenizer())
    backbone = Qwen2VLModel(config).eval()
    backbone.visual.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("visual.")})
    backbone.language_model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    image = pixels(1)
    ids = torch.tensor(tokenizer([template.render(LONG, 16)])["input_ids"])
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    normal = ((image[0] - mean) / std).numpy()
    blocks = normal.reshape(3, 4, 2, 8, 4, 2, 8).transpose(1, 4, 2, 5, 0, 3, 6)
    patches = torch.from_numpy(np.repeat(blocks[:, :, :, :, :, None], 2, axis=5).reshape(64, -1))
    with torch.no_grad():
        hidden = backbone(
            input_ids=ids,
            pixel_values=patches,
            image_grid_thw=torch.tensor([[1, 8, 8]]),
            mm_token_type_ids=(ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
        ).last_hidden_state[0]
        row = hidden[ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|Reward|>"))]
        row = torch.relu(tensors["rm_head.0.weight"] @ row + tensors["rm_head.0.bias"])
        row = torch.relu(tensors["rm_head.3.weight"] @ row + tensors["rm_head.3.bias"])
        mu = tensors["rm_head.5.weight"] @ row + tensors["rm_head.5.bias"]
    score = HPSv3Reward(str(folder))(RewardInput(prompts=(LONG,), seeds=torch.tensor([0]), pixels=image))
    torch.testing.assert_close(score, mu[:1], rtol=1e-4, atol=1e-5)


def test_a_score_does_not_depend_on_what_it_is_batched_with(folder: Path) -> None:
    prompts = (SHORT, LONG, SHORT, "an image of something else altogether")
    batch = RewardInput(prompts=prompts, seeds=torch.zeros(4, dtype=torch.int64), pixels=pixels(4))
    reward = HPSv3Reward(str(folder))
    whole = reward(batch)
    assert whole.shape == (4,)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, reward(batch))
    alone = torch.cat(
        [
            reward(RewardInput(prompts=(p,), seeds=batch.seeds[:1], pixels=batch.pixels[i : i + 1]))
            for i, p in enumerate(prompts)
        ]
    )
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    assert (whole[0] - whole[1]).abs() > 1e-5  # the image and the prompt both count
    order = [2, 0, 3, 1]
    mixed = RewardInput(
        prompts=tuple(prompts[i] for i in order), seeds=torch.zeros(4, dtype=torch.int64), pixels=batch.pixels[order]
    )
    torch.testing.assert_close(reward(mixed), whole[order], rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_the_pixels(folder: Path) -> None:
    image = pixels(2).requires_grad_()
    batch = RewardInput(prompts=(SHORT, LONG), seeds=torch.zeros(2, dtype=torch.int64), pixels=image)
    HPSv3Reward(str(folder))(batch).sum().backward()
    assert torch.isfinite(image.grad).all()
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()


def test_key_map_is_that_of_transformers_own_layout_change() -> None:
    captioner = tiny()
    published = to_published(captioner.model.state_dict())
    assert {key.split(".")[0] for key in published} == {"visual", "model", "rm_head"}
    assert "model.layers.0.self_attn.q_proj.bias" in published
    assert "visual.merger.mlp.2.weight" in published
    back = from_published(published | {"lm_head.weight": torch.zeros(1)})
    assert back.keys() == captioner.model.state_dict().keys()
    ours = Qwen2VLForConditionalGeneration(captioner.model.backbone.config).state_dict().keys()
    renamed = {
        "model.visual." + key[7:] if key.startswith("visual.") else "model.language_model." + key[6:]
        for key in published
        if not key.startswith("rm_head.")
    }
    assert renamed == set(ours) - {"lm_head.weight"}
    assert from_published({f"model.{key}": v for key, v in published.items() if key.startswith("visual.")}).keys() == {
        key for key in back if key.startswith("backbone.visual.")
    }


def test_the_file_holds_the_language_head_and_is_loaded_strictly(folder: Path, tmp_path: Path) -> None:
    stored = load_file(folder / layout.WEIGHTS)
    assert stored["lm_head.weight"].shape == stored["model.embed_tokens.weight"].shape
    loaded = HPSv3Reward(str(folder))
    model, spec = loaded.module, loaded.spec
    assert spec == PatchSpec(area=4096, patch_size=8)
    for key, value in tiny().model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    half = HPSv3Reward(str(folder), dtype="bfloat16").module
    assert half.backbone.language_model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(half.rm_head[0].weight, tiny().model.rm_head[0].weight)  # float32, and never rounded


def copy_with(folder: Path, to: Path, tensors: dict[str, torch.Tensor]) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    save_file(tensors, to / layout.WEIGHTS)
    return to


def test_a_training_keeps_the_language_head_that_it_started_with(folder: Path, tmp_path: Path) -> None:
    stored = load_file(folder / layout.WEIGHTS)
    moved = copy_with(folder, tmp_path / "base", stored)
    training = HPSv3Training(moved, seed=0)
    shutil.rmtree(moved)
    training.save(tmp_path / "out", training.module.state_dict(), dtype=torch.float32, notes="", whole=True)
    assert torch.equal(load_file(tmp_path / "out" / layout.WEIGHTS)["lm_head.weight"], stored["lm_head.weight"])
    del stored["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"HPSv3.safetensors: has no lm_head.weight; use the published file"):
        HPSv3Training(copy_with(folder, tmp_path / "headless", stored), seed=0)


def test_wrong_files_are_named(folder: Path, tmp_path: Path) -> None:
    stored = load_file(folder / layout.WEIGHTS)
    partial = {k: v for k, v in stored.items() if k != "model.norm.weight"} | {"extra.bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"missing backbone.language_model.norm.weight, unexpected extra.bias"):
        HPSv3Reward(str(copy_with(folder, tmp_path / "a", partial)))
    with pytest.raises(CheckpointError, match=r"rm_head.5.bias must have shape \[2\], got \[1\]"):
        HPSv3Reward(str(copy_with(folder, tmp_path / "b", stored | {"rm_head.5.bias": torch.zeros(1)})))
    few = stored | {"model.embed_tokens.weight": stored["model.embed_tokens.weight"][:300].clone()}
    with pytest.raises(CheckpointError, match=r"<\|Reward\|> has id 348, but the weights have 300 embedding rows"):
        HPSv3Reward(str(copy_with(folder, tmp_path / "c", few)))
    torn = copy_with(folder, tmp_path / "d", stored)
    (torn / layout.WEIGHTS).write_bytes((folder / layout.WEIGHTS).read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"HPSv3.safetensors: truncated or damaged"):
        HPSv3Reward(str(torn))
    cut = copy_with(folder, tmp_path / "tok", stored)
    (cut / "tokenizer.json").write_text('{"model": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tok/tokenizer.json: not valid JSON"):
        HPSv3Reward(str(cut))
    (torn / layout.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"is not an HPSv3 folder: it has no HPSv3.safetensors"):
        HPSv3Reward(str(torn))
    other = copy_with(folder, tmp_path / "cut", stored)
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"expected model_type qwen2_vl, got 'llama'"):
        HPSv3Reward(str(other))


def test_no_weights_are_drawn_that_the_file_replaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    made = HPSv3Model.__init__

    def counting(self: HPSv3Model, config: object) -> None:
        made(self, config)
        devices.extend(parameter.device.type for parameter in self.parameters())

    monkeypatch.setattr(HPSv3Model, "__init__", counting)
    model = HPSv3Reward(str(folder)).module
    assert set(devices) == {"meta"}
    assert all(not tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_input_that_does_not_fit_is_refused(folder: Path) -> None:
    reward = HPSv3Reward(str(folder))
    seeds = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"hpsv3 scores images: the batch must hold pixels"):
        reward(RewardInput(prompts=(SHORT,), seeds=seeds, latents=torch.zeros(1, 16, 8, 8)))
    with pytest.raises(ValueError, match=r"a prompt must not hold <\|Reward\|> or <\|image_pad\|>, got 'x <\|Rew"):
        reward(RewardInput(prompts=("x <|Reward|>",), seeds=seeds, pixels=pixels(1)))


def test_captioning_reads_only_what_stands_before() -> None:
    captioner = tiny()
    tokenizer = new_tokenizer()
    chats = tokenize(tokenizer, (SHORT, LONG), 16)
    patches, grid = patchify(pixels(2), PatchSpec(area=4096, patch_size=8))
    mask = caption_mask(tokenizer, chats)
    assert mask.sum(1).tolist() == [7, 13]  # the words and the token that ends them
    loss = captioner(chats, patches, grid, mask)
    hidden = captioner.model.hidden_states(chats, patches, grid)
    log_probs = torch.log_softmax(captioner.lm_head(hidden), 2)
    terms = [
        -log_probs[b, i - 1, chats.input_ids[b, i]] for b in range(2) for i in range(len(mask[b])) if bool(mask[b, i])
    ]
    torch.testing.assert_close(loss, torch.stack(terms).mean())
