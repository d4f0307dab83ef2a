"""What a policy is said to take, against what torch's allocator saw it take, and against counts made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.profiler import ProfilerActivity, profile

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.core.sampler import sample
from flowrl.models.sd3 import SD3Policy
from flowrl.models.sd35_published import PUBLISHED
from flowrl.plan.policy_cost import policy_cost
from flowrl.plan.policy_measure import AdapterShape, Geometry, PolicyCost, measure_policy
from flowrl.types import Prompt, Quantisation, RolloutRequest, SamplingPlan, TextCondition, TrainBatch

TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj")
TARGETS += ("attn.add_v_proj", "attn.to_add_out")
LARGE, MEDIUM = (f"stabilityai/stable-diffusion-3.5-{size}" for size in ("large", "medium"))
SMALL = {"num_layers": 3, "num_attention_heads": 4, "caption_projection_dim": 256, "pos_embed_max_size": 32}
SLOW = pytest.mark.slow
SHAPE, TEXT = (16, 32, 32), 48
NO_KL = FlowGRPOConfig(kl_beta=0.0)


def small() -> dict[str, Any]:
    return {**PUBLISHED[LARGE].transformer, "joint_attention_dim": 96, "pooled_projection_dim": 80, **SMALL}


def small_cost(samples: int, *, kl: bool, checkpointing: bool) -> PolicyCost:
    return policy_cost(
        small(),
        Geometry(latent_shape=SHAPE, text_length=TEXT, samples=samples, guided=True, dtype=torch.float32),
        AdapterShape(rank=4, alpha=8, targets=TARGETS),
        FlowGRPOConfig() if kl else NO_KL,
        gradient_checkpointing=checkpointing,
    )


def real_policy(*, checkpointing: bool) -> SD3Policy:
    transformer = SD3Transformer2DModel.from_config(small()).eval()
    policy = SD3Policy(transformer, shift=3.0, latent_space="", latent_shape=SHAPE)
    policy.attach_adapter(rank=4, alpha=8, targets=list(TARGETS), seed=0)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    return policy


def allocator_rise(profiled: profile) -> int:
    """The highest point of the allocator's running total above its start, from every allocation and release."""
    total = highest = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()
            highest = max(highest, total)
    return highest


def condition() -> TextCondition:
    return TextCondition(embeds=torch.randn(1, TEXT, 96), pooled=torch.randn(1, 80))


@pytest.mark.parametrize("samples", [2, 4])
def test_a_sampler_step_takes_what_the_allocator_sees(samples: int) -> None:
    policy, text = real_policy(checkpointing=False), condition()
    latents = torch.randn(samples, *SHAPE)
    sigma = policy.sigmas(4)[1]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled, torch.no_grad():
        policy.velocity(latents, sigma, text, text, 4.5)
    expected = small_cost(samples, kl=False, checkpointing=False).sample_rise
    assert expected == pytest.approx(allocator_rise(profiled), rel=0.03)


