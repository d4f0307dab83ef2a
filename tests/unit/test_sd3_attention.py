"""Attention by a backend of diffusers' switch: the numbers of the stock processor, and clear refusals."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from flowrl.base.attention_names import ATTENTION_BACKENDS
from flowrl.base.errors import UserError
from flowrl.config import ModelSection
from flowrl.models.sd3 import SD3, SD3Policy
from flowrl.models.sd3_attention import JointAttention, check_backend, use_backend
from tests import tiny


@pytest.fixture(autouse=True)
def switch_put_back() -> Iterator[None]:
    """The switch is one for the process."""
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def medium() -> SD3Transformer2DModel:
    """As SD3.5-Medium: a second attention in the first blocks, and no text output of the last."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SD3Transformer2DModel(
            sample_size=4,
            in_channels=16,
            out_channels=16,
            num_layers=3,
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=tiny.JOINT_DIM,
            caption_projection_dim=32,
            pooled_projection_dim=sum(tiny.CLIP_WIDTHS),
            pos_embed_max_size=4,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        ).eval()


def trained(transformer: SD3Transformer2DModel) -> SD3Policy:
    policy = SD3Policy(transformer, shift=3.0, latent_space="", latent_shape=tiny.SHAPE)
    policy.attach_adapter(rank=4, alpha=8, targets=ModelSection().lora_targets, seed=0)
    return tiny.perturb(policy)


def velocity(policy: SD3Policy) -> torch.Tensor:
    latents = torch.randn(2, *tiny.SHAPE, generator=torch.Generator().manual_seed(5))
    return policy.velocity(latents, torch.tensor(0.7), tiny.random_condition(1), tiny.random_condition(2), 4.5)


def velocity_and_gradients(policy: SD3Policy) -> list[torch.Tensor]:
    output = velocity(policy)
    output.square().sum().backward()
    gradients = [parameter.grad for _, parameter in policy.trainable()]
    assert all(gradient is not None for gradient in gradients)
    return [output.detach(), *gradients]  # type: ignore[list-item]


def pair(backend: str, *, checkpointing: bool = False) -> tuple[SD3Policy, SD3Policy]:
    """The same network with the stock processor and with a backend."""
    stock = medium()
    other = copy.deepcopy(stock)
    other.set_attn_processor(JointAttention())
    other.set_attention_backend(backend)
    policies = trained(stock), trained(other)
    if checkpointing:
        for policy in policies:
            policy.checkpoint_activations()
            policy.transformer.train()  # diffusers checkpoints in training alone; there is no dropout
    return policies


def test_the_native_backend_gives_the_bits_of_the_stock_processor() -> None:
    stock, ours = (velocity_and_gradients(policy) for policy in pair("native"))
    assert all(torch.equal(one, other) for one, other in zip(stock, ours, strict=True))
    assert stock[0].abs().max() > 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backend", ["_native_math", "_native_flash"])
def test_another_backend_gives_the_velocity_and_gradients_of_the_stock_processor_to_rounding(
    backend: str, checkpointing: bool
) -> None:
    stock, ours = (velocity_and_gradients(policy) for policy in pair(backend, checkpointing=checkpointing))
    for one, other in zip(stock, ours, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()
    if backend == "_native_math":  # another order of sums: it was computed elsewhere indeed
        assert not torch.equal(stock[0], ours[0])


def test_flex_samples_as_the_stock_processor_does() -> None:
    stock, ours = pair("flex")
    with torch.no_grad():
        expected, found = velocity(stock), velocity(ours)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_rollout_and_learner_load_the_backend_of_the_configuration(sd3_folder: Path) -> None:
    spec = tiny.model_spec(sd3_folder)
    spec.section.attention = "_native_math"
    spec.check()
    policy = spec.load_policy()
    assert isinstance(policy, SD3Policy)
    chosen = [processor._attention_backend for processor in policy.transformer.attn_processors.values()]
    assert chosen == [AttentionBackendName._NATIVE_MATH] * tiny.NUM_LAYERS
    plain = tiny.policy(sd3_folder)
    assert velocity(policy).sub(velocity(plain)).abs().max() < 1e-5


def test_native_leaves_the_transformer_as_diffusers_made_it(sd3_folder: Path) -> None:
    stock = SD3Transformer2DModel.from_pretrained(sd3_folder / "transformer")
    before = dict(stock.attn_processors)
    use_backend(stock, "native", "cpu")
    assert stock.attn_processors == before
    assert not any(isinstance(processor, JointAttention) for processor in before.values())


def test_a_mask_is_refused() -> None:
    block = medium().transformer_blocks[0]
    with pytest.raises(ValueError, match=r"attention_mask must be None"):
        JointAttention()(block.attn, torch.zeros(1, 4, 32), None, torch.ones(1, 4))


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("flsh", r"diffusers has no backend called 'flsh'; did you mean 'flash'\?$"),
        ("flash", r"flash cannot be used here: .*install `flash-attn>=.*`; model\.attention=native works everywhere$"),
        ("sage_hub", r"sage_hub cannot be used here: .*`pip install kernels`; model\.attention=native"),
    ],
)
def test_a_missing_package_is_named(sd3_folder: Path, backend: str, says: str) -> None:
    spec = tiny.model_spec(sd3_folder)
    spec.section.attention = backend
    with pytest.raises(UserError, match=r"^model\.attention: " + says):
        spec.check()


@pytest.mark.parametrize(
    ("backend", "reason"), [("flex", "does not support backward on CPU"), ("_native_cudnn", "No viable backend")]
)
def test_a_backend_that_cannot_train_on_the_device_is_refused(sd3_folder: Path, backend: str, reason: str) -> None:
    says = rf"^model\.attention: {backend} cannot be trained with on cpu in float32: .*{reason}.*; model\.attention="
    with pytest.raises(UserError, match=says):
        check_backend(backend, dtype=torch.float32, device="cpu")
    with pytest.raises(UserError, match=says):
        SD3.load_policy(sd3_folder, image_size=tiny.IMAGE_SIZE, dtype=torch.float32, device="cpu", attention=backend)


def _loose(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention that forgets to scale."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)


def _without_gradient(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention for sampling alone, as that of some packages: right, and a constant to autograd."""
    with torch.no_grad():
        heads = (one.transpose(1, 2) for one in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)


@pytest.mark.parametrize(
    ("attention", "says"),
    [(_loose, "differs from torch's own attention by"), (_without_gradient, "cannot be trained with on cpu")],
)
def test_a_backend_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, attention: object, says: str
) -> None:
    name = AttentionBackendName._NATIVE_MATH
    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, attention)
    monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, name, {"query", "key", "value"})
    with pytest.raises(UserError, match=says):
        check_backend(name.value, dtype=torch.float32, device="cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["_native_cudnn", "_native_efficient", "_native_flash", "flex"])
def test_what_torch_offers_on_a_gpu_trains_there(backend: str) -> None:
    check_backend(backend, dtype=torch.bfloat16, device="cuda")


def test_the_names_are_those_of_diffusers() -> None:
    assert sorted(ATTENTION_BACKENDS) == sorted(backend.value for backend in AttentionBackendName)
