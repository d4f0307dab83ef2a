"""The dataclasses that flow between the parts of flowrl.

Shape legend: G samples of one group, K trained sampler steps, B samples of any batch, L text tokens, D text width,
P pooled width; ``...`` is the model's own latent shape (C, h, w for images). Sigma lies in [0, 1], 1 is pure noise;
velocity is d x / d sigma. All latents, log-probs, scores and advantages are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

StepKind = Literal["sde", "cps", "ode"]
Reduction = Literal["mean", "max", "sum", "last"]
Quantisation = Literal["none", "int8", "int4"]  # of frozen weights; int4 is NormalFloat


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to make images of.

    Example: ``Prompt(id=17, text="a large red circle on sand")``
    """

    id: int  # its place in the prompt file; enters the seeds of its samples
    text: str


@dataclass(frozen=True, kw_only=True)
class TextCondition:
    """What the text encoders make of one text; shared by all samples of its group.

    Example: ``TextCondition(embeds=torch.zeros(1, 28, 96), pooled=torch.zeros(1, 80))``
    """

    embeds: torch.Tensor  # [1, L, D], the dtype of the text encoders
    pooled: torch.Tensor  # [1, P]


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How one denoising run goes: the kind of each sampler step, and which steps are stored to be trained on.

    Example: ``SamplingPlan(kinds=("sde",) * 3 + ("ode",) * 7, noise_level=0.7, start=0, stop=3)``
    """

    kinds: tuple[StepKind, ...]
    noise_level: float  # the `a` of arXiv:2505.05470 eq. 9
    start: int  # first stored sampler step
    stop: int  # one past the last; start == stop stores no path

    @property
    def trained(self) -> range:
        """The indices of the sampler steps that are stored and trained."""
        return range(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """An order for one group.

    Example: ``RolloutRequest(prompt=prompt, seed=0, step=3, num_samples=16, plan=plan, guidance_scale=4.5)``
    """

    prompt: Prompt
    seed: int  # of the run
    step: int  # of the run; -1 in evaluation
    num_samples: int
    plan: SamplingPlan
    guidance_scale: float
    keep_means: bool = False  # store the means of the trained steps as well


@dataclass(frozen=True, kw_only=True)
class DenoisePath:
    """The stored part of a denoising run: K consecutive transitions.

    Example: for ``start=0, stop=3`` of a group of 16 at 8x8: latents [16, 4, 16, 8, 8], log_probs [16, 3].
    """

    latents: torch.Tensor  # [G, K+1, ...] float32
    log_probs: torch.Tensor  # [G, K] float32, mean over latent dims, under the behaviour policy
    means: torch.Tensor | None = None  # [G, K, ...] float32 transition means under the behaviour policy


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One group: the samples of one prompt, made by one version of the policy.

    Example: a group of 16 at 8x8 has ``final_latents`` [16, 16, 8, 8] and ``policy_version`` 3 at step 3.
    """

    prompt: Prompt
    seeds: torch.Tensor  # [G] int64, one per sample; rewards that draw noise derive it from these
    condition: TextCondition
    negative: TextCondition
    final_latents: torch.Tensor  # [G, ...] float32, in the model's scaled space
    plan: SamplingPlan
    guidance_scale: float
    path: DenoisePath | None
    policy_version: int
    seconds: float = 0.0  # the rollout took, on its actor

    @property
    def num_samples(self) -> int:
        """G, the size of the group."""
        return self.final_latents.shape[0]

    @property
    def num_bytes(self) -> int:
        """The size of all tensors, in bytes: what moving this object costs."""
        tensors = [self.seeds, self.final_latents]
        for condition in (self.condition, self.negative):
            tensors += [condition.embeds, condition.pooled]
        if self.path is not None:
            tensors += [self.path.latents, self.path.log_probs]
            tensors += [self.path.means] if self.path.means is not None else []
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, kw_only=True)
class RewardInput:
    """A batch to score: exactly one of `latents` and `pixels` is given, as the reward's `input_kind` says.

    Example: ``RewardInput(prompts=("a cat",), seeds=torch.tensor([1]), pixels=torch.zeros(1, 3, 64, 64))``
    """

    prompts: tuple[str, ...]  # B texts
    seeds: torch.Tensor  # [B] int64
    latents: torch.Tensor | None = None  # [B, ...] float32, model-scaled
    condition: TextCondition | None = None  # given with latents; embeds [B, L, D]
    pixels: torch.Tensor | None = None  # [B, 3, H, W] float32 in [0, 1]

    def take(self, rows: Sequence[int]) -> RewardInput:
        """The samples in these rows, in this order."""
        index, condition = list(rows), self.condition
        if condition is not None:
            condition = TextCondition(embeds=condition.embeds[index], pooled=condition.pooled[index])
        return RewardInput(
            prompts=tuple(self.prompts[row] for row in rows),
            seeds=self.seeds[index],
            latents=None if self.latents is None else self.latents[index],
            condition=condition,
            pixels=None if self.pixels is None else self.pixels[index],
        )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the rewards say of one group.

    Example: ``Scores(per_reward={"dit_reward": s}, total=s, unnormalised=s, valid=s.isfinite())`` with scores s [16]
    """

    per_reward: dict[str, torch.Tensor]  # reward name -> [G] float32
    total: torch.Tensor  # [G] float32, the weighted sum that is trained on
    unnormalised: torch.Tensor  # [G] float32, that sum with no reward normalised: its mean moves as the policy learns
    valid: torch.Tensor  # [G] bool; a sample whose score failed is masked and counted, never zero
    images: torch.Tensor | None = None  # [n, 3, H, W] uint8, the first samples, where images were asked for
    diversity: float = 0.0  # mean pairwise RMS distance of the group's final latents
    trajectory_bytes: int = 0  # what the group's object weighs
    seconds: dict[str, float] = field(default_factory=dict)  # rollout, decode, score -> busy seconds on the actors


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """One group with its advantages, ready to be trained on.

    Example: ``TrainBatch(trajectory=trajectory, advantages=torch.zeros(16))``
    """

    trajectory: Trajectory
    advantages: torch.Tensor  # [G] float32; 0 for masked samples


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of one step, and how several of the same key become one.

    Example: ``Metric(key="policy/kl", value=0.01)``
    """

    key: str
    value: float
    reduce: Reduction = "mean"


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """The loss of one micro-batch and what to report about it."""

    loss: torch.Tensor  # [] float32
    metrics: list[Metric]
    drift: list[Metric]  # how far rollout and learner differ: of the first inner step, as later ones differ on purpose
    ratio_absdev: float  # the largest distance from 1 of a probability ratio; 0 for an algorithm without ratios