@pytest.mark.parametrize("kl", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_takes_what_the_allocator_sees(checkpointing: bool, kl: bool) -> None:
    policy, text = real_policy(checkpointing=checkpointing), condition()
    plan = SamplingPlan(kinds=("sde", "sde"), noise_level=0.7, start=0, stop=1)
    request = RolloutRequest(prompt=Prompt(id=0, text=""), seed=0, step=1, num_samples=4, plan=plan, guidance_scale=4.5)
    trajectory = sample(
        policy, request, text, text, policy_version=0, samples_per_forward=4, device=torch.device("cpu")
    )
    batch = TrainBatch(trajectory=trajectory, advantages=torch.tensor([1.0, -1.0, 0.5, -0.5]))
    algorithm = FlowGRPO(FlowGRPOConfig() if kl else NO_KL, seed=0)
    for _, parameter in policy.trainable():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        algorithm.loss(policy, batch, slice(0, 4), 0).loss.backward()
    expected = small_cost(4, kl=kl, checkpointing=checkpointing).update_rise
    assert expected == pytest.approx(allocator_rise(profiled), rel=0.05)


VARIANTS = (
    FlowGRPOConfig(step_kind="cps", kl_form="velocity"),
    FlowGRPOConfig(ratio_norm=True, reweight_steps=True),
    FlowGRPOConfig(kl_form="velocity", trained_steps="window"),
)


@pytest.mark.parametrize("config", VARIANTS)
def test_an_update_of_any_variant_is_measured(config: FlowGRPOConfig) -> None:
    shape = Geometry(latent_shape=SHAPE, text_length=TEXT, samples=2, guided=True, dtype=torch.float32)
    adapter = AdapterShape(rank=4, alpha=8, targets=TARGETS)
    found, plain = (
        policy_cost(small(), shape, adapter, algorithm, gradient_checkpointing=False)
        for algorithm in (config, FlowGRPOConfig())
    )
    assert found.update_flops == plain.update_flops > 0
    assert found.update_rise == pytest.approx(plain.update_rise, rel=0.02)


def test_checkpointing_keeps_little_and_computes_a_forward_more() -> None:
    plain, frugal = (small_cost(4, kl=False, checkpointing=on) for on in (False, True))
    assert frugal.update_rise < 0.6 * plain.update_rise
    assert frugal.update_flops - plain.update_flops == pytest.approx(plain.sample_flops, rel=0.05)


def test_memory_grows_with_the_samples_of_a_forward() -> None:
    one, two, four = (small_cost(n, kl=True, checkpointing=False) for n in (1, 2, 4))
    assert two.update_rise - one.update_rise == pytest.approx((four.update_rise - two.update_rise) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("dual", "quantisation", "checkpointing"),
    [(0, "int4", True), pytest.param(3, "none", False, marks=SLOW), pytest.param(3, "none", True, marks=SLOW)],
)
def test_a_few_blocks_and_samples_tell_all_others(dual: int, quantisation: Quantisation, checkpointing: bool) -> None:
    sizes = {"num_attention_heads": 2, "caption_projection_dim": 128, "num_layers": 6}
    transformer = {**small(), **sizes, "dual_attention_layers": list(range(dual))}
    arguments = (
        transformer,
        Geometry(
            latent_shape=(16, 16, 16),
            text_length=20,
            samples=5,
            guided=True,
            dtype=torch.bfloat16,
            quantisation=quantisation,
        ),
        AdapterShape(rank=4, alpha=8, targets=TARGETS),
        FlowGRPOConfig() if dual == 0 else NO_KL,
    )
    few = policy_cost(*arguments, gradient_checkpointing=checkpointing)
    assert few == measure_policy(*arguments, gradient_checkpointing=checkpointing)


@pytest.mark.slow
def test_a_few_blocks_tell_those_of_the_real_model() -> None:
    shape = Geometry(latent_shape=(16, 64, 64), text_length=333, samples=4, guided=True, dtype=torch.bfloat16)
    adapter = AdapterShape(rank=32, alpha=64, targets=TARGETS)
    arguments = (PUBLISHED[LARGE].transformer, shape, adapter, FlowGRPOConfig())
    for checkpointing in (False, True):
        few = policy_cost(*arguments, gradient_checkpointing=checkpointing)
        assert few == measure_policy(*arguments, gradient_checkpointing=checkpointing)


@pytest.mark.parametrize(
    ("repository", "parameters", "layers", "adapter", "tera"),
    [
        (LARGE, 8_056_627_520, 303, 47_161_344, 16.1),
        pytest.param(MEDIUM, 2_243_171_520, 191, 18_776_064, 4.9, marks=pytest.mark.slow),
    ],
)
def test_the_real_sizes(repository: str, parameters: int, layers: int, adapter: int, tera: float) -> None:
    transformer = PUBLISHED[repository].transformer
    cost = policy_cost(
        transformer,
        Geometry(latent_shape=(16, 64, 64), text_length=333, samples=1, guided=True, dtype=torch.bfloat16),
        AdapterShape(rank=32, alpha=64, targets=TARGETS),
        NO_KL,
        gradient_checkpointing=True,
    )
    assert (cost.num_parameters, cost.num_adapter_layers, cost.num_adapter_parameters) == (parameters, layers, adapter)
    table = transformer["pos_embed_max_size"] ** 2 * transformer["caption_projection_dim"]
    assert cost.weight_bytes == 2 * (parameters + table)
    assert cost.training_bytes == 5 * 4 * adapter
    # 2 branches; per forward the linear layers' 24 d^2 per token and block, and attention's 4 N^2 d.
    assert cost.sample_flops / 1e12 == pytest.approx(tera, rel=0.02)
