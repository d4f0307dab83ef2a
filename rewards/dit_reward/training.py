"""DiT-Reward in training: made from a diffusion transformer, fed from a prepared preference set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

from flowrl.base.errors import CheckpointError
from flowrl.base.fingerprint import fingerprint
from flowrl.core.seeds import derive, global_seed
from flowrl.models.load_part import load_part
from rewards.data.store import PreferenceStore, StoreInfo
from rewards.dit_reward import layout
from rewards.dit_reward.features import FeatureShards
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel, Mode, RewardHead, sample_noise
from rewards.files import sd3_settings


class DiTRewardTraining:
    """A DiT-Reward whose backbone is frozen, learns through a LoRA, or learns whole."""

    head_prefixes: tuple[str, ...] = ("head.",)
    no_decay: tuple[str, ...] = ()

    def __init__(self, model: DiTRewardModel, mode: Mode, *, lora_rank: int, seed: int) -> None:
        with global_seed(derive(seed, "lora")):
            model.train_only(mode, lora_rank=lora_rank)
        self.module: torch.nn.Module = model
        self.model = model
        self.score_bias = f"head.{model.head.last_bias}"

    def inputs(
        self, store: PreferenceStore, samples: torch.Tensor, seeds: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, ...]:
        """Latents [B, C, h, w], noise of the same shape, embeds [B, L, D] and pooled [B, P] of samples [B]."""
        latents = store.tensors("latents", samples)
        condition = store.conditions(store.prompt[samples])
        noise = sample_noise(seeds, tuple(latents.shape[1:]))
        return tuple(tensor.to(device) for tensor in (latents, noise, condition.embeds, condition.pooled))

    def save(
        self, folder: Path, state: dict[str, torch.Tensor], *, dtype: torch.dtype, notes: str, whole: bool
    ) -> None:
        """Write a DiT-Reward folder; unless `whole`, only what differs from the backbone that it started with."""
        layout.save(self.model, folder, dtype=dtype, notes=notes, state=state, whole=whole)


def new_model(transformer_folder: Path, config: DiTRewardConfig, *, pretrained: bool, seed: int) -> DiTRewardModel:
    """A DiT-Reward in float32 with a fresh head on a transformer as diffusers saves it, whose fingerprint its config
    gets, or on random weights of its sizes; raises CheckpointError when the folder is not that of an SD3 transformer.
    """
    settings = sd3_settings(transformer_folder)
    with global_seed(derive(seed, "head")):
        if pretrained:
            config = replace(config, base_fingerprint=fingerprint(transformer_folder, layout.STEM))
            transformer = load_part(SD3Transformer2DModel, transformer_folder, torch.float32)
        else:
            transformer = SD3Transformer2DModel.from_config(settings)
        try:
            return DiTRewardModel(transformer, config)
        except ValueError as error:
            raise CheckpointError(f"{transformer_folder}: {error}") from None


def check_store(info: StoreInfo, space: str, folder: Path) -> None:
    """Raise CheckpointError unless a prepared set holds latents of the space that the backbone reads."""
    if info.latent_space != space:
        raise CheckpointError(
            f"{folder}: was prepared in the latent space {info.latent_space!r}, but the backbone reads {space!r}; "
            "prepare it again with this model.path"
        )


def check_text_length(info: StoreInfo, text_length: int, folder: Path) -> None:
    """Raise CheckpointError unless a prepared set holds texts of the length that the configuration asks for."""
    if info.text_length != text_length:
        raise CheckpointError(
            f"{folder}: was prepared with {info.text_length} text tokens, but data.max_sequence_length asks for "
            f"{text_length}, those of CLIP and T5 together; correct the key, or prepare the set again"
        )


class CachedHead(torch.nn.Module):
    """The head on features that were computed before: [B, K, F] to outputs [B, 1 or 2], averaged over K levels."""

    def __init__(self, head: RewardHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        levels = [self.head(features[:, level]) for level in range(features.shape[1])]
        return levels[0] if len(levels) == 1 else torch.stack(levels).mean(0)


class FrozenDiTRewardTraining:
    """A DiT-Reward of which the head alone learns, on features that are computed once.

    Only for mean pooling: attention pools learn, and so need the tokens.
    """

    head_prefixes: tuple[str, ...] = ("head.",)
    no_decay: tuple[str, ...] = ()

    def __init__(self, model: DiTRewardModel, features: dict[Path, FeatureShards]) -> None:
        model.train_only("frozen")
        self.model = model
        self.module: torch.nn.Module = CachedHead(model.head)
        self.score_bias = f"head.{model.head.last_bias}"
        self._features = features  # by the folder of the prepared set

    def inputs(
        self, store: PreferenceStore, samples: torch.Tensor, seeds: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, ...]:
        """The features [B, K, F] of samples [B]; their noise was drawn by prompt, `seeds` is not used."""
        return (self._features[store.folder].rows(samples).to(device),)

    def save(
        self, folder: Path, state: dict[str, torch.Tensor], *, dtype: torch.dtype, notes: str, whole: bool
    ) -> None:
        """Write a DiT-Reward folder with the backbone that the features came from."""
        both = {f"transformer.{key}": value for key, value in self.model.transformer.state_dict().items()} | state
        layout.save(self.model, folder, dtype=dtype, notes=notes, state=both, whole=whole)