@dataclass(frozen=True, kw_only=True)
class PolicyWeights:
    """The trained weights (LoRA only) as one flat buffer.

    Example: rank 32 of SD3.5-Large in float32 is 188.6 MB.
    """

    version: int  # optimizer steps taken; a rollout stamps its trajectories with it
    payload: np.ndarray  # [n] uint8, read-only: the tensors in manifest order, float32
    manifest: str  # blake2 of the names and shapes of the tensors: what must agree between the two sides
    checksum: str  # blake2 of the payload
    is_average: bool = False  # the moving average of the weights, for evaluation, not what is trained


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What one learner rank did in one step."""

    policy_version: int
    metrics: list[Metric]


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a latent reward was trained on, as far as it is known: what it is given must be the same.

    Example: ``TrainedOn(latent_space="vae16x8-scale1.5305-shift0.0609", text_length=333, image_size=512,
    bucket_step=64, max_aspect=2.0)``
    """

    latent_space: str  # as flowrl.core.latent_space names it
    text_length: int = 0  # tokens of a text condition; 0: any, or not known
    # Images were brought to the buckets of a `flowrl.core.buckets.BucketPlan`; 0: not known, or not to those of one.
    image_size: int = 0
    bucket_step: int = 0
    max_aspect: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SampleShapes:
    """The shapes of what a run gives its rewards, for one sample.

    Example: SD3.5 at 512 pixels: ``SampleShapes(latents=(16, 64, 64), pixels=(3, 512, 512), text=(333, 4096),
    pooled=2048, text_dtype=torch.bfloat16)``
    """

    latents: tuple[int, ...]
    pixels: tuple[int, int, int]
    text: tuple[int, int]  # tokens, width
    pooled: int
    text_dtype: torch.dtype
    policy: str = ""  # what makes them, by the name of its folder, such as stable-diffusion-3.5-medium


@dataclass(frozen=True, kw_only=True)
class HollowCall:
    """A network on the meta device, and one call of it: all that memory and work depend on.

    Example: ``HollowCall(module=model, run=model, inputs=(torch.empty(16, 3, 224, 224, device="meta"),))``
    """

    module: torch.nn.Module  # each tensor in the dtype that it has when it scores
    run: Callable[..., object]  # of the inputs; computes with the module, which then has tensors without numbers
    inputs: tuple[object, ...]  # tensors on the meta device, but for those whose numbers matter
    spread: bool = True  # over a gang of scorers
    times: int = 1  # that it is called


@dataclass(frozen=True, kw_only=True)
class HollowReward:
    """What a reward does to score so many samples, without weights and numbers.

    A hollow network never gets weights: it is there to be measured. An empty one (`flowrl.base.empty_module`) lies on
    the meta device too, until it is filled.

    Example: ``HollowReward(samples=16, calls=(call,))``
    """

    samples: int  # scored by the calls, which follow each other
    calls: tuple[HollowCall, ...]
    other_bytes: int = 0  # of weights that are in no call, and whole on each scorer
