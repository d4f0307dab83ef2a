"""DiT-Reward: what it reads from the transformer, what its scores depend on, and its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from flowrl.base import embedded
from flowrl.base.errors import CheckpointError
from flowrl.types import RewardInput, TextCondition
from rewards.dit_reward import DiTReward, layout
from rewards.dit_reward.model import LORA_TARGETS, DiTRewardConfig, DiTRewardModel, Mode, sample_noise
from rewards.files import checkpoint_folder
from rewards.training.losses import bradley_terry_loss

LENGTH = 5


def tiny_transformer(num_layers: int = 6, dual: tuple[int, ...] = ()) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=num_layers,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=48,
        caption_projection_dim=32,
        pooled_projection_dim=20,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
        dual_attention_layers=dual,
    )
    return net.requires_grad_(False)


def tiny_config(
    layers: tuple[int, ...] = (1, 3, 5),
    sigmas: tuple[float, ...] = (0.1,),
    text_features: bool = False,
    pooling: str = "mean",
    uncertainty: bool = False,
) -> DiTRewardConfig:
    return DiTRewardConfig(
        layers=layers,
        sigmas=sigmas,
        head_dims=(16, 8),
        text_length=LENGTH,
        latent_space="tiny",
        base="tiny",
        text_features=text_features,
        pooling=pooling,
        uncertainty=uncertainty,
    )


def tiny_model(config: DiTRewardConfig | None = None) -> DiTRewardModel:
    torch.manual_seed(1)
    return DiTRewardModel(tiny_transformer(), config or tiny_config()).eval()


def inputs(batch: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    noise = torch.randn(batch, 4, 8, 8, generator=generator)
    embeds = torch.randn(batch, LENGTH, 48, generator=generator)
    return latents, noise, embeds, torch.randn(batch, 20, generator=generator)


def batch_of(
    latents: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor, seeds: torch.Tensor | None = None
) -> RewardInput:
    return RewardInput(
        prompts=("p",) * len(latents),
        seeds=torch.arange(len(latents)) + 100 if seeds is None else seeds,
        latents=latents,
        condition=TextCondition(embeds=embeds, pooled=pooled),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dit_reward")
    layout.save(tiny_model(), path, dtype=torch.float32)
    return path


def test_taps_are_the_block_outputs_of_the_transformers_own_forward() -> None:
    model = tiny_model()
    latents, noise, embeds, pooled = inputs()
    seen: dict[int, torch.Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _, __, output, i=i: seen.__setitem__(i, output[1]))
        for i, block in enumerate(model.transformer.transformer_blocks)
    ]
    noisy = 0.9 * latents + 0.1 * noise
    model.transformer(
        hidden_states=noisy,
        timestep=torch.full((3,), 100.0),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
    )
    for handle in handles:
        handle.remove()
    taps = model.taps(latents, noise, embeds, pooled, 0.1)
    assert [tap.shape for tap in taps] == [(3, 16, 32)] * 3
    for tap, index in zip(taps, (1, 3, 5), strict=True):
        assert torch.equal(tap, seen[index])
    features = torch.cat([seen[index].mean(1) for index in (1, 3, 5)], 1)
    assert features.shape == (3, 96)
    assert torch.equal(model.features(latents, noise, embeds, pooled, 0.1), features)


def test_nothing_runs_after_the_last_tapped_block() -> None:
    model = tiny_model(tiny_config(layers=(0, 2)))
    ran = []
    for name, module in model.transformer.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(*inputs())
    blocks = {name.split(".")[1] for name in ran if name.startswith("transformer_blocks.")}
    assert blocks == {"0", "1", "2"}
    assert "proj_out" not in ran
    assert "norm_out" not in ran


def test_text_features_add_the_text_tokens_that_enter_each_tap() -> None:
    model = tiny_model(tiny_config(text_features=True))
    taps = model.taps(*inputs(), 0.1)
    assert [tuple(tap.shape) for tap in taps] == [(3, 16, 32)] * 3 + [(3, LENGTH, 32)] * 3
    assert model.head.mlp[0].in_features == 6 * 32


def test_attention_pooling_starts_as_the_mean() -> None:
    mean, attention = tiny_model(), tiny_model(tiny_config(pooling="attention"))
    data = inputs()
    torch.testing.assert_close(mean.features(*data, 0.1), attention.features(*data, 0.1))
    with torch.no_grad():
        attention.head.pools[0].query.weight.fill_(1.0)
    assert not torch.allclose(mean.features(*data, 0.1), attention.features(*data, 0.1))


def test_sigma_zero_reads_the_clean_latents() -> None:
    model = tiny_model(tiny_config(sigmas=(0.0,)))
    latents, noise, embeds, pooled = inputs()
    scores = model(latents, noise, embeds, pooled)
    assert torch.equal(scores, model(latents, torch.zeros_like(noise), embeds, pooled))
    assert not torch.equal(scores, tiny_model()(latents, noise, embeds, pooled))


def test_scores_depend_on_each_samples_own_input_and_seed_alone(folder: Path) -> None:
    latents, _, embeds, pooled = inputs(6)
    reward = DiTReward(str(folder))
    whole = reward(batch_of(latents, embeds, pooled))
    rest = reward(batch_of(latents[4:], embeds[4:], pooled[4:], torch.tensor([104, 105])))
    torch.testing.assert_close(whole[4:], rest, rtol=1e-5, atol=1e-6)
    assert whole.dtype == torch.float32
    assert whole.std() > 1e-3
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = DiTReward(str(folder))(batch_of(latents[order], embeds[order], pooled[order], order + 100))
    torch.testing.assert_close(whole[order], shuffled, rtol=1e-5, atol=1e-6)


def test_scores_are_reproducible_and_the_noise_follows_the_seed(folder: Path) -> None:
    reward = DiTReward(str(folder))
    latents, _, embeds, pooled = inputs()
    again = DiTReward(str(folder))(batch_of(latents, embeds, pooled))
    assert torch.equal(reward(batch_of(latents, embeds, pooled)), again)
    other = reward(batch_of(latents, embeds, pooled, torch.tensor([100, 101, 7])))
    assert torch.equal(other[:2], again[:2])
    assert other[2] != again[2]
    noise = sample_noise(torch.tensor([4, 9]), (4, 8, 8))
    assert torch.equal(noise[1], sample_noise(torch.tensor([9]), (4, 8, 8))[0])
    # The sampler seeds generators with the bare number somewhere; the reward's stream must differ from it.
    assert not torch.equal(noise[0], torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(4)))


def test_one_condition_serves_a_whole_group(folder: Path) -> None:
    reward = DiTReward(str(folder))
    latents, _, embeds, pooled = inputs()
    one = reward(batch_of(latents, embeds[:1], pooled[:1]))
    assert torch.equal(one, reward(batch_of(latents, embeds[:1].expand(3, -1, -1), pooled[:1].expand(3, -1))))


def test_the_gradient_reaches_the_latents(folder: Path) -> None:
    latents, _, embeds, pooled = inputs()
    latents.requires_grad_()
    DiTReward(str(folder))(batch_of(latents, embeds, pooled)).sum().backward()
    assert torch.isfinite(latents.grad).all()
    assert (latents.grad.flatten(1).norm(dim=1) > 1e-6).all()


def test_a_sample_that_is_not_finite_scores_nan_and_spoils_no_other(folder: Path) -> None:
    latents, _, embeds, pooled = inputs()
    clean = DiTReward(str(folder))(batch_of(latents, embeds, pooled))
    latents[1] = torch.nan
    scores = DiTReward(str(folder))(batch_of(latents, embeds, pooled))
    assert torch.isnan(scores).tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("mode", ["full", "lora", "frozen"])
def test_training_learns_a_toy_preference(mode: Mode) -> None:
    model = tiny_model()
    model.train_only(mode, lora_rank=4)
    latents, noise, embeds, pooled = inputs(8)
    better = latents + 0.5
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    backbone = [name for name in names if name.startswith("transformer.")]
    assert all(".lora_" in name for name in backbone) if mode == "lora" else bool(backbone) == (mode == "full")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        scores = model(better, noise, embeds, pooled), model(latents, noise, embeds, pooled)
        loss = bradley_terry_loss(*scores).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0.6 < losses[0] < 0.8  # log 2 before anything is learned
    assert losses[-1] < 0.35


def gradients(model: DiTRewardModel) -> dict[str, float]:
    """The largest gradient of each parameter that has one, when all scores depend on the loss."""
    model(*inputs()).pow(2).sum().backward()
    return {name: float(p.grad.abs().max()) for name, p in model.named_parameters() if p.grad is not None}


LAST_AND_INNER = pytest.mark.parametrize("layers", [(1, 5), (0, 3), (0,)])
WITH_TEXT_OR_NOT = pytest.mark.parametrize("text_features", [False, True])


@LAST_AND_INNER
@WITH_TEXT_OR_NOT
@pytest.mark.parametrize("dual", [(), (0, 1, 3)])
def test_all_that_a_score_depends_on_learns_and_nothing_else(
    layers: tuple[int, ...], text_features: bool, dual: tuple[int, ...]
) -> None:
    config = tiny_config(layers=layers, text_features=text_features)
    everything = DiTRewardModel(tiny_transformer(dual=dual), config)
    everything.requires_grad_(True)
    moved = {name for name, size in gradients(everything).items() if size > 0}
    model = DiTRewardModel(tiny_transformer(dual=dual), config)
    model.train_only("full")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert gradients(model).keys() == learning
    assert learning == moved


@LAST_AND_INNER
@WITH_TEXT_OR_NOT
def test_adapters_stand_wherever_a_score_depends_on_a_target(layers: tuple[int, ...], text_features: bool) -> None:
    config = tiny_config(layers=layers, text_features=text_features)
    everything = DiTRewardModel(tiny_transformer(), config)
    everything.requires_grad_(True)
    moved = {name.removesuffix(".weight") for name, size in gradients(everything).items() if size > 0}
    targets = {name for name in moved if name.endswith(tuple(LORA_TARGETS))}
    model = DiTRewardModel(tiny_transformer(), config)
    model.train_only("lora", lora_rank=4)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    adapters = {name for name in learning if ".lora_" in name}
    assert {name.partition(".lora_")[0] for name in adapters} == targets
    assert learning - adapters == {name for name, _ in model.named_parameters() if name.startswith("head.")}
    found = gradients(model)
    assert found.keys() == learning
    assert all(found[name] > 0 for name in adapters if ".lora_B." in name)  # A has none while B is zero


def test_a_frozen_backbone_gets_no_gradient() -> None:
    model = tiny_model()
    model.train_only("frozen")
    assert all(name.startswith("head.") for name in gradients(model))
    with pytest.raises(ValueError, match=r"mode must be frozen, lora or full, got 'half'"):
        model.train_only("half")  # type: ignore[arg-type]


def test_outputs_at_several_noise_levels_are_averaged() -> None:
    several = tiny_model(tiny_config(sigmas=(0.0, 0.1, 0.4)))
    levels = [tiny_model(tiny_config(sigmas=(sigma,)))(*inputs()) for sigma in (0.0, 0.1, 0.4)]
    torch.testing.assert_close(several(*inputs()), torch.stack(levels).mean(0))
    assert not torch.allclose(levels[0], levels[2], atol=1e-4)


def test_a_score_with_its_spread_has_two_outputs_and_the_reward_reads_the_first(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(uncertainty=True))
    latents, _, embeds, pooled = inputs()
    seeds = torch.tensor([5, 6, 7])
    outputs = model(latents, sample_noise(seeds, (4, 8, 8)), embeds, pooled)
    assert outputs.shape == (3, 2)
    assert tiny_model()(*inputs()).shape == (3, 1)
    layout.save(model, tmp_path, dtype=torch.float32)
    reward = DiTReward(str(tmp_path))
    assert reward.config.uncertainty
    torch.testing.assert_close(reward(batch_of(latents, embeds, pooled, seeds)), outputs[:, 0])


def test_gradient_checkpointing_changes_no_number() -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny_model()
        model.train_only("full")
        model.gradient_checkpointing = checkpointing
        model(*inputs()).sum().backward()
        found.append(model.transformer.transformer_blocks[0].attn.to_q.weight.grad)
    torch.testing.assert_close(found[0], found[1])


def test_a_saved_folder_gives_the_same_scores(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(text_features=True, pooling="attention"))
    layout.save(model, tmp_path, dtype=torch.float32, shard_size="100KB")
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert "latent" in (tmp_path / "README.md").read_text()
    loaded = DiTReward(path=str(tmp_path)).module
    assert loaded.config == model.config
    assert torch.equal(loaded(*inputs()), model(*inputs()))
    assert not any(p.requires_grad for p in loaded.parameters())
    half = DiTReward(path=str(tmp_path), dtype="bfloat16").module
    assert half.transformer.pos_embed.proj.weight.dtype == torch.bfloat16
    assert half(*inputs()).dtype == torch.float32


def test_diffusers_reads_the_transformer_of_the_folder(folder: Path) -> None:
    net = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    assert torch.equal(net.proj_out.weight, tiny_model().transformer.proj_out.weight)


def test_a_lora_is_merged_when_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.train_only("lora", lora_rank=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(3))
    layout.save(model, tmp_path, dtype=torch.float32)
    loaded = DiTReward(path=str(tmp_path)).module
    torch.testing.assert_close(loaded(*inputs()), model(*inputs()).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(loaded(*inputs()), tiny_model()(*inputs()).detach(), atol=1e-3)


def test_what_no_score_depends_on_is_not_loaded(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(layers=(0,)))
    assert len(model.transformer.transformer_blocks) > 1
    layout.save(model, tmp_path, dtype=torch.float32)
    loaded = DiTReward(path=str(tmp_path)).module
    assert torch.equal(loaded(*inputs()), model(*inputs()))
    kept = {key.removeprefix("transformer.").partition(".")[0] for key in loaded.state_dict() if "head." not in key}
    assert kept == {"pos_embed", "time_text_embed", "context_embedder", "transformer_blocks"}
    assert len(loaded.transformer.transformer_blocks) == 1


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_folders_that_are_no_dit_reward_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no/such: no such folder; give a dit_reward checkpoint folder"):
        DiTReward("no/such")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"\(a diffusers pipeline\) is not a DiT-Reward folder"):
        DiTReward(str(tmp_path))
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match=r"does not say format 'dit_reward'"):
        DiTReward(str(tmp_path))


def test_damaged_folders_name_the_file(folder: Path, tmp_path: Path) -> None:
    copy = _copy(folder, tmp_path / "a")
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors: truncated"):
        DiTReward(str(copy))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors: this file is missing"):
        DiTReward(str(copy))
    weights.write_bytes(whole)
    head = copy / "reward_head.safetensors"
    head.write_bytes(weights.read_bytes())
    with pytest.raises(CheckpointError, match=r"reward_head.safetensors: its tensors are not those of the model"):
        DiTReward(str(copy))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"layers": [1, 9]}))
    head.write_bytes((folder / "reward_head.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"layers \(1, 9\) do not exist in a transformer of 6 blocks"):
        DiTReward(str(copy))
    (copy / "config.json").write_text(json.dumps({**settings, "sigma": 1}))
    with pytest.raises(CheckpointError, match=r"unknown keys \['sigma'\]"):
        DiTReward(str(copy))


def test_input_that_does_not_fit_is_refused(folder: Path) -> None:
    reward = DiTReward(str(folder))
    latents, _, embeds, pooled = inputs()
    with pytest.raises(ValueError, match=r"latents of 4 channels in the space 'tiny', got latents \[3, 16, 8, 8\]"):
        reward(batch_of(torch.zeros(3, 16, 8, 8), embeds, pooled))
    with pytest.raises(ValueError, match=r"reads texts of 5 tokens, got 7"):
        reward(batch_of(latents, torch.zeros(3, 7, 48), pooled))
    with pytest.raises(ValueError, match=r"must hold latents and their text condition"):
        reward(RewardInput(prompts=("p",), seeds=torch.tensor([1]), pixels=torch.zeros(1, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got 'int8'"):
        DiTReward(str(folder), dtype="int8")
    side = 2 * tiny_transformer().config.pos_embed_max_size
    assert reward(batch_of(torch.zeros(3, 4, side, side), embeds, pooled)).shape == (3,)
    with pytest.raises(
        ValueError, match=rf"^dit_reward has positions for latents of at most {side} x {side}, got latents of 8 x "
    ):
        reward(batch_of(torch.zeros(3, 4, side + 2, 8), embeds, pooled))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (3, 1)}, r"layers must be ascending"),
        ({"layers": (-1, 3)}, r"layers must be ascending"),
        ({"layers": ()}, r"layers must be ascending"),
        ({"sigmas": (1.0,)}, r"sigmas must be ascending noise levels in \[0, 1\), got \(1.0,\)"),
        ({"sigmas": (0.2, 0.1)}, r"sigmas must be ascending"),
        ({"sigmas": (0.1, 0.1)}, r"sigmas must be ascending"),
        ({"sigmas": (-0.1, 0.1)}, r"sigmas must be ascending"),
        ({"sigmas": ()}, r"sigmas must be ascending"),
        ({"head_dims": (16, 0)}, r"head_dims must be positive widths"),
        ({"activation": "relu"}, r"activation must be one of \['gelu', 'silu'\]"),
        ({"pooling": "max"}, r"pooling must be mean or attention"),
        ({"text_length": 0}, r"text_length must be at least 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTRewardConfig(**{"text_length": 3, **change})


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        net = SD3Transformer2DModel(
            sample_size=128,
            num_layers=38,
            num_attention_heads=38,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=2432,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
        )
        model = DiTRewardModel(net, DiTRewardConfig(text_length=333, feature_norm=False))
    assert sum(p.numel() for p in net.parameters()) == 8_056_627_520
    shapes = [tuple(layer.weight.shape) for layer in model.head.mlp if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(1536, 9728), (512, 1536), (1, 512)]
    assert round(sum(p.numel() for p in model.head.parameters()) / 1e6, 1) == 15.7


def test_the_pocket_name_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED", tmp_path)
    with pytest.raises(CheckpointError, match=r"'dit_reward' is missing or not whole; run `flowrl pocket build`"):
        checkpoint_folder("pocket", "dit_reward")
