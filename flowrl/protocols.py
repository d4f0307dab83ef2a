"""What the parts of flowrl ask of each other. The Protocols share no code; a class fits one by having its members.

What they ask of a reward is in `flowrl.reward_protocols`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from flowrl.types import (
    LossOutput,
    PolicyWeights,
    Quantisation,
    RolloutRequest,
    SamplingPlan,
    Scores,
    TextCondition,
    TrainBatch,
    Trajectory,
    UpdateResult,
)


class PromptEncoder(Protocol):
    """The text encoders of a policy family; loaded without its transformer."""

    def encode(self, text: str) -> TextCondition:
        """The condition of one text, cached by the caller."""
        ...

    def cuts(self, text: str) -> bool:
        """Whether the end of a text is not read, as it is too long."""
        ...


class Decoder(Protocol):
    """The image decoder of a policy family; loaded without its transformer."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-scaled latents [B, ...] to pixels [B, 3, H, W] float32 in [0, 1]."""
        ...


class ImageEncoder(Protocol):
    """What turns images into the latents of a policy family; loaded without its transformer."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [0, 1] to model-scaled latents [B, ...] float32.

        Deterministic. Raises ValueError for a size of which the family makes no latents.
        """
        ...


class Policy(Protocol):
    """A velocity model with a LoRA adapter: what is sampled from and trained."""

    latent_space: str  # names the VAE and its scaling; a latent reward must name the same
    latent_shape: tuple[int, ...]  # of one sample
    module: torch.nn.Module  # what the learner wraps; velocity() runs through it

    def sigmas(self, num_steps: int) -> torch.Tensor:
        """The noise levels of a run of `num_steps`: [num_steps + 1] float32, from 1 down to 0."""
        ...

    def velocity(
        self,
        latents: torch.Tensor,
        sigma: torch.Tensor,
        condition: TextCondition,
        negative: TextCondition,
        guidance_scale: float,
    ) -> torch.Tensor:
        """d x / d sigma for latents [B, ...] at sigma []: float32; with guidance in one doubled forward."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Within the context the adapter is off: the policy is its own reference."""
        ...

    def attach_adapter(self, *, rank: int, alpha: int, targets: list[str], seed: int) -> None:
        """Freeze the model and add a LoRA adapter that changes nothing yet."""
        ...

    def checkpoint_activations(self) -> None:
        """From now on keep few activations for a backward pass, and compute the others again in it."""
        ...

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The adapter's parameters by name, in a fixed order."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in the format that the family's pipeline loads."""
        ...

    def load_adapter(self, folder: Path) -> None:
        """Copy what `save_adapter` wrote into the attached adapter; raises ValueError when it does not fit."""
        ...


class PolicyFamily(Protocol):
    """How the parts of one family of models are loaded from a folder, each without the others."""

    def check(self, path: Path) -> None:
        """Raise ValueError, naming the file, unless the folder can be loaded."""
        ...

    def latent_space(self, path: Path) -> str:
        """The name of the folder's latent space."""
        ...

    def text_length(self, path: Path, max_sequence_length: int) -> int:
        """The tokens of a text condition by the folder's text encoders at this `max_sequence_length`."""
        ...

    def text_encoders(self, path: Path) -> str:
        """A digest of what makes text conditions in the folder: weights and tokenizers."""
        ...

    def check_options(self, *, quantisation: Quantisation, attention: str, dtype: torch.dtype, device: str) -> None:
        """Raise an error that says what is missing here of what `load_policy` needs; touches no GPU."""
        ...

    def load_policy(
        self,
        path: Path,
        *,
        image_size: int,
        dtype: torch.dtype,
        device: str,
        to_be_cut: bool,
        quantisation: Quantisation,
        attention: str,
    ) -> Policy:
        """The velocity model, frozen parts and all, without an adapter; `attention` is a backend of diffusers.

        With `to_be_cut` its weights are left on the CPU, and reach the device in parts when ranks share them.
        """
        ...

    def load_encoder(self, path: Path, *, max_sequence_length: int, dtype: torch.dtype, device: str) -> PromptEncoder:
        """The text encoders."""
        ...

    def load_decoder(self, path: Path, *, device: str) -> Decoder:
        """The image decoder."""
        ...

    def load_image_encoder(self, path: Path, *, device: str) -> ImageEncoder:
        """The image encoder, which scores images with latent rewards; sampling and training need none."""
        ...


class Algorithm(Protocol):
    """Turns scores into advantages and trajectories into a loss."""

    needs_means: bool  # whether trajectories must carry transition means
    inner_steps: int  # optimizer steps per step

    def plan(self, step: int, num_steps: int) -> SamplingPlan:
        """How the rollouts of a step sample, and which sampler steps are trained."""
        ...

    def advantages(self, scores: list[Scores]) -> list[torch.Tensor]:
        """One [G] float32 tensor per group of the step."""
        ...

    def loss(self, policy: Policy, batch: TrainBatch, samples: slice, step_index: int) -> LossOutput:
        """The loss of some samples of one group at one trained sampler step."""
        ...


class Encoder(Protocol):
    """Turns prompts into text conditions."""

    def prepare(self, texts: list[str]) -> int:
        """Make ready for these texts to be asked for; returns how many had to be encoded."""
        ...

    def encode(self, text: str) -> TextCondition:
        """The condition of one text."""
        ...


class Movable(Protocol):
    """An actor whose frozen weights can leave its device while it has nothing to do."""

    def move_frozen(self, on_device: bool) -> None:
        """Have them on the device, or else in the host's memory; what is trained stays on the device."""
        ...


class Rollout(Protocol):
    """Samples groups with the behaviour policy."""

    def generate(self, request: RolloutRequest, condition: TextCondition, negative: TextCondition) -> Trajectory:
        """One group."""
        ...

    def load_weights(self, weights: PolicyWeights) -> int:
        """Sample with these weights from now on; returns how many bytes they are."""
        ...


class Scorer(Protocol):
    """Scores groups with one or more rewards."""

    def score(self, trajectory: Trajectory) -> Scores:
        """The scores of one group by the rewards that are trained on."""
        ...

    def evaluate(self, trajectory: Trajectory, num_images: int) -> Scores:
        """The scores of one group by every reward, with its first images."""
        ...


class Learner(Protocol):
    """Trains the policy on groups."""

    def update(self, step: int, advantages: list[torch.Tensor], *trajectories: Trajectory) -> UpdateResult:
        """One step: all its inner steps. Raises when `step` is not the one that is due.

        Trajectories are positional arguments of their own because a reference to one reaches an actor as its value
        only there, not inside a list.
        """
        ...

    def weights(self, ema: bool) -> PolicyWeights:
        """The current weights, or their moving average."""
        ...

    def save(self, folder: str) -> None:
        """Write all that a resumed run needs; asked of every rank, and the first writes."""
        ...

    def load(self, folder: str) -> None:
        """Continue from what `save` wrote."""
        ...

    def sees(self, file: str) -> bool:
        """Whether a file is there, on the node of this learner."""
        ...

    def export(self, folder: str) -> None:
        """Write the adapter as the family's own pipeline loads it; asked of every rank, and the first writes."""
        ...

    def load_adapter(self, folder: str) -> None:
        """Start from an exported adapter."""
        ...
