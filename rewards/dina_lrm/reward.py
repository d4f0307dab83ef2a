"""DiNa-LRM as a reward: the sampler's final latents and the policy's own text condition in, scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.types import RewardInput, TrainedOn
from rewards.dina_lrm.layout import check_files, load
from rewards.dina_lrm.model import sample_noise

DEFAULT_U = 0.4  # published for latents that come from a sampler; 0.1 for those of images from disk


class DiNaLRM:
    """Scores latents with DiNa-LRM (arXiv 2602.11146); raw scores of the published one lie about -10 to 10.

    `path` is the published folder, `base` the diffusers folder of Stable Diffusion 3.5 Medium that it was trained on.
    `u` is the noise level; a list of them joins their tokens (published: 0.2, 0.5, 0.7). `calibrated` gives
    (raw + 10) / 10, as the published code reports it. `text_length` demands so many text tokens of the condition
    (0: any); the published length of T5 is 128 in training and 256 in inference, with 77 of CLIP before it.

    Raises `flowrl.base.errors.CheckpointError` when it cannot be loaded.
    """

    name = "dina_lrm"
    input_kind: Literal["latent", "pixel"] = "latent"

    def __init__(
        self,
        path: str,
        base: str,
        u: float | list[float] = DEFAULT_U,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 16,
        calibrated: bool = False,
        text_length: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"dina_lrm: batch_size must be at least 1, got {batch_size}")
        if text_length < 0:
            raise ValueError(f"dina_lrm: text_length must be at least 0 (any length), got {text_length}")
        loaded = load(path, base, _levels(u), dtype=torch_dtype(dtype))
        self.latent_space: str | None = loaded.latent_space
        self.channels = loaded.channels
        self.calibrated = calibrated
        self.text_length = text_length
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.module: torch.nn.Module = loaded.model.to(self.device)

    @staticmethod
    def check(options: Mapping[str, Any]) -> TrainedOn | None:
        """The latent space of the base that `options` name, and the text length that they demand.

        No image sizes: published are buckets of many areas, from 256 x 256 to 1472 x 832, which no one plan describes.
        Raises CheckpointError when the files are not whole.
        """
        _levels(options.get("u", DEFAULT_U))
        space = check_files(options["path"], options["base"])
        return TrainedOn(latent_space=space, text_length=options.get("text_length", 0))

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32, with gradient to `batch.latents` where that asks for one.

        Latents [B, C, h, w] float32 model-scaled; condition embeds [B or 1, L, D]. Raises ValueError when the batch
        lacks latents or their condition, or has other channels or another text length than it must.
        """
        latents, condition = batch.latents, batch.condition
        if latents is None or condition is None:
            raise ValueError("dina_lrm scores latents: the batch must hold latents and their text condition")
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(
                f"dina_lrm reads latents of {self.channels} channels in the space {self.latent_space!r}, "
                f"got latents {list(latents.shape)}; use a reward made for this policy's VAE"
            )
        if self.text_length not in (0, condition.embeds.shape[1]):
            raise ValueError(
                f"dina_lrm: text_length asks for {self.text_length} text tokens, got {condition.embeds.shape[1]}; "
                "encode prompts with another max_sequence_length, or set text_length to 0"
            )
        size = len(latents)
        noise = sample_noise(batch.seeds, tuple(latents.shape[1:]))
        inputs = (latents, noise, condition.embeds.expand(size, -1, -1), condition.pooled.expand(size, -1))
        scores: torch.Tensor = self.module(*(tensor.to(self.device) for tensor in inputs))
        return (scores + 10) / 10 if self.calibrated else scores


def _levels(u: float | Sequence[float]) -> tuple[float, ...]:
    """The noise levels that `u` names; raises ValueError when there is none or one outside [0, 1]."""
    levels = tuple(u) if isinstance(u, Sequence) else (u,)
    if not levels or not all(isinstance(level, int | float) and 0 <= level <= 1 for level in levels):
        raise ValueError(f"dina_lrm: u must be a number in [0, 1] or a list of such numbers, got {u!r}")
    return levels
