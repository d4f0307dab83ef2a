"""DiNa-LRM: its published layout, its score against a plain computation, its published sizes, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from peft import PeftModel
from safetensors.torch import load_file, save_file

from flowrl.base.errors import CheckpointError
from flowrl.config import ConfigError, RewardSpec
from flowrl.core.seeds import generator
from flowrl.reward_loading import preflight
from flowrl.reward_protocols import CheckableReward, ShardableReward
from flowrl.types import RewardInput, TextCondition, TrainedOn
from rewards.dina_lrm import DiNaLRM
from rewards.dina_lrm.head import RewardHead
from rewards.dina_lrm.model import Backbone, nearest_level, sample_noise
from rewards.lora_files import LoraSettings, lora_shapes
from tests.published import dina_lrm as published

Tensors = dict[str, torch.Tensor]
LORA = Path("dina") / "checkpoint" / "backbone_lora"
HEAD = Path("dina") / "checkpoint" / "rm_head.pt"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# sigma = 3 t / (1 + 2 t) with t of 1 to 1000 thousandths: those nearest to u = 0.4, 0.2, 0.5 and 0.7.
SIGMAS = {0.4: 0.546 / 1.364, 0.2: 0.231 / 1.154, 0.5: 0.5, 0.7: 1.314 / 1.876}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published")
    published.write(path)
    return path


def options(folder: Path) -> dict[str, str]:
    return {"path": str(folder / "dina"), "base": str(folder / "base")}


def batch_of(size: int = 5, *, channels: int = published.CHANNELS) -> RewardInput:
    random = torch.Generator().manual_seed(2)
    return RewardInput(
        prompts=("p",) * size,
        seeds=torch.arange(size) + 100,
        latents=torch.randn(size, channels, 8, 6, generator=random),
        condition=TextCondition(
            embeds=torch.randn(size, 7, published.TEXT_DIM, generator=random),
            pooled=torch.randn(size, published.POOLED_DIM, generator=random),
        ),
    )


def rows(batch: RewardInput, chosen: list[int]) -> RewardInput:
    return RewardInput(
        prompts=("p",) * len(chosen),
        seeds=batch.seeds[chosen],
        latents=batch.latents[chosen],
        condition=TextCondition(embeds=batch.condition.embeds[chosen], pooled=batch.condition.pooled[chosen]),
    )


def linear(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def rms_norm(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * tensors[f"{name}.weight"]


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int = 8) -> torch.Tensor:
    size = query.shape[-1] // num_heads
    parts = [slice(size * head, size * (head + 1)) for head in range(num_heads)]
    weights = [(query[..., part] @ key[..., part].mT / size**0.5).softmax(-1) for part in parts]
    return torch.cat([weight @ value[..., part] for weight, part in zip(weights, parts, strict=True)], -1)


def plain_tokens(kind: str, taps: list[torch.Tensor], temb: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    narrow = []
    for i, tokens in enumerate(taps):
        name = f"layer_adapters_{kind}.{i}"
        style = linear(F.silu(linear(temb, tensors, f"{name}.cond_mlp.0")), tensors, f"{name}.cond_mlp.2")
        gamma, beta = style[:, None, : published.WIDTH], style[:, None, published.WIDTH :]
        narrow.append(linear(tokens * (1 + gamma) + beta + tensors[f"{name}.layer_embed"], tensors, f"{name}.proj"))
    return linear(torch.cat(narrow, -1), tensors, f"agg_{kind}")


def plain_head(image: torch.Tensor, text: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    def gate(tokens: torch.Tensor, name: str) -> torch.Tensor:
        return linear(F.silu(linear(tokens, tensors, f"{name}.0")), tensors, f"{name}.2").sigmoid()

    queries = tensors["query_tokens"].repeat(len(image), 1, 1)
    query = linear(rms_norm(queries, tensors, "attn1.norm_q"), tensors, "attn1.to_q")
    read = torch.zeros_like(query)
    for tokens, norm, end in ((image, "norm_v", "vis"), (text, "norm_t", "text")):
        normed = rms_norm(tokens, tensors, f"attn1.{norm}")
        value = linear(normed, tensors, f"attn1.to_v_{end}") * gate(normed, f"attn1.gate_{end}")
        read += attention(query, linear(normed, tensors, f"attn1.to_k_{end}"), value)
    queries = queries + linear(read, tensors, "attn1.to_out.0")
    query = linear(rms_norm(queries, tensors, "attn2.norm_q"), tensors, "attn2.to_q")
    normed = rms_norm(image, tensors, "attn2.norm_v")
    key, value = linear(normed, tensors, "attn2.to_k_vis"), linear(normed, tensors, "attn2.to_v_vis")
    queries = queries + linear(attention(query, key, value), tensors, "attn2.to_out.0")
    hidden = F.gelu(linear(rms_norm(queries, tensors, "norm_ff"), tensors, "ff.0"))
    return linear(queries + linear(hidden, tensors, "ff.2"), tensors, "head").mean((1, 2))


def plain_score(folder: Path, batch: RewardInput, levels: list[float]) -> torch.Tensor:
    """The whole transformer with peft's own LoRA, read by hooks, and the head written out; levels are sigmas."""
    whole = SD3Transformer2DModel.from_pretrained(folder / "base" / "transformer")
    net = PeftModel.from_pretrained(whole, folder / LORA)
    seen: dict[int | str, object] = {}
    handles = [
        block.register_forward_hook(lambda _, __, output, i=i: seen.__setitem__(i, output))
        for i, block in enumerate(whole.transformer_blocks, 1)
    ]
    handles.append(whole.time_text_embed.register_forward_hook(lambda _, __, out: seen.__setitem__("temb", out)))
    tensors = torch.load(folder / HEAD)
    shape = batch.latents.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=generator(seed, "dina_lrm")) for seed in batch.seeds.tolist()])
    image, text = [], []
    for sigma in levels:
        with torch.no_grad():
            net(
                hidden_states=(1 - sigma) * batch.latents + sigma * noise,
                timestep=torch.full((len(noise),), 1000 * sigma),
                encoder_hidden_states=batch.condition.embeds,
                pooled_projections=batch.condition.pooled,
            )
        image.append(plain_tokens("visual", [seen[i][1] for i in (4, 8, 12)], seen["temb"], tensors))
        text.append(plain_tokens("text", [seen[i][0] for i in (4, 8, 12)], seen["temb"], tensors))
    return plain_head(torch.cat(image, 1), torch.cat(text, 1), tensors)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # of the blocks after the twelfth
