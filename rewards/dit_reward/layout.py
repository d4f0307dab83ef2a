"""The folder of a DiT-Reward: config.json, reward_head.safetensors, README.md, and transformer/ as diffusers saves it.

A reward whose backbone is frozen or has a LoRA may leave transformer/ out: then backbone_lora/ holds the LoRA as PEFT
saves it, and the backbone is that of the model it was trained on, which config.json names and has the fingerprint of.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from huggingface_hub import save_torch_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from flowrl.base.embedded import folder_of
from flowrl.base.errors import CheckpointError
from flowrl.base.fingerprint import fingerprint
from flowrl.base.weight_files import check_model_folder, check_safetensors, read_json
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel
from rewards.files import sd3_settings
from rewards.lora_files import LoraSettings, check_lora, save_lora

FORMAT = "dit_reward"
# Whose weights the backbone has: those in the folder, those of the base, or these with the LoRA in the folder.
_OWN, _BASE, _BASE_AND_LORA = "own", "base", "base and lora"
_BACKBONES = (_OWN, _BASE, _BASE_AND_LORA)
LORA = "backbone_lora"
ADAPTER = "default"  # diffusers' name for the one adapter of a model
STEM = "diffusion_pytorch_model"
HEAD = "reward_head.safetensors"
_CARD = """---
library_name: flowrl
tags: [reward-model, latent, stable-diffusion-3]
---
# DiT-Reward on {name}

A latent reward model (arXiv 2606.23626): scores latents of the space `{latent_space}` against a text condition of
{text_length} tokens; higher is better, the zero point has no meaning. Blocks {blocks}; sigma {levels}.
{images}{needs}
```python
from rewards.dit_reward import DiTReward

reward = DiTReward(path="this-folder"{base_option})
```

{notes}
"""
_IMAGES = """
Trained on images of about {image_size} x {image_size} pixels, in buckets of {bucket_step} up to {max_aspect:g} : 1.
"""
_NEEDS = """
**This folder holds no backbone.** It needs that of the model that it was trained on, in the diffusers layout, which was
`{base}`; where that lies elsewhere, say so with `base`. Other weights are refused.
"""
# Of folders that were written before these were known.
_MAY_LACK = {"base_fingerprint", "image_size", "bucket_step", "max_aspect"}


def save(
    model: DiTRewardModel,
    folder: Path,
    *,
    dtype: torch.dtype,
    notes: str = "",
    shard_size: str = "5GB",
    state: dict[str, torch.Tensor] | None = None,
    whole: bool = True,
) -> None:
    """Write the folder; the model itself is left as it is.

    `whole` writes the backbone, a LoRA merged into it; otherwise only what differs from the base that the model was
    made from: the head, and a LoRA where there is one. `state` is the model's state dict where its own tensors are not
    all here, as when they are sharded. Raises ValueError when a base must be known, and its fingerprint is not.
    """
    if not whole and not model.config.base_fingerprint:
        raise ValueError("the backbone can be left out only where the model has the fingerprint of its base")
    state = model.state_dict() if state is None else state
    backbone = {
        key.removeprefix("transformer."): value for key, value in state.items() if key.startswith("transformer.")
    }
    head = {key.removeprefix("head."): value for key, value in state.items() if key.startswith("head.")}
    folder.mkdir(parents=True, exist_ok=True)
    factors = lora_factors(model.transformer, backbone)
    kind = _OWN if whole else _BASE_AND_LORA if factors else _BASE
    settings = {"format": FORMAT, "backbone": kind, **dataclasses.asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if whole:
        _save_backbone(model.transformer, backbone, folder / "transformer", dtype=dtype, shard_size=shard_size)
    elif factors:
        adapter = model.transformer.peft_config[ADAPTER]
        targets = tuple(sorted(factors))
        lora = LoraSettings(rank=adapter.r, alpha=adapter.lora_alpha, targets=targets)
        save_lora(folder / LORA, factors, lora, base=model.config.base)
    stored_head = {key: value.detach().to("cpu", dtype).contiguous() for key, value in head.items()}
    save_file(stored_head, folder / HEAD, metadata={"format": "pt"})
    (folder / "README.md").write_text(_card(model.config, notes, whole=whole), encoding="utf-8")


def _card(config: DiTRewardConfig, notes: str, *, whole: bool) -> str:
    """The model card."""
    settings = dataclasses.asdict(config)
    return _CARD.format(
        **settings,
        name=Path(config.base).name,
        blocks=", ".join(map(str, config.layers)),
        levels=", ".join(map(str, config.sigmas)),
        images=_IMAGES.format(**settings) if config.image_size else "",
        needs="" if whole else _NEEDS.format(**settings),
        base_option="" if whole else f', base="{config.base}"',
        notes=notes,
    )


def _save_backbone(
    transformer: SD3Transformer2DModel,
    state: dict[str, torch.Tensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_size: str,
) -> None:
    transformer.save_config(folder)
    weights = {key: value.detach().to("cpu", dtype) for key, value in merged_weights(transformer, state).items()}
    save_torch_state_dict(
        weights,
        folder,
        filename_pattern=STEM + "{suffix}.safetensors",
        max_shard_size=shard_size,
        metadata={"format": "pt"},
    )


def lora_factors(
    transformer: SD3Transformer2DModel, state: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The factors A [r, in] and B [out, r] of each layer that has a LoRA, by the layer's name."""
    return {
        name: (state[f"{name}.lora_A.{ADAPTER}.weight"], state[f"{name}.lora_B.{ADAPTER}.weight"])
        for name, layer in transformer.named_modules()
        if isinstance(layer, LoraLayer)
    }


