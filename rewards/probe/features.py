"""What every layer of a frozen backbone gives for every sample: its image tokens, pooled to one vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.errors import UserError
from flowrl.base.weight_files import read_json
from flowrl.core.seeds import derive, global_seed
from flowrl.models.sd3 import SD3
from rewards.data.store import TABLES, PreferenceStore
from rewards.dit_reward.features import FeatureShards, features_name
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel
from rewards.dit_reward.training import check_store, new_model
from rewards.files import resolve
from rewards.probe.config import INPUT, ProbeConfig, chosen_layers

_CHUNK = 4096  # samples read at once


@dataclass(frozen=True, kw_only=True)
class LayerFeatures:
    """Pooled features of N samples at S layers.

    Example: seven layers of width 96: ``LayerFeatures(layers=(-1, 0, 1, 2, 3, 4, 5), values=torch.zeros(7, N, 96))``
    """

    layers: tuple[int, ...]  # ascending; INPUT or a block
    values: torch.Tensor  # [S, N, D] float32

    def standardised(self, by: LayerFeatures) -> LayerFeatures:
        """With the mean and the spread over the samples of `by` taken out of every channel of every layer.

        Layers differ in scale by orders of magnitude; so one learning rate suits all, and a pair is not its larger one.
        """
        spread = by.values.std(1, keepdim=True).clamp(min=1e-6)
        return LayerFeatures(layers=self.layers, values=(self.values - by.values.mean(1, keepdim=True)) / spread)

    def to(self, device: torch.device) -> LayerFeatures:
        """The same on another device."""
        return LayerFeatures(layers=self.layers, values=self.values.to(device))


class LayerReader(DiTRewardModel):
    """A frozen backbone, read before its first block and after every chosen one; its head is not used."""

    def features(
        self, latents: torch.Tensor, noise: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor, sigma: float
    ) -> torch.Tensor:
        """The mean image tokens [B, (1 + L) * D] that enter block 0, then of the L chosen blocks."""
        entering: list[torch.Tensor] = []
        first = self.transformer.transformer_blocks[0]
        with first.register_forward_pre_hook(
            lambda _, __, inputs: entering.append(inputs["hidden_states"]), with_kwargs=True
        ):
            taps = self.taps(latents, noise, embeds, pooled, sigma)
        return torch.cat([tokens.mean(1) for tokens in (*entering, *taps)], 1)


def open_backbone(config: ProbeConfig, stores: list[PreferenceStore]) -> tuple[LayerReader, tuple[int, ...]]:
    """The backbone, frozen, and the layers to probe; raises CheckpointError or ConfigError when they do not fit."""
    folder = resolve(config.model.path, "sd35")
    for store in stores:
        check_store(store.info, SD3.latent_space(folder), store.folder)
    num_blocks = int(read_json(folder / "transformer" / "config.json").get("num_layers", 0))
    layers = chosen_layers(config, num_blocks)
    # Whatever comes first, a block must be run for the input to be seen.
    blocks = tuple(layer for layer in layers if layer != INPUT) or (0,)
    settings = DiTRewardConfig(
        text_length=stores[0].info.text_length,
        layers=blocks,
        sigmas=(config.model.sigma,),
        head_dims=(),
        feature_norm=False,
        latent_space=stores[0].info.latent_space,
        base=config.model.path,
    )
    pretrained = config.model.init == "pretrained"
    made = new_model(folder / "transformer", settings, pretrained=pretrained, seed=config.seed)
    with global_seed(derive(config.seed, "head")):
        reader = LayerReader(made.transformer, settings)
    reader.requires_grad_(False).to(torch_dtype(config.model.precision))
    return reader, layers


def layer_features(
    config: ProbeConfig, reader: LayerReader, layers: tuple[int, ...], store: PreferenceStore, device: torch.device
) -> LayerFeatures:
    """The features of all samples of a set, computed where `out`/features does not hold them yet.

    Raises UserError when a layer's are not finite.
    """
    shards = FeatureShards(
        Path(config.out) / "features" / features_name(reader, store.folder.name, _identity(config, store)),
        len(store.shape),
    )
    shards.compute(reader, store, batch_size=config.model.batch_size, device=device, rank=0, world=1)
    computed = (INPUT, *reader.config.layers)
    places = [computed.index(layer) for layer in layers]
    parts = [
        shards.rows(rows)[:, 0].unflatten(1, (len(computed), -1))[:, places].movedim(1, 0)
        for rows in torch.arange(len(store.shape)).split(_CHUNK)
    ]
    values = torch.cat(parts, 1)
    broken = [layer for layer, one in zip(layers, values, strict=True) if not one.isfinite().all()]
    if broken:
        raise UserError(
            f"{store.folder}: layer {broken[0]} has features that are not finite as float16; leave it out of layers"
        )
    return LayerFeatures(layers=layers, values=values)


def _identity(config: ProbeConfig, store: PreferenceStore) -> str:
    """What features depend on beside the layers and sigma: other weights or other samples are other features."""
    model = config.model
    files = [store.folder / TABLES]
    drawn = f"-{config.seed}"
    if model.init == "pretrained":
        drawn = ""
        files += sorted((resolve(model.path, "sd35") / "transformer").glob("*.safetensors"))
    stats = [file.stat() for file in files]
    sizes = "-".join(f"{stat.st_size}.{stat.st_mtime_ns}" for stat in stats)
    return f"probe-{model.path}-{model.init}{drawn}-{model.precision}-{sizes}"