@pytest.mark.parametrize("u", [0.4, [0.2, 0.5, 0.7]])
def test_scores_are_those_of_a_plain_computation(folder: Path, u: float | list[float]) -> None:
    scores = DiNaLRM(**options(folder), u=u)(batch_of())
    levels = [SIGMAS[level] for level in (u if isinstance(u, list) else [u])]
    assert scores.dtype == torch.float32
    assert scores.std() > 0.1
    torch.testing.assert_close(scores, plain_score(folder, batch_of(), levels), rtol=1e-4, atol=1e-4)


def test_noise_levels_are_the_nearest_of_the_shifted_schedule() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    for u, sigma in (SIGMAS | {0.0: 0.003 / 1.002, 1.0: 1.0}).items():
        level = nearest_level(u, scheduler)
        assert level.sigma == pytest.approx(sigma, rel=1e-6)
        assert level.timestep == pytest.approx(1000 * sigma, rel=1e-6)
    unshifted = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    assert nearest_level(0.4004, unshifted).sigma == pytest.approx(0.4)


def test_one_level_in_a_list_is_that_level(folder: Path) -> None:
    alone = DiNaLRM(**options(folder), u=0.5)(batch_of())
    assert torch.equal(alone, DiNaLRM(**options(folder), u=[0.5])(batch_of()))
    assert not torch.allclose(alone, DiNaLRM(**options(folder), u=[0.5, 0.2])(batch_of()), atol=1e-2)


def test_calibration_maps_minus_ten_to_ten_onto_zero_to_two(folder: Path) -> None:
    raw = DiNaLRM(**options(folder))(batch_of())
    torch.testing.assert_close(DiNaLRM(**options(folder), calibrated=True)(batch_of()), raw / 10 + 1)


