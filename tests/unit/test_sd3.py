"""The SD3 policy: guidance, gradients, its pipeline's own images, and folders that cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from flowrl.core.sampler import sample
from flowrl.models.sd3 import SD3, CheckpointError, SD3Policy
from flowrl.types import Prompt, RolloutRequest, SamplingPlan
from tests import tiny

CPU = torch.device("cpu")
TEXT = tiny.TEXTS[4]


def latents(batch: int = 3, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, *tiny.SHAPE, generator=torch.Generator().manual_seed(seed))


def images_of_policy(folder: Path, policy: SD3Policy, num_steps: int) -> torch.Tensor:
    condition, negative = tiny.conditions(folder, TEXT, "")
    plan = SamplingPlan(kinds=("ode",) * num_steps, noise_level=0.0, start=0, stop=0)
    request = RolloutRequest(
        prompt=Prompt(id=4, text=TEXT), seed=0, step=-1, num_samples=3, plan=plan, guidance_scale=4.5
    )
    group = sample(policy, request, condition, negative, policy_version=0, samples_per_forward=3, device=CPU)
    return SD3.load_decoder(folder, device="cpu").decode(group.final_latents)


def images_of_pipeline(pipeline: StableDiffusion3Pipeline, num_steps: int) -> torch.Tensor:
    from flowrl.core import seeds

    pipeline.set_progress_bar_config(disable=True)
    noise = seeds.initial_noise(seeds.sample_seeds(0, -1, 4, 3), tiny.SHAPE)
    return pipeline(
        [TEXT] * 3,
        latents=noise,
        num_inference_steps=num_steps,
        guidance_scale=4.5,
        height=tiny.IMAGE_SIZE,
        width=tiny.IMAGE_SIZE,
        max_sequence_length=14,
        output_type="pt",
    ).images


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_ode_samples_are_the_images_of_the_diffusers_pipeline(sd3_folder: Path, num_steps: int) -> None:
    expected = images_of_pipeline(StableDiffusion3Pipeline.from_pretrained(sd3_folder), num_steps)
    found = images_of_policy(sd3_folder, tiny.bare_policy(sd3_folder), num_steps)
    assert found.shape == (3, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    assert expected.std() > 0.05
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_exported_adapter_gives_the_same_images_in_the_diffusers_pipeline(
    sd3_folder: Path, policy: SD3Policy, tmp_path: Path
) -> None:
    tiny.perturb(policy).save_adapter(tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder)
    untrained = images_of_pipeline(pipeline, 4)
    pipeline.load_lora_weights(tmp_path)
    found = images_of_pipeline(pipeline, 4)
    assert torch.allclose(images_of_policy(sd3_folder, policy, 4), found, atol=1e-5)
    assert (found - untrained).abs().max() > 0.05


@pytest.mark.parametrize("guidance_scale", [4.5, 0.5, 0.0])
def test_guidance_is_the_formula_on_two_separate_forwards(policy: SD3Policy, guidance_scale: float) -> None:
    tiny.perturb(policy)
    condition, negative = tiny.random_condition(1), tiny.random_condition(2)
    x, sigma = latents(), torch.tensor(0.7)
    conditional = policy.velocity(x, sigma, condition, negative, 1.0)
    unconditional = policy.velocity(x, sigma, negative, condition, 1.0)
    expected = unconditional + guidance_scale * (conditional - unconditional)
    assert torch.allclose(policy.velocity(x, sigma, condition, negative, guidance_scale), expected, atol=2e-5)


def test_without_guidance_the_negative_prompt_is_not_computed(policy: SD3Policy) -> None:
    sizes = []
    policy.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    for guidance_scale in (1.0, 4.5):
        policy.velocity(
            latents(), torch.tensor(0.7), tiny.random_condition(1), tiny.random_condition(2), guidance_scale
        )
    assert sizes == [3, 6]


def test_the_gradient_reaches_the_adapter_through_both_branches_of_the_guidance(policy: SD3Policy) -> None:
    tiny.perturb(policy)
    negative = tiny.random_condition(2)
    negative.embeds.requires_grad_()
    condition = tiny.random_condition(1)
    condition.embeds.requires_grad_()
    velocity = policy.velocity(latents(), torch.tensor(0.7), condition, negative, 4.5)
    of_negative, of_condition = torch.autograd.grad(velocity.square().sum(), [negative.embeds, condition.embeds])
    assert of_negative.abs().max() > 0
    assert of_condition.abs().max() > 0


def test_the_gradient_is_that_of_the_formula_with_nothing_detached(policy: SD3Policy) -> None:
    tiny.perturb(policy)
    parameters = [parameter for _, parameter in policy.trainable()]
    condition, negative = tiny.random_condition(1), tiny.random_condition(2)
    x, sigma = latents(), torch.tensor(0.7)
    found = torch.autograd.grad(policy.velocity(x, sigma, condition, negative, 4.5).square().mean(), parameters)
    conditional = policy.velocity(x, sigma, condition, negative, 1.0)
    unconditional = policy.velocity(x, sigma, negative, condition, 1.0)
    combined = unconditional + 4.5 * (conditional - unconditional)
    expected = torch.autograd.grad(combined.square().mean(), parameters)
    detached = torch.autograd.grad(
        (unconditional.detach() * (1 - 4.5) + 4.5 * policy.velocity(x, sigma, condition, negative, 1.0))
        .square()
        .mean(),
        parameters,
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
    assert max((one - other).abs().max() for one, other in zip(found, detached, strict=True)) > 1e-2


@pytest.mark.parametrize("num_steps", [4, 10])
def test_the_network_sees_the_schedulers_float_timesteps(policy: SD3Policy, num_steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    seen: list[torch.Tensor] = []
    policy.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
    )
    tiny.trajectory(policy, plan=tiny.sde_plan(num_steps=num_steps))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(num_steps)
    assert [step.unique().item() for step in seen] == scheduler.timesteps.tolist()
    assert seen[1].unique().item() != int(seen[1].unique().item())


def test_an_encoded_text_is_what_the_pipeline_encodes_and_the_negative_is_the_empty_prompt(sd3_folder: Path) -> None:
    [condition, negative] = tiny.conditions(sd3_folder, TEXT, "")
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder)
    with torch.no_grad():
        embeds, negative_embeds, pooled, negative_pooled = pipeline.encode_prompt(
            TEXT, None, None, do_classifier_free_guidance=True, max_sequence_length=14
        )
    assert torch.equal(condition.embeds, embeds)
    assert torch.equal(condition.pooled, pooled)
    assert torch.equal(negative.embeds, negative_embeds)
    assert torch.equal(negative.pooled, negative_pooled)


def test_the_latent_space_is_named_after_the_vae(sd3_folder: Path) -> None:
    assert SD3.latent_space(sd3_folder) == "vae16x8-scale1.5305-shift0.0609"
    assert tiny.bare_policy(sd3_folder).latent_shape == tiny.SHAPE


@pytest.mark.parametrize("missing", ["model_index.json", "transformer/config.json", "vae/config.json"])
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_loaded(
    sd3_folder: Path, tmp_path: Path, missing: str
) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=rf"^/.*copy is not a Stable Diffusion 3 folder: {missing} is"):
        SD3.check(folder)


@pytest.mark.parametrize("size", [24, 80], ids=["not whole patches", "beyond the position embedding"])
def test_an_image_size_that_the_transformer_cannot_have_is_refused(sd3_folder: Path, size: int) -> None:
    with pytest.raises(CheckpointError, match=f"multiple of 16 and at most 64 for .*, got {size}"):
        SD3.load_policy(sd3_folder, image_size=size, dtype=torch.float32, device="cpu")


def test_a_schedule_with_dynamic_shifting_is_refused(sd3_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dynamic_shifting": True}))
    with pytest.raises(CheckpointError, match="use_dynamic_shifting is true"):
        SD3.load_policy(folder, image_size=tiny.IMAGE_SIZE, dtype=torch.float32, device="cpu")


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(("harm", "says"), [(Path.unlink, "diffusion_pytorch_model"), (_truncate, "transformer")])
def test_weights_that_are_missing_or_torn_are_an_error_that_names_them(
    sd3_folder: Path, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    harm(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        SD3.check(folder)


def _load(folder: Path, part: str) -> object:
    if part == "transformer":
        return tiny.bare_policy(folder)
    return SD3.load_decoder(folder, device="cpu") if part == "vae" else tiny.conditions(folder, TEXT)


PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def _rewrite(folder: Path, harm: Callable[[dict[str, torch.Tensor]], None]) -> None:
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    harm(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("fault", ["missing", "misshapen", "unknown"])
def test_weights_that_are_not_those_of_the_network_are_never_made_up(
    sd3_folder: Path, tmp_path: Path, part: str, fault: str
) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    harmed = []

    def harm(tensors: dict[str, torch.Tensor]) -> None:
        key = min(key for key in tensors if tensors[key].ndim == 2)
        harmed.append("zzz.weight" if fault == "unknown" else key)
        weight = tensors.pop(key) if fault != "unknown" else torch.zeros(2)
        if fault != "missing":
            tensors[harmed[0]] = weight[:-1].contiguous() if fault == "misshapen" else weight

    _rewrite(folder / part, harm)
    if part in ("transformer", "vae"):  # found in the headers, before anything is loaded
        with pytest.raises(CheckpointError, match=rf"{part}: .*{harmed[0]}"):
            SD3.check(folder)
    with pytest.raises(CheckpointError) as caught:
        _load(folder, part)
    words = {
        "missing": f"missing {harmed[0]}, unexpected none; copy it again",
        "misshapen": f"{harmed[0]} must have shape ",
        "unknown": f"missing none, unexpected {harmed[0]}; copy it again",
    }[fault]
    assert str(caught.value).startswith(f"{folder / part}: ")
    assert words in str(caught.value)


def test_tied_weights_need_to_be_there_once_and_old_buffers_are_no_weights(sd3_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")

    def doubled(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()

    def renamed(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop("shared.weight")

    def buffered(tensors: dict[str, torch.Tensor]) -> None:
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    [before] = tiny.conditions(folder, TEXT)
    _rewrite(folder / "text_encoder", buffered)
    for tied in (doubled, renamed):
        _rewrite(folder / "text_encoder_3", tied)
        assert torch.equal(tiny.conditions(folder, TEXT)[0].embeds, before.embeds)


@pytest.mark.parametrize("name", ["transformer/config.json", "tokenizer/tokenizer.json", "model_index.json"])
def test_damaged_json_is_an_error_that_names_the_file(sd3_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    (folder / name).write_text('{"cut": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"copy/{name}: not valid JSON \(.*\); copy it again"):
        SD3.check(folder)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_a_tokenizer_without_its_vocabulary_is_refused(sd3_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    (folder / name / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=rf"copy/{name}: the tokenizer is missing: it must hold tokenizer.json"):
        SD3.check(folder)
    for other in ("vocab.json", "merges.txt", "spiece.model"):  # the layout of the published folders
        (folder / name / other).write_text("{}")
    SD3.check(folder)


def test_a_text_encoder_that_the_pipeline_lists_must_be_there(sd3_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(CheckpointError, match=r"text_encoder_3/model\.safetensors: this file is missing"):
        SD3.check(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "text_encoder_3": [None, None]}))
    SD3.check(folder)


def _list_as_null(folder: Path, *parts: str) -> None:
    """As diffusers saves a pipeline that lacks these parts."""
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **{part: [None, None] for part in parts}}))
    for part in parts:
        shutil.rmtree(folder / part)


def test_without_t5_its_tokens_are_the_zeros_of_the_pipeline(sd3_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    _list_as_null(folder, "text_encoder_3", "tokenizer_3")
    SD3.check(folder)
    [condition] = tiny.conditions(folder, TEXT)
    [whole] = tiny.conditions(sd3_folder, TEXT)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            TEXT, None, None, do_classifier_free_guidance=False, max_sequence_length=14
        )
    assert torch.equal(condition.embeds, embeds)
    assert torch.equal(condition.pooled, pooled)
    assert torch.equal(condition.embeds[:, :-14], whole.embeds[:, :-14])
    assert not condition.embeds[:, -14:].any()
    assert whole.embeds[:, -14:].any()


def test_without_t5_a_text_is_cut_where_clip_ends(sd3_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    _list_as_null(folder, "text_encoder_3", "tokenizer_3")
    encoder = SD3.load_encoder(folder, max_sequence_length=14, dtype=torch.float32, device="cpu")
    assert [encoder.cuts(text) for text in ("", " ".join([TEXT] * 40))] == [False, True]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["text_encoder"], "text_encoder"),
        (["text_encoder_2", "tokenizer_2"], "text_encoder_2, tokenizer_2"),
        (["tokenizer"], "tokenizer"),
        (["tokenizer_3"], "tokenizer_3"),
    ],
)
def test_a_folder_without_a_clip_or_a_tokenizer_is_refused(
    sd3_folder: Path, tmp_path: Path, parts: list[str], says: str
) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    _list_as_null(folder, *parts)
    with pytest.raises(CheckpointError, match=rf"copy/model_index\.json: lists no {says}; texts need both CLIPs with"):
        SD3.check(folder)