def merged_weights(transformer: SD3Transformer2DModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a transformer under its plain keys, its LoRA (if it has one) added to the weights."""
    weights = {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}
    for name, (down, up) in lora_factors(transformer, state).items():
        scale = transformer.get_submodule(name).scaling[ADAPTER]
        base = weights[f"{name}.weight"]
        weights[f"{name}.weight"] = (base.float() + scale * (up.float() @ down.float())).to(base.dtype)
    return weights


@dataclass(frozen=True, kw_only=True)
class RewardFolder:
    """A DiT-Reward's folder whose config.json has been read, and where its backbone lies.

    Example: ``open_folder(Path("my-reward")).config.text_length``
    """

    path: Path
    config: DiTRewardConfig
    kind: str  # whose weights the backbone has, one of _BACKBONES
    backbone: Path  # a transformer as diffusers saves it

    @property
    def has_lora(self) -> bool:
        """Whether the folder holds a LoRA that belongs on the backbone."""
        return self.kind == _BASE_AND_LORA


def read_folder(path: Path, base: str = "") -> RewardFolder:
    """Read config.json and find the backbone, of which nothing is looked at; raises CheckpointError when the folder is
    not a DiT-Reward, has no backbone, or has its own and is given a base.

    `base` is the diffusers folder of the backbone where the folder holds none, by default the one in its config.json.
    """
    settings = _read_settings(path)
    kind = settings.pop("backbone", None)
    config = _config(settings, path / "config.json")
    if kind not in _BACKBONES:
        raise CheckpointError(f"{path / 'config.json'}: backbone must be one of {_BACKBONES}, got {kind!r}")
    if kind == _OWN and base:
        raise CheckpointError(f"{path}: holds its own backbone; leave the option base out, which is {base}")
    return RewardFolder(path=path, config=config, kind=kind, backbone=_backbone(path, kind, base or config.base))


def holds_backbone(path: Path) -> bool:
    """Whether a reward needs no base; raises CheckpointError when the folder is not a DiT-Reward."""
    return _read_settings(path).get("backbone") == _OWN


def named_base(path: Path) -> str:
    """The model that a reward was trained on, as config.json has it; raises CheckpointError when the folder is not a
    DiT-Reward.
    """
    return str(_read_settings(path).get("base", ""))


def open_folder(path: Path, base: str = "") -> RewardFolder:
    """Read a folder as `read_folder` does, its weights looked at but hardly read; raises CheckpointError naming the
    file that is at fault.
    """
    folder = read_folder(path, base)
    check_weights(folder)
    return folder


def check_weights(folder: RewardFolder) -> None:
    """Raise CheckpointError, naming the file, unless all weights are there and the backbone is that of the training."""
    sd3_settings(folder.backbone)
    check_model_folder(folder.backbone, STEM)
    if folder.kind != _OWN:
        _check_base(folder)
    if folder.has_lora:
        check_lora(folder.path / LORA)
    check_safetensors(folder.path / HEAD)


def text_shape(path: Path) -> tuple[int, int, int]:
    """The text conditions that a reward reads: tokens, their width, and the width of the pooled vector."""
    folder = read_folder(path)
    settings = sd3_settings(folder.backbone)
    return folder.config.text_length, int(settings["joint_attention_dim"]), int(settings["pooled_projection_dim"])


def _read_settings(folder: Path) -> dict[str, Any]:
    """The content of config.json but for its format; raises CheckpointError when the folder is not a DiT-Reward."""
    if not (folder / "config.json").is_file():
        hint = " (a diffusers pipeline)" if (folder / "model_index.json").is_file() else ""
        raise CheckpointError(
            f"{folder}{hint} is not a DiT-Reward folder: it has no config.json; "
            f"expected config.json, transformer/ and {HEAD}"
        )
    settings = read_json(folder / "config.json")
    if settings.pop("format", None) != FORMAT:
        raise CheckpointError(f"{folder} is not a DiT-Reward folder: its config.json does not say format {FORMAT!r}")
    return settings


def _config(settings: dict[str, Any], file: Path) -> DiTRewardConfig:
    """The config that a file's settings are; raises CheckpointError when they are of another kind."""
    fields = {field.name for field in dataclasses.fields(DiTRewardConfig)}
    missing, unknown = sorted(fields - _MAY_LACK - settings.keys()), sorted(settings.keys() - fields)
    if missing or unknown:
        raise CheckpointError(f"{file}: missing keys {missing}, unknown keys {unknown}")
    for key in ("layers", "head_dims", "sigmas"):
        settings[key] = tuple(settings[key])
    try:
        return DiTRewardConfig(**settings)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _backbone(folder: Path, kind: str, base: str) -> Path:
    """Where the transformer lies: in the folder itself, or in that of the model it was trained on."""
    if kind == _OWN:
        if not (folder / "transformer").is_dir():
            raise CheckpointError(f"{folder}: transformer/ is missing; copy the folder again")
        return folder / "transformer"
    found = folder_of(base, "sd35") / "transformer"
    if not found.is_dir():
        raise CheckpointError(
            f"{folder}: holds no backbone, and {base} is not a folder with a transformer/; give the diffusers folder "
            "of the model that it was trained on with the option base"
        )
    return found


def _check_base(folder: RewardFolder) -> None:
    """Raise CheckpointError unless the backbone has the weights that the reward was trained on."""
    config = folder.config
    if not config.base_fingerprint:
        raise CheckpointError(
            f"{folder.path / 'config.json'}: has no base_fingerprint, so that the weights in {folder.backbone} cannot "
            "be told from others; export the reward again: flowrl reward train --resume RUN_DIR"
        )
    if fingerprint(folder.backbone, STEM) != config.base_fingerprint:
        raise CheckpointError(
            f"{folder.path}: was trained on other weights than those in {folder.backbone}; give the diffusers folder "
            f"of the model that it was trained on ({config.base}, as it was then) with the option base"
        )
