"""What `flowrl.plan` computes for the same shapes; done on the CPU while the GPU is measured."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.benchmarks.gpu import case_names
from experiments.benchmarks.gpu.networks import DTYPE
from experiments.benchmarks.gpu.record import Case
from experiments.benchmarks.gpu.sampled import algorithm
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.sizes import MicroBatch
from flowrl.config import RewardSpec
from flowrl.plan.image_cost import decode_cost
from flowrl.plan.policy_cost import policy_cost
from flowrl.plan.policy_measure import Geometry, PolicyCost
from flowrl.plan.reward_cost import reward_cost
from flowrl.types import SampleShapes


def run(setting: Setting) -> Iterator[Case]:
    """The peak of each case that the plan knows, named by the part and the case that measure it."""
    sizes = setting.sizes
    for count in sizes.reward_batches:
        decoding = decode_cost(sizes.vae, sizes.latent_shape, count)
        yield _case("rewards", case_names.decode(count), decoding.weight_bytes + decoding.rise, decoding.flops)
    if not setting.small:
        yield from published_rewards(setting)
    left = set(sizes.samples_per_forward)
    for micro_batch in sizes.micro_batches:
        cost = _cost(setting, micro_batch)
        peak = cost.weight_bytes + cost.training_bytes + cost.update_rise
        yield _case("update", micro_batch.name, peak, cost.update_flops)
        if micro_batch.samples in left:
            left.remove(micro_batch.samples)
            forwards = sizes.group_size // micro_batch.samples * sizes.sampler_steps
            peak = cost.weight_bytes + cost.adapter_bytes + cost.sample_rise
            yield _case("rollout", case_names.rollout(micro_batch.samples), peak, cost.sample_flops * forwards)


def published_rewards(setting: Setting) -> Iterator[Case]:
    """The rewards that read what they are given: of folders that are not there the plan takes the published sizes."""
    sizes = setting.sizes
    shapes = SampleShapes(
        latents=sizes.latent_shape,
        pixels=(3, sizes.image_size, sizes.image_size),
        text=(sizes.text_length, sizes.transformer["joint_attention_dim"]),
        pooled=sizes.transformer["pooled_projection_dim"],
        text_dtype=DTYPE,
    )
    for path, name in ((case_names.LATENT, "dit_reward"), (case_names.HPSV3, "hpsv3")):
        for count in sizes.reward_batches:
            options = {"path": f"not-there/{name}", "dtype": "bfloat16", "batch_size": count}
            cost = reward_cost(RewardSpec(name=name, options=options), shapes, setting.device.type)
            if cost is not None:
                peak = cost.weight_bytes + cost.rise
                yield _case("rewards", case_names.reward(path, count), peak, cost.flops * count)


def _case(part: str, name: str, peak: int, flops: int) -> Case:
    return Case(name=f"{part}: {name}", outcome="computed", planned=peak, flops=flops)


def _cost(setting: Setting, micro_batch: MicroBatch) -> PolicyCost:
    sizes = setting.sizes
    geometry = Geometry(
        latent_shape=sizes.latent_shape,
        text_length=sizes.text_length,
        samples=micro_batch.samples,
        guided=sizes.guidance_scale != 1,
        dtype=DTYPE,
    )
    return policy_cost(
        sizes.transformer,
        geometry,
        sizes.adapter,
        algorithm(with_reference=True).config,
        gradient_checkpointing=micro_batch.checkpointing,
    )