def test_nothing_runs_after_the_last_tapped_block(folder: Path) -> None:
    reward = DiNaLRM(**options(folder))
    ran: list[str] = []
    for name, module in reward.module.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    reward(batch_of())
    assert {name.split(".")[2] for name in ran if "transformer_blocks." in name} == {str(i) for i in range(12)}
    assert not [name for name in ran if "norm_out" in name or "proj_out" in name]
    assert "backbone.transformer_blocks.11.ff_context" in ran  # the text tokens of the last tap


def test_what_comes_after_the_last_tap_is_not_read(folder: Path, tmp_path: Path) -> None:
    published.write(tmp_path)
    file = tmp_path / "base" / "transformer" / WEIGHTS
    late = ("transformer_blocks.12.", "transformer_blocks.13.", "norm_out.", "proj_out.")
    kept = {key: value for key, value in load_file(file).items() if not key.startswith(late)}
    save_file(kept, file)
    reward = DiNaLRM(**options(tmp_path))
    assert torch.equal(reward(batch_of()), DiNaLRM(**options(folder))(batch_of()))
    assert {f"backbone.{key}" for key in kept} == {key for key in reward.module.state_dict() if "backbone." in key}


def test_a_base_in_several_files_is_read_whole(folder: Path, tmp_path: Path) -> None:
    published.write(tmp_path)
    transformer = tmp_path / "base" / "transformer"
    net = SD3Transformer2DModel.from_pretrained(transformer)
    (transformer / WEIGHTS).unlink()
    net.save_pretrained(transformer, max_shard_size="100KB")
    assert (transformer / f"{WEIGHTS}.index.json").is_file()
    assert torch.equal(DiNaLRM(**options(tmp_path))(batch_of()), DiNaLRM(**options(folder))(batch_of()))


def test_scores_depend_on_each_samples_own_input_and_seed_alone(folder: Path) -> None:
    reward = DiNaLRM(**options(folder))
    batch = batch_of()
    state = torch.get_rng_state()
    whole = reward(batch)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(whole, DiNaLRM(**options(folder))(batch))
    for chosen in ([2, 0, 4, 1, 3], [1], [3, 2]):
        torch.testing.assert_close(reward(rows(batch, chosen)), whole[chosen], rtol=1e-4, atol=1e-4)
    other = RewardInput(prompts=batch.prompts, seeds=batch.seeds + 1, latents=batch.latents, condition=batch.condition)
    assert not torch.allclose(reward(other), whole, atol=1e-2)


def test_the_noise_is_a_stream_of_its_own() -> None:
    noise = sample_noise(torch.tensor([4, 9]), (16, 8, 8))
    assert torch.equal(noise[1], sample_noise(torch.tensor([9]), (16, 8, 8))[0])
    assert not torch.equal(noise[0], torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(4)))
    assert abs(noise.std().item() - 1) < 0.1


def test_one_condition_serves_a_whole_group(folder: Path) -> None:
    batch = rows(batch_of(), [0, 0, 0])
    one = TextCondition(embeds=batch.condition.embeds[:1], pooled=batch.condition.pooled[:1])
    group = RewardInput(prompts=batch.prompts, seeds=batch.seeds, latents=batch.latents, condition=one)
    reward = DiNaLRM(**options(folder))
    assert torch.equal(reward(group), reward(batch))


def test_the_gradient_reaches_the_latents(folder: Path) -> None:
    batch = batch_of()
    batch.latents.requires_grad_()
    DiNaLRM(**options(folder), u=[0.2, 0.5])(batch).sum().backward()
    assert torch.isfinite(batch.latents.grad).all()
    assert (batch.latents.grad.flatten(1).norm(dim=1) > 1e-4).all()


