"""What every layer of a frozen backbone gives for every sample: its image tokens, pooled to one vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.errors import UserError
from flowrl.base.weight_files import read_json
from flowrl.models.sd3 import SD3
from rewards.data.store import PreferenceStore
from rewards.dit_reward.features import FeatureShards, features_name, model_inputs
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel
from rewards.dit_reward.training import check_store, new_model
from rewards.files import checkpoint_folder
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


class LayerReader:
    """A frozen backbone, read before its first block and after others; of `model` only the taps are used, not the head.

    `layers` are those to probe; the taps of `model` are the blocks among them.
    """

    def __init__(self, model: DiTRewardModel, layers: tuple[int, ...]) -> None:
        self.model = model.requires_grad_(False).eval()
        self.layers = layers

    @torch.no_grad()
    def read(self, store: PreferenceStore, samples: torch.Tensor) -> torch.Tensor:
        """The mean image tokens [n, S, D] float32 on the CPU, of samples [n] of one shape at the S layers."""
        entering: list[torch.Tensor] = []
        first = self.model.transformer.transformer_blocks[0]
        (sigma,) = self.model.config.sigmas
        with first.register_forward_pre_hook(
            lambda _, __, inputs: entering.append(inputs["hidden_states"]), with_kwargs=True
        ):
            taps = self.model.taps(*model_inputs(self.model, store, samples), sigma)
        seen = dict(zip((INPUT, *self.model.config.layers), (*entering, *taps), strict=True))
        return torch.stack([seen[layer].mean(1) for layer in self.layers], 1).float().cpu()


def open_backbone(config: ProbeConfig, stores: list[PreferenceStore]) -> LayerReader:
    """The backbone, frozen, with the layers to probe; raises CheckpointError or ConfigError when they do not fit."""
    folder = checkpoint_folder(config.model.path, "sd35")
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
    model = new_model(folder / "transformer", settings, pretrained=pretrained, seed=config.seed)
    return LayerReader(model.to(torch_dtype(config.model.precision)), layers)


def layer_features(
    config: ProbeConfig, reader: LayerReader, store: PreferenceStore, device: torch.device
) -> LayerFeatures:
    """The features of all samples of a set, computed where `out`/features does not hold them yet.

    Raises UserError when a layer's are not finite.
    """
    name = features_name(reader.model, store.folder.name, _identity(config, reader, store))
    shards = FeatureShards(Path(config.out) / "features" / name, len(store.shape))
    reader.model.to(device)
    shards.compute(partial(reader.read, store), store.shape, batch_size=config.model.batch_size)
    parts = [shards.rows(rows).movedim(1, 0) for rows in torch.arange(len(store.shape)).split(_CHUNK)]
    values = torch.cat(parts, 1)
    broken = [layer for layer, one in zip(reader.layers, values, strict=True) if not one.isfinite().all()]
    if broken:
        raise UserError(f"{store.folder}: layer {broken[0]} has features that are not finite; leave it out of layers")
    return LayerFeatures(layers=reader.layers, values=values)


def _identity(config: ProbeConfig, reader: LayerReader, store: PreferenceStore) -> str:
    """What features depend on beside the model's config: other layers, weights or samples are other features.

    Of the weights that config has a fingerprint.
    """
    model = config.model
    drawn = "" if model.init == "pretrained" else f"-{config.seed}"
    return f"probe-{model.path}-{reader.layers}-{model.init}{drawn}-{model.precision}-{store.stamp}"
