"""LoRA adapters as PEFT saves them, read and merged into plain weights, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from flowrl.base.errors import CheckpointError
from flowrl.base.file_mode import apply_umask
from flowrl.base.weight_files import check_safetensors, read_json
from rewards.files import read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = "base_model.model.{name}.lora_{side}.weight"  # A: [r, in], B: [out, r]
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
_NOT_FOR_ALL_LAYERS = ("rank_pattern", "alpha_pattern", "exclude_modules", "modules_to_save", "layers_to_transform")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What an adapter's config says.

    Example: ``LoraSettings(rank=64, alpha=128, targets=("to_q", "to_k", "to_v", "to_out.0"))``
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]  # a layer is meant when its name is one of these, or ends in a dot and one of these


def check_lora(folder: Path) -> None:
    """Raise CheckpointError, naming the file, unless the folder holds an adapter that can be merged."""
    load_settings(folder)
    check_safetensors(folder / WEIGHTS)


def load_settings(folder: Path) -> LoraSettings:
    """Read adapter_config.json; raises CheckpointError when merging it would take more than W += (alpha / r) B A."""
    file = folder / CONFIG
    settings = read_json(file)
    for key, value in _PLAIN.items():
        if settings.get(key, value) != value:
            raise CheckpointError(
                f"{file}: {key} must be {value!r}, got {settings[key]!r}: only plain LoRA can be merged"
            )
    for key in _NOT_FOR_ALL_LAYERS:
        if settings.get(key):
            raise CheckpointError(f"{file}: {key} must be empty, got {settings[key]!r}: only plain LoRA can be merged")
    rank, alpha, targets = settings.get("r"), settings.get("lora_alpha"), settings.get("target_modules")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not isinstance(targets, list) or rank < 1:
        raise CheckpointError(
            f"{file}: r and lora_alpha must be numbers and target_modules a list, got {rank}, {alpha}, {targets}"
        )
    return LoraSettings(rank=rank, alpha=alpha, targets=tuple(targets))


def lora_shapes(module: torch.nn.Module, settings: LoraSettings) -> dict[str, tuple[int, int]]:
    """The keys that an adapter's file must have, and their shapes."""
    shapes = {}
    for name, layer in _targeted(module, settings).items():
        shapes[_KEY.format(name=name, side="A")] = (settings.rank, layer.in_features)
        shapes[_KEY.format(name=name, side="B")] = (layer.out_features, settings.rank)
    return shapes


@dataclass(frozen=True, kw_only=True)
class LoraFactors:
    """What an adapter adds to the weights of a module.

    Example: ``LoraFactors(scale=2.0, factors={"blocks.0.attn.to_q.weight": (down, up)})``
    """

    scale: float
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # A [r, in] and B [out, r] by the key of the weight

    def merged(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight of a key with (alpha / r) B A added in float32, as its own dtype; itself where nothing is."""
        if key not in self.factors:
            return weight
        down, up = self.factors[key]
        return (weight.float() + self.scale * (up.float() @ down.float())).to(weight.dtype)


def read_lora(module: torch.nn.Module, folder: Path) -> LoraFactors:
    """The adapter of a module, which may be empty; every key and shape must agree, else CheckpointError."""
    settings, source = load_settings(folder), folder / WEIGHTS
    tensors = read_tensors(source)
    wanted = lora_shapes(module, settings)
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if found != wanted:
        key = min(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        raise CheckpointError(
            f"{source}: its tensors are not those of this LoRA: {key} must be {wanted.get(key, 'absent')}, "
            f"is {found.get(key, 'missing')}"
        )
    factors = {
        f"{name}.weight": (tensors[_KEY.format(name=name, side="A")], tensors[_KEY.format(name=name, side="B")])
        for name in _targeted(module, settings)
    }
    return LoraFactors(scale=settings.alpha / settings.rank, factors=factors)


def merge_lora(module: torch.nn.Module, folder: Path) -> None:
    """Add (alpha / r) B A to each targeted weight, in float32; every key and shape must agree, else CheckpointError."""
    lora = read_lora(module, folder)
    with torch.no_grad():
        for key in lora.factors:
            weight = module.get_parameter(key)
            weight.copy_(lora.merged(key, weight))


def save_lora(
    folder: Path, layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]], settings: LoraSettings, *, base: str
) -> None:
    """Write the factors A [r, in] and B [out, r] of layers by name, as PEFT would."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        **_PLAIN,
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": sorted(settings.targets),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {
        _KEY.format(name=name, side=side): factor.detach().to("cpu", torch.float32).contiguous()
        for name, factors in layers.items()
        for side, factor in zip("AB", factors, strict=True)
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    apply_umask(folder / WEIGHTS)


def _targeted(module: torch.nn.Module, settings: LoraSettings) -> dict[str, torch.nn.Linear]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and any(f".{name}".endswith(f".{end}") for end in settings.targets)
    }
