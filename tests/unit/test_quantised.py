"""A frozen base in 8 or 4 bits: what is rounded and how well, the adapter on top, and its memory."""

from __future__ import annotations

import importlib.util
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.base.embedded import folder_of
from flowrl.base.errors import UserError
from flowrl.models import quantised
from flowrl.models.quantised import BLOCK, QuantisedLinear, check_installed, quantise
from flowrl.models.sd3 import SD3, SD3Policy
from flowrl.plan.policy_cost import policy_cost
from flowrl.plan.policy_measure import AdapterShape, Geometry
from flowrl.types import Quantisation
from tests import tiny

KINDS: list[Quantisation] = ["int8", "int4"]
# Of a normal weight, by blocks of 64: a step of 2/254 of the largest of 64 (about 2.4 deviations) is 0.0189 / sqrt(12)
# = 0.0055 of a deviation; of 16 NormalFloat values 0.09 is known (measured; QLoRA gives no figure).
WEIGHT_ERROR = {"int8": 0.007, "int4": 0.1}
VELOCITY_ERROR = {"int8": 0.01, "int4": 0.2}  # of the pocket policy; measured 0.007 and 0.14


def linear(rows: int = 96, columns: int = 160, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    layer = torch.nn.Linear(columns, rows)
    generator = torch.Generator().manual_seed(7)
    layer.weight.data = torch.randn(rows, columns, generator=generator)
    layer.bias.data = torch.randn(rows, generator=generator)
    return layer.to(dtype)


def spec(folder: Path, quantisation: Quantisation, seed: int = 0) -> Any:
    made = tiny.model_spec(folder, seed)
    made.section.quantisation = quantisation
    return made


def policy(folder: Path, quantisation: Quantisation, seed: int = 0) -> SD3Policy:
    loaded = spec(folder, quantisation, seed).load_policy()
    assert isinstance(loaded, SD3Policy)
    return loaded


def layers(transformer: torch.nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    for name, module in transformer.named_modules():
        if isinstance(module, QuantisedLinear):
            yield name.removesuffix(".base_layer"), module


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(96, 160), (64, 32), (7, 10)])  # rows that end within a block too
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_rounded_by_as_much_as_its_bits_allow(
    kind: Quantisation, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    layer = linear(*shape, dtype=dtype)
    rounded = QuantisedLinear.of(layer, bits=quantised._BITS[kind], device="cpu").unpacked(dtype)
    assert rounded.dtype == dtype
    assert 0.3 * WEIGHT_ERROR[kind] < error(rounded.float(), layer.weight.float()) < 1.3 * WEIGHT_ERROR[kind]


def test_8_bits_round_to_the_nearest_of_255_values() -> None:
    layer = linear(16, 64)
    found = QuantisedLinear.of(layer, bits=8, device="cpu").unpacked(torch.float32)
    scale = layer.weight.detach().abs().amax(dim=1, keepdim=True)  # a row is a block
    steps = found / scale * 127
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert (steps - layer.weight / scale * 127).abs().max() < 0.502  # the library finds midpoints to 3 digits
    assert torch.equal(QuantisedLinear.of(layer, bits=8, device="cpu").scales, scale.flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_and_its_gradient_are_those_of_the_unpacked_weight(kind: Quantisation) -> None:
    plain = linear()
    layer = QuantisedLinear.of(plain, bits=quantised._BITS[kind], device="cpu")
    plain.weight.data = layer.unpacked(torch.float32)
    x = torch.randn(2, 5, 160, generator=torch.Generator().manual_seed(1))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = layer(one), plain(other)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(layer(x), found)  # sampling and training compute the same bits
    found.square().sum().backward()
    expected.square().sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_linear_layers_of_the_blocks_are_rounded(sd3_folder: Path, kind: Quantisation) -> None:
    stock = SD3Transformer2DModel.from_pretrained(sd3_folder / "transformer")
    found = policy(sd3_folder, kind).transformer
    expected = {
        name
        for name, module in stock.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("transformer_blocks.")
    }
    assert {name for name, _ in layers(found)} == expected
    assert len(expected) == 25  # 13 of a block with text output and 12 of one without
    kept = {name.replace(".base_layer", ""): p for name, p in found.named_parameters() if p.is_floating_point()}
    for name, parameter in stock.named_parameters():
        if name.removesuffix(".weight") not in expected:
            assert torch.equal(kept[name], parameter), name
    assert found.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_velocity_of_the_pocket_policy_moves_little(kind: Quantisation) -> None:
    folder = folder_of("pocket", "sd35")
    encoder = SD3.load_encoder(folder, max_sequence_length=14, dtype=torch.float32, device="cpu")
    text, empty = encoder.encode("a large red circle above a small blue square on sand"), encoder.encode("")

    def velocities(quantisation: Quantisation) -> torch.Tensor:
        loaded = SD3.load_policy(folder, image_size=64, dtype=torch.float32, device="cpu", quantisation=quantisation)
        latents = torch.randn(4, *loaded.latent_shape, generator=torch.Generator().manual_seed(0))
        sigmas = loaded.sigmas(10)
        with torch.no_grad():
            return torch.stack([loaded.velocity(latents, sigmas[i], text, empty, 4.5) for i in (0, 4, 8)])

    assert 0.1 * VELOCITY_ERROR[kind] < error(velocities(kind), velocities("none")) < VELOCITY_ERROR[kind]


def metadata(file: Path) -> dict[str, Any]:
    """What a file says of its adapter; the order of names has no meaning."""
    with safe_open(file, framework="pt") as opened:
        said = json.loads(opened.metadata()["lora_adapter_metadata"])
    return {key: sorted(value) if isinstance(value, list) else value for key, value in said.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_that_of_the_unrounded_base(sd3_folder: Path, tmp_path: Path, kind: Quantisation) -> None:
    plain, rounded = dict(policy(sd3_folder, "none").trainable()), dict(policy(sd3_folder, kind).trainable())
    assert list(plain) == list(rounded)
    for name, parameter in rounded.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, plain[name])
    trained = tiny.perturb(policy(sd3_folder, kind))
    trained.save_adapter(tmp_path / "rounded")
    tiny.perturb(policy(sd3_folder, "none")).save_adapter(tmp_path / "plain")
    files = [tmp_path / which / "pytorch_lora_weights.safetensors" for which in ("rounded", "plain")]
    saved, other_saved = (load_file(file) for file in files)
    assert len(saved) == 30
    assert saved.keys() == other_saved.keys()
    assert all(torch.equal(saved[name], other_saved[name]) for name in saved)
    assert metadata(files[0]) == metadata(files[1])
    for other in ("none", kind):
        loaded = policy(sd3_folder, other, seed=9)
        loaded.load_adapter(tmp_path / "rounded")
        expected = dict(trained.trainable())
        assert all(torch.equal(parameter, expected[name]) for name, parameter in loaded.trainable())


def velocity(of: SD3Policy) -> torch.Tensor:
    latents = torch.randn(2, *tiny.SHAPE, generator=torch.Generator().manual_seed(5))
    return of.velocity(latents, torch.tensor(0.7), tiny.random_condition(1), tiny.random_condition(2), 4.5)


def float_twin(of: SD3Policy, folder: Path) -> SD3Policy:
    """A policy whose float weights are the rounded ones of another."""
    twin = tiny.perturb(tiny.policy(folder))
    for name, layer in layers(of.transformer):
        target = twin.transformer.get_submodule(name)
        base = target.get_submodule("base_layer") if isinstance(target, LoraLayer) else target
        base.get_parameter("weight").data = layer.unpacked(torch.float32)
    return twin


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_adapter_gradients_are_those_on_the_rounded_weights(
    sd3_folder: Path, kind: Quantisation, checkpointing: bool
) -> None:
    rounded = tiny.perturb(policy(sd3_folder, kind))
    twin = float_twin(rounded, sd3_folder)
    if checkpointing:
        rounded.checkpoint_activations()
        rounded.transformer.train()
    found, expected = velocity(rounded), velocity(twin)
    assert torch.equal(found, expected)
    with torch.no_grad():
        assert torch.equal(velocity(rounded), found)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, one), (_, other) in zip(rounded.trainable(), twin.trainable(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm(), name
    assert all(parameter.grad is None for parameter in rounded.transformer.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_every_actor_rounds_alike_and_the_reference_is_the_rounded_base(sd3_folder: Path, kind: Quantisation) -> None:
    one, other = policy(sd3_folder, kind), policy(sd3_folder, kind)
    for (_, layer), (_, twin) in zip(layers(one.transformer), layers(other.transformer), strict=True):
        assert torch.equal(layer.weight, twin.weight)
        assert torch.equal(layer.scales, twin.scales)
    fresh = velocity(other)
    tiny.perturb(one)
    assert not torch.equal(velocity(one), fresh)
    with one.reference():
        assert torch.equal(velocity(one), fresh)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_base_computes_in_bfloat16(sd3_folder: Path, kind: Quantisation) -> None:
    loaded = SD3.load_policy(
        sd3_folder, image_size=tiny.IMAGE_SIZE, dtype=torch.bfloat16, device="cpu", quantisation=kind
    )
    loaded.attach_adapter(rank=4, alpha=8, targets=["attn.to_q"], seed=0)
    assert loaded.transformer.dtype == torch.bfloat16
    seen: list[torch.dtype] = []
    _, layer = next(layers(loaded.transformer))
    layer.register_forward_hook(lambda _layer, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    assert torch.isfinite(velocity(loaded)).all()
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for _, parameter in loaded.trainable()} == {torch.float32}


def storage_bytes(module: torch.nn.Module) -> int:
    tensors = [p for p in module.parameters() if not p.requires_grad] + list(module.buffers())
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_says_the_bytes_of_the_weights(sd3_folder: Path, kind: Quantisation) -> None:
    loaded = policy(sd3_folder, kind)
    counted = [
        policy_cost(
            dict(loaded.transformer.config),
            Geometry(
                latent_shape=tiny.SHAPE,
                text_length=6,
                samples=2,
                guided=True,
                dtype=torch.float32,
                quantisation=quantisation,
            ),
            AdapterShape(rank=tiny.RANK, alpha=tiny.ALPHA, targets=("attn.to_q",)),
            FlowGRPOConfig(kl_beta=0.0),
            gradient_checkpointing=False,
        )
        for quantisation in (kind, "none")
    ]
    rounded, plain = counted
    assert rounded.weight_bytes == storage_bytes(loaded.transformer)
    assert rounded.num_parameters == plain.num_parameters
    # By hand: codes of 8 or 4 bits and a float32 for each 64 weights, where there were float32 weights.
    sizes = [layer.in_features * layer.out_features for _, layer in layers(loaded.transformer)]
    assert all(size % BLOCK == 0 for size in sizes)
    per_weight = {"int8": 8.5 / 8, "int4": 4.5 / 8}[kind]
    assert plain.weight_bytes - rounded.weight_bytes == sum(sizes) * (4 - per_weight)
    assert rounded.sample_flops == plain.sample_flops
    assert rounded.update_flops == plain.update_flops
    assert 0 < rounded.sample_rise - plain.sample_rise <= 4 * max(sizes)  # at most one weight is unpacked at a time


def test_a_layer_is_rounded_when_the_float_weight_of_the_one_before_is_gone(
    sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = SD3Transformer2DModel.from_pretrained(sd3_folder / "transformer")
    blocks = transformer.transformer_blocks.modules()
    floats = [weakref.ref(module.weight) for module in blocks if type(module) is torch.nn.Linear]
    there: list[int] = []
    pack = quantised._pack

    def counting(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        there.append(sum(reference() is not None for reference in floats))
        return pack(weight, bits)

    monkeypatch.setattr(quantised, "_pack", counting)
    quantise(transformer, "int4", device="cpu")
    assert there == list(range(len(floats), 0, -1))
    assert len(floats) == 25


@pytest.mark.parametrize("kind", KINDS)
def test_the_missing_package_is_named(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Quantisation) -> None:
    monkeypatch.setattr(
        quantised, "find_spec", lambda name: None if name == "bitsandbytes" else importlib.util.find_spec(name)
    )
    says = rf"^model\.quantisation: {kind} needs bitsandbytes, which is not installed: pip install 'flowrl\[quantise\]'"
    with pytest.raises(UserError, match=says):
        spec(sd3_folder, kind).check()
    check_installed("none")