def test_it_fits_the_protocols_and_knows_its_latents(folder: Path) -> None:
    reward = DiNaLRM(**options(folder))
    assert isinstance(reward, ShardableReward)
    assert isinstance(DiNaLRM, CheckableReward)
    assert reward.latent_space == "vae16x8-scale1.5305-shift0.0609"
    space = "vae16x8-scale1.5305-shift0.0609"
    assert preflight(RewardSpec(name="dina_lrm", options=options(folder))) == TrainedOn(latent_space=space)
    demanding = RewardSpec(name="dina_lrm", options={**options(folder), "text_length": 205})
    assert preflight(demanding) == TrainedOn(latent_space=space, text_length=205)
    assert not any(parameter.requires_grad for parameter in reward.module.parameters())
    assert DiNaLRM(**options(folder), dtype="bfloat16")(batch_of()).dtype == torch.float32


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        net = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            qk_norm="rms_norm",
            dual_attention_layers=tuple(range(13)),
        )
        backbone, head = Backbone(net, 12), RewardHead(1536, 3)
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_243_171_520
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 1_232_739_840
    assert sum(parameter.numel() for parameter in head.parameters()) == 139_296_003
    assert {key: tuple(value.shape) for key, value in head.state_dict().items()} == published.head_shapes(1536)
    settings = LoraSettings(rank=64, alpha=128, targets=tuple(published.TARGETS))
    shapes = lora_shapes(backbone, settings)
    assert shapes == published.lora_shapes(1536, 64)
    assert len(shapes) == 288  # A and B of 12 layers in each of 12 blocks
    assert sum(rows * columns for rows, columns in shapes.values()) == 28_311_552


def test_the_head_starts_without_modulation_and_with_half_open_gates() -> None:
    torch.manual_seed(0)
    head = RewardHead(16, 1)
    tokens, temb = torch.randn(2, 5, 16), torch.randn(2, 16)
    adapter = head.layer_adapters_visual[0]
    assert torch.equal(adapter(tokens, temb), adapter.proj(tokens + adapter.layer_embed))
    assert torch.equal(head.attn1.gate_text(tokens).sigmoid(), torch.full((2, 5, 1), 0.5))


def edit_json(path: Path, *keys: str, value: object) -> None:
    settings = json.loads(path.read_text())
    inner = settings
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(settings))


def edit_tensors(path: Path, change: Callable[[Tensors], object]) -> None:
    is_torch = path.suffix == ".pt"
    tensors = torch.load(path) if is_torch else load_file(path)
    change(tensors)
    if is_torch:
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


BLOCK = "transformer_blocks.3.attn2.to_out.0"
ADAPTER = LORA / "adapter_model.safetensors"
BASE = Path("base") / "transformer" / WEIGHTS


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (HEAD, lambda t: t.pop("attn1.gate_text.2.bias"), r"rm_head.pt: .* missing attn1.gate_text.2.bias"),
        (HEAD, lambda t: t.update({"proj_in.bias": torch.ones(1)}), r"rm_head.pt: .* unexpected proj_in.bias"),
        (HEAD, lambda t: t.update({"head.bias": torch.ones(2)}), r"head.bias must have shape \[1\], got \[2\]"),
        (
            ADAPTER,
            lambda t: t.pop(f"base_model.model.{BLOCK}.lora_B.weight"),
            rf"adapter_model.safetensors: .*{BLOCK}.lora_B.weight must be \(16, 4\), is missing",
        ),
        (ADAPTER, lambda t: t.update({"a.lora_A.weight": torch.ones(1)}), r"a.lora_A.weight must be absent, is \(1,\)"),
        (BASE, lambda t: t.pop("context_embedder.bias"), r"transformer: .* missing context_embedder.bias"),
        (BASE, lambda t: t.update({"guidance.bias": torch.ones(1)}), r"transformer: .* unexpected guidance.bias"),
    ],
)
def test_a_missing_or_extra_tensor_is_named(
    tmp_path: Path, file: Path, change: Callable[[Tensors], object], message: str
) -> None:
    published.write(tmp_path)
    edit_tensors(tmp_path / file, change)
    with pytest.raises(CheckpointError, match=message):
        DiNaLRM(**options(tmp_path))


@pytest.mark.parametrize("file", [HEAD, ADAPTER, BASE])
def test_a_torn_file_is_named_before_anything_is_loaded(tmp_path: Path, file: Path) -> None:
    published.write(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=rf"{file.name}: (truncated|cut off)"):
        preflight(RewardSpec(name="dina_lrm", options=options(tmp_path)))
    (tmp_path / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file.name}: this file is missing"):
        DiNaLRM(**options(tmp_path))


