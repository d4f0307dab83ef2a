"""Whether a backbone reads images of the sizes that a set holds, or that the buckets of a configuration make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from flowrl.base.config_tree import ConfigError
from flowrl.base.weight_files import read_json
from flowrl.core.buckets import BucketPlan
from flowrl.core.latent_space import factor_of
from rewards.data.store import PreferenceStore
from rewards.files import sd3_settings

_DEFAULT_POSITIONS, _DEFAULT_PATCH = 96, 2  # of diffusers' SD3Transformer2DModel, where its config.json is silent


@dataclass(frozen=True, kw_only=True)
class ReadableSizes:
    """The longest sides of what a Stable Diffusion 3 model reads: it has so many positions along each.

    Example: SD3.5-Large has 192 positions of 2 x 2 latents of 8 x 8 pixels, 3,072 pixels on a side.
    """

    path: str  # of the model, as the configuration names it
    latents: int  # along the longest side
    factor: int  # pixels of a side of one latent

    @classmethod
    def of(cls, path: str, folder: Path) -> ReadableSizes:
        """Those of the model in `folder`, from its configs alone; raises CheckpointError when it is another model's."""
        transformer = sd3_settings(folder / "transformer")
        positions = transformer.get("pos_embed_max_size", _DEFAULT_POSITIONS)
        return cls(
            path=path,
            latents=int(positions) * int(transformer.get("patch_size", _DEFAULT_PATCH)),
            factor=factor_of(read_json(folder / "vae" / "config.json")),
        )

    @property
    def pixels(self) -> int:
        """Along the longest side."""
        return self.latents * self.factor

    def check_buckets(self, buckets: BucketPlan) -> None:
        """Raise ConfigError when images would be brought to a size that the model cannot read."""
        if self._reads(buckets):
            return
        step, start = buckets.step, f"data.image_size={buckets.image_size} with data.max_aspect={buckets.max_aspect:g}"
        found = (
            f"{start} makes images of {_longest(buckets)} pixels on a side, but {self.path} reads at most {self.pixels}"
        )
        if step > self.pixels:
            raise ConfigError(f"{found}; set data.bucket_step and data.image_size to {self.pixels} or less")
        tried = (
            BucketPlan(image_size=size, step=step, max_aspect=buckets.max_aspect)
            for size in range(self.pixels // step * step, 0, -step)
        )
        advice = f"set data.image_size={next(filter(self._reads, tried)).image_size}"
        if self._reads(BucketPlan(image_size=buckets.image_size, step=step, max_aspect=1)):
            advice += " or data.max_aspect=1"
        raise ConfigError(f"{found}; {advice}")

    def check_set(self, store: PreferenceStore) -> None:
        """Raise ConfigError when a set holds latents that are larger than the model reads."""
        longest = max((max(store.tensors("latents", row).shape[-2:]) for row in _one_of_each_shape(store)), default=0)
        if longest > self.latents:
            raise ConfigError(
                f"{store.folder}: holds images of {longest * self.factor} pixels on a side, but {self.path} reads at "
                f"most {self.pixels}; prepare another set, in another data.store, with data.image_size={self.pixels} "
                "or less, or name a model.path that reads them"
            )

    def _reads(self, buckets: BucketPlan) -> bool:
        return _longest(buckets) <= self.pixels


def _longest(buckets: BucketPlan) -> int:
    return max(max(size) for size in buckets.sizes())


def _one_of_each_shape(store: PreferenceStore) -> list[torch.Tensor]:
    """The number [1] of the first sample of each shape."""
    return [(store.shape == shape).nonzero()[0] for shape in torch.unique(store.shape).tolist()]
