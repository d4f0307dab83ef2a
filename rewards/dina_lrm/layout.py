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

from flowrl.core.errors import CheckpointError
from flowrl.core.latent_space import latent_space_name
from flowrl.core.weight_files import check_model_folder, check_safetensors, read_json
from rewards.dina_lrm.model import Backbone, DiNaConfig, DiNaModel, nearest_level
from rewards.files import load_strict, read_tensors
from rewards.published_files import check_torch_file, read_torch_file

_STEM = "diffusion_pytorch_model"
_LORA = Path("checkpoint") / "backbone_lora"
_HEAD = Path("checkpoint") / "rm_head.pt"
_KEY = "base_model.model.{name}.lora_{side}.weight"  # A: [r, in], B: [out, r]
# Of what the published code can do, the published checkpoint uses this; with other values a score would be wrong.
_MODEL_SETTINGS = {"use_lora": True, "freeze_backbone": False, "use_text_features": True, "use_logistic": False}
_HEAD_SETTINGS = {"use_proj_in": False, "width": -1, "out_dim": 1}
_TRAINING_SETTINGS = {"add_noise": True}
_LORA_SETTINGS = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
_NOT_FOR_ALL_LAYERS = ("rank_pattern", "alpha_pattern", "exclude_modules", "modules_to_save", "layers_to_transform")


@dataclass(frozen=True, kw_only=True)
class LoadedDiNa:
    """A DiNa-LRM ready to score, and which latents it reads.

    Example: that of SD3.5-Medium has 16 channels.
    """

    model: DiNaModel
    latent_space: str
    channels: int


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What the adapter's config says.

    Example: ``LoraSettings(rank=64, alpha=128, targets=("to_q", "to_k", "to_v", "to_out.0"))``
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]  # a layer is meant when its name is one of these, or ends in a dot and one of these


def check_files(path: str, base: str) -> str:
    """The latent space, the files looked at but the weights not read; raises CheckpointError naming the file."""
    folder, base_folder = _folder(path, "DiNa-LRM"), _folder(base, "Stable Diffusion 3.5 Medium")
    load_config(folder)
    load_lora_settings(folder)
    check_safetensors(folder / _LORA / "adapter_model.safetensors")
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
    lora = folder / _LORA / "adapter_model.safetensors"
    merge_lora(model.backbone, read_tensors(lora), load_lora_settings(folder), lora)
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


def load_lora_settings(folder: Path) -> LoraSettings:
    """Read adapter_config.json; raises CheckpointError when merging it would take more than W += (alpha / r) B A."""
    file = folder / _LORA / "adapter_config.json"
    settings = read_json(file)
    _demand(file, "", settings, _LORA_SETTINGS)
    for key in _NOT_FOR_ALL_LAYERS:
        if settings.get(key):
            raise CheckpointError(f"{file}: {key} must be empty, as in the published DiNa-LRM, got {settings[key]!r}")
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not isinstance(targets, list) or rank < 1:
        raise CheckpointError(
            f"{file}: r and lora_alpha must be numbers and target_modules a list, got {rank}, {alpha}, {targets}"
        )
    return LoraSettings(rank=rank, alpha=alpha, targets=tuple(targets))


def lora_shapes(backbone: Backbone, settings: LoraSettings) -> dict[str, tuple[int, int]]:
    """The keys that the adapter's file must have, and their shapes."""
    shapes = {}
    for name, layer in _targeted(backbone, settings).items():
        shapes[_KEY.format(name=name, side="A")] = (settings.rank, layer.in_features)
        shapes[_KEY.format(name=name, side="B")] = (layer.out_features, settings.rank)
    return shapes


def merge_lora(backbone: Backbone, tensors: dict[str, torch.Tensor], settings: LoraSettings, source: Path) -> None:
    """Add (alpha / r) B A to each targeted weight, in float32; every key and shape must agree, else CheckpointError."""
    wanted = lora_shapes(backbone, settings)
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if found != wanted:
        key = min(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise CheckpointError(
            f"{source}: its tensors are not those of this LoRA: {key} must be {wanted.get(key, 'absent')}, "
            f"is {found.get(key, 'missing')}"
        )
    scale = settings.alpha / settings.rank
    with torch.no_grad():
        for name, layer in _targeted(backbone, settings).items():
            down, up = (tensors[_KEY.format(name=name, side=side)].float() for side in "AB")
            layer.weight.copy_(layer.weight.float() + scale * (up @ down))


def _targeted(backbone: Backbone, settings: LoraSettings) -> dict[str, torch.nn.Linear]:
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and any(f".{name}".endswith(f".{end}") for end in settings.targets)
    }


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
    index = folder / f"{_STEM}.safetensors.index.json"
    names = {f"{_STEM}.safetensors"}
    if index.is_file():
        names = set(read_json(index)["weight_map"].values())
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(names):
        with safe_open(folder / name, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys() if key not in unused}
    return tensors


def _transformer_settings(base: Path) -> dict[str, Any]:
    file = base / "transformer" / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{base} is not a Stable Diffusion 3.5 Medium folder: it has no transformer/config.json; "
            "give the diffusers folder"
        )
    settings = read_json(file)
    if settings.get("_class_name") != "SD3Transformer2DModel":
        raise CheckpointError(
            f"{file}: expected _class_name SD3Transformer2DModel, got {settings.get('_class_name')!r}"
        )
    return settings


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
        return latent_space_name(
            channels=settings["latent_channels"],
            factor=2 ** (len(settings["block_out_channels"]) - 1),
            scaling=settings["scaling_factor"],
            shift=settings["shift_factor"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not the VAE of Stable Diffusion 3: {error}") from None