CONFIG = Path("dina") / "config.json"
LORA_CONFIG = LORA / "adapter_config.json"
BASE_CONFIG = Path("base") / "transformer" / "config.json"
SCHEDULER = Path("base") / "scheduler" / "scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        (CONFIG, ["model"], {}, r"is not a DiNa-LRM folder: its config.json has no model.visual_head_idx"),
        (CONFIG, ["model", "use_logistic"], True, r"model.use_logistic must be False, as in the published DiNa-LRM"),
        (CONFIG, ["model", "reward_head", "use_proj_in"], True, r"model.reward_head.use_proj_in must be False"),
        (CONFIG, ["model", "reward_head"], [], r"model.reward_head must be an object, got list"),
        (CONFIG, ["model", "reward_head", "num_attn_heads"], 5, r"multiple of 4 and of num_heads 5, got 16"),
        (CONFIG, ["training", "add_noise"], False, r"training.add_noise must be True"),
        (CONFIG, ["model", "text_head_idx"], [4, 8], r"visual_head_idx must be text_head_idx and end with"),
        (CONFIG, ["model", "num_transformer_layers"], 16, r"end with num_transformer_layers, got \[4, 8, 12\], .* 16"),
        (LORA_CONFIG, ["use_dora"], True, r"adapter_config.json: use_dora must be False"),
        (LORA_CONFIG, ["alpha_pattern"], {"to_q": 1}, r"alpha_pattern must be empty"),
        (LORA_CONFIG, ["r"], None, r"r and lora_alpha must be numbers"),
        (BASE_CONFIG, ["_class_name"], "FluxTransformer2DModel", r"expected _class_name SD3Transformer2DModel, got"),
        (BASE_CONFIG, ["num_layers"], 12, r"the base has 12 blocks, more than 12 are needed"),
        (SCHEDULER, ["use_dynamic_shifting"], True, r"scheduler_config.json: expected a FlowMatchEulerDiscrete"),
        (Path("base") / "vae" / "config.json", ["shift_factor"], None, r"vae/config.json: not the VAE of Stable"),
    ],
)
def test_settings_that_would_give_other_scores_are_refused(
    tmp_path: Path, file: Path, keys: list[str], value: object, message: str
) -> None:
    published.write(tmp_path)
    edit_json(tmp_path / file, *keys, value=value)
    with pytest.raises(CheckpointError, match=message):
        DiNaLRM(**options(tmp_path))


def test_folders_of_another_kind_are_named(folder: Path) -> None:
    there = options(folder)
    with pytest.raises(CheckpointError, match=r"no/such: no such folder; give a DiNa-LRM folder"):
        DiNaLRM(**there | {"path": "no/such"})
    with pytest.raises(CheckpointError, match=r"no/such: no such folder; give a Stable Diffusion 3.5 Medium folder"):
        DiNaLRM(**there | {"base": "no/such"})
    with pytest.raises(CheckpointError, match=r"base is not a DiNa-LRM folder: it has no config.json"):
        DiNaLRM(**there | {"path": there["base"]})
    with pytest.raises(
        CheckpointError, match=r"dina is not a Stable Diffusion 3.5 Medium folder: it has no transformer"
    ):
        DiNaLRM(**there | {"base": there["path"]})


def test_input_that_does_not_fit_is_refused(folder: Path) -> None:
    reward = DiNaLRM(**options(folder), text_length=7)
    assert reward(batch_of()).shape == (5,)
    with pytest.raises(
        ValueError, match=r"latents of 16 channels in the space 'vae16x8.*', got latents \[5, 4, 8, 6\]"
    ):
        reward(batch_of(channels=4))
    with pytest.raises(ValueError, match=r"must hold latents and their text condition"):
        reward(RewardInput(prompts=("p",), seeds=torch.tensor([1]), pixels=torch.zeros(1, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"reads texts of 205 tokens, got 7"):
        DiNaLRM(**options(folder), text_length=205)(batch_of())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"u": 1.5}, r"u must be a number in \[0, 1\] or a list of such numbers, got 1.5"),
        ({"u": []}, r"u must be .*, got \[\]"),
        ({"u": "0.4"}, r"u must be .*, got '0.4'"),
        ({"text_length": -1}, r"text_length must be at least 0"),
        ({"dtype": "int8"}, r"dtype .*must be one of .*, got 'int8'"),
    ],
)
def test_options_that_cannot_be_are_refused(folder: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiNaLRM(**options(folder), **wrong)
    with pytest.raises(ConfigError, match=message):
        preflight(RewardSpec(name="dina_lrm", options=options(folder) | wrong))
