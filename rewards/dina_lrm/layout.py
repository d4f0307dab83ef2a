"""The published folder of DiNa-LRM, and the Stable Diffusion 3.5 Medium folder whose weights it changes.

Published (code of arXiv 2602.11146): `config.json` with a section `model`, `checkpoint/backbone_lora/` as PEFT saves
it, `checkpoint/rm_head.pt`. Inferred: that config.json has the content of the published training configuration, and
that a setting which it leaves out has the value that it has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors import safe_open

from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import check_model_folder, read_json, weight_files
from flowrl.core.latent_space import latent_space_of
from rewards.dina_lrm.model import DiNaConfig, DiNaModel, nearest_level
from rewards.files import load_strict, sd3_settings
from rewards.lora_files import check_lora, merge_lora
from rewards.published_files import check_torch_file, read_torch_file

_STEM = "diffusion_pytorch_model"
_LORA = Path("checkpoint") / "backbone_lora"
_HEAD = Path("checkpoint") / "rm_head.pt"
# Of what the published code can do, the published checkpoint uses this; with other values a score would be wrong.
_MODEL_SETTINGS = {"use_lora": True, "freeze_backbone": False, "use_text_features": True, "use_logistic": False}
_HEAD_SETTINGS = {"use_proj_in": False, "width": -1, "out_dim": 1}
_TRAINING_SETTINGS = {"add_noise": True}


@dataclass(frozen=True, kw_only=True)
class LoadedDiNa:
    """A DiNa-LRM ready to score, and which latents it reads.

    Example: that of SD3.5-Medium has 16 channels.
    """

    model: DiNaModel
    latent_space: str
    channels: int


def check_files(path: str, base: str) -> str:
    """The latent space, the files looked at but the weights not read; raises CheckpointError naming the file."""
    folder, base_folder = _folder(path, "DiNa-LRM"), _folder(base, "Stable Diffusion 3.5 Medium")
    load_config(folder)
    check_lora(folder / _LORA)
    check_torch_file(folder / _HEAD)
    _transformer_settings(base_folder)
    check_model_folder(base_folder / "transformer", _STEM)
    _scheduler(base_folder)
    return _latent_space(base_folder)


def load(path: str, base: str, levels: tuple[float, ...], *, dtype: torch.dtype) -> LoadedDiNa:
    """Read both folders as `dtype`, in evaluation mode, for noise levels that stand nearest to `levels`.

    Of the base the embeddings and the blocks up to the last tap are read. Raises CheckpointError naming the file.
    """
    space = check_files(path, base)
    folder, transformer_folder = Path(path), Path(base) / "transformer"
    scheduler = _scheduler(Path(base))
    with torch.device("meta"):
        whole = SD3Transformer2DModel.from_config(_transformer_settings(Path(base)))
        try:
            model = DiNaModel(whole, load_config(folder), tuple(nearest_level(u, scheduler) for u in levels))
        except ValueError as error:
            raise CheckpointError(f"{folder / 'config.json'}: does not fit {transformer_folder}: {error}") from None
    unused = whole.state_dict().keys() - model.backbone.state_dict().keys()
    load_strict(model.backbone, _read_but(transformer_folder, unused), transformer_folder, dtype)
    load_strict(model.reward_head, read_torch_file(folder / _HEAD), folder / _HEAD, dtype)
    merge_lora(model.backbone, folder / _LORA)
    return LoadedDiNa(
        model=model.eval().requires_grad_(False), latent_space=space, channels=int(whole.config.in_channels)
    )


def load_config(folder: Path) -> DiNaConfig:
    """Read config.json; raises CheckpointError when it describes another network than the published one."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder} is not a DiNa-LRM folder: it has no config.json; expected config.json, {_LORA}/ and {_HEAD}"
        )
    settings = read_json(file)
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("visual_head_idx"), list):
        raise CheckpointError(
            f"{folder} is not a DiNa-LRM folder: its config.json has no model.visual_head_idx; "
            "download liuhuohuo/DiNa-LRM-SD35M-12layers again"
        )
    head = model.get("reward_head", {})
    _demand(file, "model.", model, _MODEL_SETTINGS)
    _demand(file, "model.reward_head.", head, _HEAD_SETTINGS)
    _demand(file, "training.", settings.get("training", {}), _TRAINING_SETTINGS)
    taps = model["visual_head_idx"]
    if taps != model.get("text_head_idx") or taps[-1:] != [model.get("num_transformer_layers")]:
        raise CheckpointError(
            f"{file}: model.visual_head_idx must be text_head_idx and end with num_transformer_layers, got {taps}, "
            f"{model.get('text_head_idx')} and {model.get('num_transformer_layers')}"
        )
    try:
        return DiNaConfig(
            taps=tuple(taps),
            num_queries=head.get("num_queries", DiNaConfig.num_queries),
            num_heads=head.get("num_attn_heads", DiNaConfig.num_heads),
        )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _demand(file: Path, prefix: str, settings: Any, wanted: Mapping[str, Any]) -> None:
    """Raise CheckpointError when a setting that is there has another value than the wanted one."""
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: {prefix.rstrip('.')} must be an object, got {type(settings).__name__}")
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise CheckpointError(
                f"{file}: {prefix}{key} must be {value!r}, as in the published DiNa-LRM, got {settings[key]!r}"
            )


def _folder(path: str, what: str) -> Path:
    if not Path(path).is_dir():
        raise CheckpointError(f"{path}: no such folder; give a {what} folder")
    return Path(path)


def _read_but(folder: Path, unused: set[str]) -> dict[str, torch.Tensor]:
    """The tensors of a diffusers folder that has been checked, without reading those of `unused`."""
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(folder, _STEM):
        with safe_open(path, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys() if key not in unused}
    return tensors


def _transformer_settings(base: Path) -> dict[str, Any]:
    file = base / "transformer" / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{base} is not a Stable Diffusion 3.5 Medium folder: it has no transformer/config.json; "
            "give the diffusers folder"
        )
    return sd3_settings(file.parent)


def _scheduler(base: Path) -> FlowMatchEulerDiscreteScheduler:
    file = base / "scheduler" / "scheduler_config.json"
    settings = read_json(file)
    if settings.get("_class_name") != "FlowMatchEulerDiscreteScheduler" or settings.get("use_dynamic_shifting"):
        raise CheckpointError(f"{file}: expected a FlowMatchEulerDiscreteScheduler with a fixed shift")
    return FlowMatchEulerDiscreteScheduler.from_config(settings)


def _latent_space(base: Path) -> str:
    file = base / "vae" / "config.json"
    settings = read_json(file)
    try:
        return latent_space_of(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: not the VAE of Stable Diffusion 3: {error}") from None
