"""DiNa-LRM as a reward: the sampler's final latents and the policy's own text condition in, scores out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.reward_protocols import NeededFiles
from flowrl.types import HollowReward, RewardInput, SampleShapes, TrainedOn
from rewards.batch_inputs import LatentFormat
from rewards.dina_lrm.hollow import hollow_dina
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
        loaded = load(path, base, _levels(u), dtype=torch_dtype(dtype))
        self.latent_space: str | None = loaded.latent_space
        self._format = LatentFormat(
            reward=self.name,
            latent_space=loaded.latent_space,
            channels=loaded.channels,
            text_length=_checked_length(text_length),
            noise=sample_noise,
        )
        self.calibrated = calibrated
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.module: torch.nn.Module = loaded.model.to(self.device)

    @staticmethod
    def preflight(path: str, base: str, u: float | list[float], text_length: int) -> TrainedOn | None:
        """The latent space of the `base`, and the text length that is demanded.

        No image sizes: published are buckets of many areas, from 256 x 256 to 1472 x 832, which no one plan describes.
        Raises CheckpointError when the files are not whole, ValueError when there are no such levels or lengths.
        """
        _levels(u)
        return TrainedOn(latent_space=check_files(path, base), text_length=_checked_length(text_length))

    @staticmethod
    def needs(path: str, base: str) -> tuple[NeededFiles, ...]:
        """The folder `path`, and the model that it was trained on."""
        return (
            NeededFiles(option="path", path=Path(path)),
            NeededFiles(option="base", path=Path(base), kind="base"),
        )

    @staticmethod
    def hollow(
        path: str, base: str, u: float | list[float], dtype: str, batch_size: int, shapes: SampleShapes
    ) -> HollowReward:
        """The network of the folders, or of the published sizes for one that is not there yet."""
        return hollow_dina(path, base, len(_levels(u)), dtype, batch_size, shapes)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32, with gradient to `batch.latents` where that asks for one.

        Latents [B, C, h, w] float32 model-scaled; condition embeds [B or 1, L, D]. Raises ValueError when the batch
        lacks latents or their condition, or has other channels or another text length than it must.
        """
        scores: torch.Tensor = self.module(*self._format.tensors(batch, self.device))
        return (scores + 10) / 10 if self.calibrated else scores


def _checked_length(text_length: int) -> int:
    """A number of text tokens to demand; raises ValueError when there can be no such number."""
    if text_length < 0:
        raise ValueError(f"dina_lrm: text_length must be at least 0 (any length), got {text_length}")
    return text_length


def _levels(u: float | Sequence[float]) -> tuple[float, ...]:
    """The noise levels that `u` names; raises ValueError when there is none or one outside [0, 1]."""
    levels = tuple(u) if isinstance(u, Sequence) else (u,)
    if not levels or not all(isinstance(level, int | float) and 0 <= level <= 1 for level in levels):
        raise ValueError(f"dina_lrm: u must be a number in [0, 1] or a list of such numbers, got {u!r}")
    return levels
