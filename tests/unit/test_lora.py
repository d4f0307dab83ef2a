"""The adapter: where it is attached, how it starts, how it is switched off, and the file it is exchanged as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from flowrl.config import ModelSection
from flowrl.models import lora
from flowrl.models.sd3 import SD3Policy
from tests import tiny

TARGETS = ModelSection().lora_targets


def transformer(num_layers: int, dual: tuple[int, ...] = ()) -> SD3Transformer2DModel:
    with torch.device("meta"):
        return SD3Transformer2DModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            num_layers=num_layers,
            num_attention_heads=2,
            attention_head_dim=8,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=8,
            pos_embed_max_size=4,
            dual_attention_layers=dual,
            qk_norm="rms_norm",
        )


def adapter(policy: SD3Policy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.trainable()}


def outputs(policy: SD3Policy) -> torch.Tensor:
    x = torch.randn(2, *tiny.SHAPE, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return policy.velocity(x, torch.tensor(0.7), tiny.random_condition(1), tiny.random_condition(2), 4.5)


@pytest.mark.parametrize(
    ("num_layers", "dual", "modules"), [(2, (), 15), (6, (), 47), (24, tuple(range(13)), 191), (38, (), 303)]
)
def test_eight_layers_of_every_block_are_adapted_but_the_last_block_has_no_text_output(
    num_layers: int, dual: tuple[int, ...], modules: int
) -> None:
    # 6 is the pocket policy, 24 SD3.5-Medium, whose second attention stays as it is, 38 SD3.5-Large.
    net = transformer(num_layers, dual)
    lora.attach(net, rank=2, alpha=4, targets=TARGETS, seed=0)
    names = {name.rpartition(".lora_")[0] for name, _ in lora.trainable(net)}
    assert len(names) == 8 * num_layers - 1 == modules
    assert not [name for name in names if "attn2" in name]
    missing = f"transformer_blocks.{num_layers - 1}.attn.to_add_out"
    assert {missing} == {f"transformer_blocks.{i}.{target}" for i in range(num_layers) for target in TARGETS} - names


def test_a_fresh_adapter_changes_nothing(sd3_folder: Path, policy: SD3Policy) -> None:
    assert torch.equal(outputs(policy), outputs(tiny.bare_policy(sd3_folder)))


def test_only_the_adapter_is_trained_and_it_starts_as_published(policy: SD3Policy) -> None:
    names = {name for name, _ in policy.trainable()}
    trained = {name for name, p in policy.transformer.named_parameters() if p.requires_grad}
    assert names == trained
    values = adapter(policy)
    b = torch.cat([value.flatten() for name, value in values.items() if ".lora_B." in name])
    a = torch.cat([value.flatten() for name, value in values.items() if ".lora_A." in name])
    assert torch.equal(b, torch.zeros_like(b))
    assert a.std().item() == pytest.approx(1 / tiny.RANK, rel=0.05)
    assert a.mean().item() == pytest.approx(0, abs=0.02)


def test_the_scale_is_alpha_over_rank(policy: SD3Policy) -> None:
    [scale] = {module.scaling[lora.ADAPTER] for module in policy.transformer.modules() if isinstance(module, LoraLayer)}
    assert scale == tiny.ALPHA / tiny.RANK


def test_the_start_depends_on_the_seed_and_not_on_the_global_generator(sd3_folder: Path) -> None:
    torch.manual_seed(1)
    first = adapter(tiny.policy(sd3_folder))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    net = tiny.bare_policy(sd3_folder)
    net.attach_adapter(rank=tiny.RANK, alpha=tiny.ALPHA, targets=TARGETS, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    second = adapter(net)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = adapter(tiny.policy(sd3_folder, seed=1))
    assert not any(torch.equal(first[name], other[name]) for name in first if ".lora_A." in name)


def test_layers_of_one_shape_start_differently(policy: SD3Policy) -> None:
    starts = [tuple(value.flatten().tolist()) for name, value in adapter(policy).items() if ".lora_A." in name]
    assert len(set(starts)) == len(starts)


def test_the_adapter_is_float32_on_a_base_of_any_dtype(sd3_folder: Path) -> None:
    net = tiny.bare_policy(sd3_folder)
    net.transformer.to(torch.bfloat16)
    net.attach_adapter(rank=tiny.RANK, alpha=tiny.ALPHA, targets=TARGETS, seed=0)
    assert {parameter.dtype for _, parameter in net.trainable()} == {torch.float32}
    assert net.transformer.dtype == torch.bfloat16
    full = adapter(tiny.policy(sd3_folder))
    assert all(torch.equal(full[name], value) for name, value in adapter(net).items())
    assert outputs(net).dtype == torch.float32


def test_the_reference_is_the_base_bit_for_bit_and_the_adapter_comes_back(sd3_folder: Path, policy: SD3Policy) -> None:
    base = outputs(tiny.bare_policy(sd3_folder))
    moved = outputs(tiny.perturb(policy))
    assert not torch.allclose(moved, base, atol=1e-2)
    with policy.reference():
        assert torch.equal(outputs(policy), base)
    assert torch.equal(outputs(policy), moved)
    assert all(parameter.requires_grad for _, parameter in policy.trainable())


def test_the_adapter_comes_back_after_an_error_within_the_reference(policy: SD3Policy) -> None:
    moved = outputs(tiny.perturb(policy))
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert torch.equal(outputs(policy), moved)


def test_a_target_that_names_no_layer_is_an_error(sd3_folder: Path) -> None:
    net = tiny.bare_policy(sd3_folder)
    with pytest.raises(ValueError, match=r"model.lora_targets: no layer of the model ends in \['attn.to_x'\]"):
        net.attach_adapter(rank=4, alpha=4, targets=["attn.to_q", "attn.to_x"], seed=0)


def test_an_exported_adapter_loads_into_a_fresh_policy_bit_for_bit(
    sd3_folder: Path, policy: SD3Policy, tmp_path: Path
) -> None:
    moved = outputs(tiny.perturb(policy))
    policy.save_adapter(tmp_path)
    other = tiny.policy(sd3_folder, seed=9)
    other.load_adapter(tmp_path)
    assert torch.equal(outputs(other), moved)


def test_an_adapter_that_does_not_fit_is_refused_with_the_tensor_that_differs(
    sd3_folder: Path, policy: SD3Policy, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"pytorch_lora_weights.safetensors is missing"):
        policy.load_adapter(tmp_path)
    tiny.perturb(policy).save_adapter(tmp_path)
    before = adapter(other := tiny.bare_policy(sd3_folder))
    other.attach_adapter(rank=tiny.RANK + 1, alpha=4, targets=TARGETS, seed=0)
    with pytest.raises(ValueError, match=r"30 tensors are missing, unknown or of another shape.*lora_rank"):
        other.load_adapter(tmp_path)
    assert before == {}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    name, tensor = tensors.popitem()
    save_file({**tensors, "extra": tensor}, file)
    with pytest.raises(ValueError, match=r"2 tensors are missing, unknown"):
        policy.load_adapter(tmp_path)
    assert name.startswith("transformer.")
