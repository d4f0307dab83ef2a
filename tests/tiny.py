"""A Stable Diffusion 3 folder of random weights, small enough to build in a second, and what tests make of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from flowrl.config import ModelSection
from flowrl.core.sampler import sample
from flowrl.model_spec import ModelSpec
from flowrl.models.sd3 import SD3, SD3Policy
from flowrl.pocket.text import CLIP_WIDTHS, JOINT_DIM, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer
from flowrl.types import Prompt, RolloutRequest, SamplingPlan, TextCondition, TrainBatch, Trajectory
from rewards.dit_reward.layout import save as save_reward
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel

IMAGE_SIZE = 32
SHAPE = (16, 4, 4)
DIMS = 16 * 4 * 4
NUM_LAYERS = 2
RANK, ALPHA = 4, 12  # alpha is neither the rank nor twice the rank, so that a wrong scale cannot hide
TEXTS = (
    "a large red circle on sand",
    "a small blue square on snow",
    "a large green triangle on sky",
    "a small pink circle on slate",
    "a large yellow square above a small red circle on sand",
    "a small purple triangle left of a large blue circle on sky",
    "a small green circle on snow",
    "a large pink square on slate",
)


def write_folder(folder: Path, *, scaling: float = 1.5305, shift: float = 0.0609) -> Path:
    """Save the pipeline; the same bytes each time."""
    with torch.random.fork_rng():
        torch.manual_seed(20)
        pipeline = _pipeline(scaling, shift)
        for parameter in pipeline.transformer.parameters():
            # Larger than the default start, so that text, noise level and adapter change the output visibly.
            parameter.data.mul_(1.7)
    pipeline.save_pretrained(folder)
    return folder


def _pipeline(scaling: float, shift: float) -> StableDiffusion3Pipeline:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scaling,
        shift_factor=shift,
    )
    transformer = SD3Transformer2DModel(
        sample_size=IMAGE_SIZE // 8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=NUM_LAYERS,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=JOINT_DIM,
        caption_projection_dim=32,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    )
    tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae,
        text_encoder=clip_encoder(0, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(1, tokenizer),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(tokenizer_3),
        tokenizer_3=tokenizer_3,
    )


def write_reward(folder: Path, policy_folder: Path, *, shard_size: str = "5GB") -> Path:
    """Save a DiT-Reward of random weights that reads the latents and texts of the policy of `policy_folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(21)
        net = SD3Transformer2DModel.from_pretrained(policy_folder / "transformer")
        config = DiTRewardConfig(
            text_length=28, layers=(0, 1), head_dims=(32,), latent_space=SD3.latent_space(policy_folder), base="tiny"
        )
        save_reward(DiTRewardModel(net, config), folder, dtype=torch.float32, shard_size=shard_size)
    return folder


def model_spec(folder: Path, seed: int = 0, device: str = "cpu") -> ModelSpec:
    """What the actors of a run on the folder load."""
    section = ModelSection(path=str(folder), image_size=IMAGE_SIZE, lora_rank=RANK, lora_alpha=ALPHA)
    return ModelSpec(section=section, path=folder, seed=seed, device=device, threads=1)


def bare_policy(folder: Path) -> SD3Policy:
    """The policy without an adapter."""
    return SD3.load_policy(folder, image_size=IMAGE_SIZE, dtype=torch.float32, device="cpu")


def policy(folder: Path, seed: int = 0) -> SD3Policy:
    """The policy with an adapter that changes nothing yet."""
    loaded = model_spec(folder, seed).load_policy()
    assert isinstance(loaded, SD3Policy)
    return loaded


def perturb(trained: SD3Policy, scale: float = 0.05, seed: int = 1) -> SD3Policy:
    """Move the adapter, as training would: both matrices of every layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in trained.trainable():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return trained


def conditions(folder: Path, *texts: str) -> list[TextCondition]:
    """What the folder's text encoders make of some texts."""
    encoder = SD3.load_encoder(folder, max_sequence_length=14, dtype=torch.float32, device="cpu")
    return [encoder.encode(text) for text in texts]


def random_condition(seed: int) -> TextCondition:
    """A condition of the right shape without the cost of text encoders."""
    generator = torch.Generator().manual_seed(seed)
    return TextCondition(
        embeds=torch.randn(1, 6, JOINT_DIM, generator=generator),
        pooled=torch.randn(1, sum(CLIP_WIDTHS), generator=generator),
    )


def sde_plan(num_steps: int = 4, start: int = 0, stop: int = 3, kind: str = "sde") -> SamplingPlan:
    """All steps stochastic, some of them stored."""
    return SamplingPlan(kinds=(kind,) * num_steps, noise_level=0.7, start=start, stop=stop)  # type: ignore[arg-type]


def request(prompt_id: int, step: int = 1) -> RolloutRequest:
    """An order for a group of four."""
    return RolloutRequest(
        prompt=Prompt(id=prompt_id, text=TEXTS[prompt_id]),
        seed=0,
        step=step,
        num_samples=4,
        plan=sde_plan(),
        guidance_scale=4.5,
    )


def trajectory(
    behaviour: SD3Policy,
    *,
    prompt_id: int = 0,
    step: int = 1,
    num_samples: int = 4,
    samples_per_forward: int = 0,
    plan: SamplingPlan | None = None,
    keep_means: bool = False,
    guidance_scale: float = 4.5,
) -> Trajectory:
    """One group, sampled by a policy."""
    order = replace(
        request(prompt_id, step),
        num_samples=num_samples,
        plan=plan or sde_plan(),
        guidance_scale=guidance_scale,
        keep_means=keep_means,
    )
    return sample(
        behaviour,
        order,
        random_condition(10 + prompt_id),
        random_condition(9),
        policy_version=0,
        samples_per_forward=samples_per_forward or num_samples,
        device=torch.device("cpu"),
    )


def with_condition(group: Trajectory, condition: TextCondition) -> Trajectory:
    """The group as if it had been sampled for another text condition."""
    return replace(group, condition=condition)


def train_batch(group: Trajectory, seed: int = 3) -> TrainBatch:
    """A group with random advantages."""
    generator = torch.Generator().manual_seed(seed)
    return TrainBatch(trajectory=group, advantages=torch.randn(group.num_samples, generator=generator))
