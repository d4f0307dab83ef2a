"""The folder of a DiT-Reward: config.json, transformer/ as diffusers saves it, reward_head.safetensors, README.md."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from huggingface_hub import save_torch_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from flowrl.core.errors import CheckpointError
from flowrl.core.weight_files import check_model_folder, check_safetensors, read_json
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel
from rewards.files import load_strict, read_shards, read_tensors

FORMAT = "dit_reward"
_STEM = "diffusion_pytorch_model"
_HEAD = "reward_head.safetensors"
_CARD = """---
library_name: flowrl
tags: [reward-model, latent, stable-diffusion-3]
---
# DiT-Reward on {base}

A latent reward model (arXiv 2606.23626): scores latents of the space `{latent_space}` against a text condition of
{text_length} tokens; higher is better, the zero point has no meaning. Blocks {layers}, sigma {sigma}.

```python
from rewards.dit_reward import DiTReward

reward = DiTReward(path="this-folder")
```

{notes}
"""


def save(model: DiTRewardModel, folder: Path, *, dtype: torch.dtype, notes: str = "", shard_size: str = "5GB") -> None:
    """Write the folder; a LoRA is merged into the weights that are written, the model itself is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"format": FORMAT, **dataclasses.asdict(model.config)}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    model.transformer.save_config(folder / "transformer")
    weights = {key: value.detach().to("cpu", dtype) for key, value in merged_weights(model.transformer).items()}
    save_torch_state_dict(
        weights,
        folder / "transformer",
        filename_pattern=_STEM + "{suffix}.safetensors",
        max_shard_size=shard_size,
        metadata={"format": "pt"},
    )
    head = {key: value.detach().to("cpu", dtype).contiguous() for key, value in model.head.state_dict().items()}
    save_file(head, folder / _HEAD, metadata={"format": "pt"})
    (folder / "README.md").write_text(_CARD.format(**settings, notes=notes), encoding="utf-8")


def merged_weights(transformer: SD3Transformer2DModel) -> dict[str, torch.Tensor]:
    """The state dict of a transformer under its plain keys, its LoRA (if it has one) added to the weights."""
    weights = {}
    for key, value in transformer.state_dict().items():
        if ".lora_" not in key:
            weights[key.replace(".base_layer.", ".")] = value
    for name, layer in transformer.named_modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.active_adapters:
                weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight(adapter)
    return weights


def load_config(folder: Path) -> DiTRewardConfig:
    """Read config.json; raises CheckpointError when the folder is not a DiT-Reward."""
    if not (folder / "config.json").is_file():
        hint = " (a diffusers pipeline)" if (folder / "model_index.json").is_file() else ""
        raise CheckpointError(
            f"{folder}{hint} is not a DiT-Reward folder: it has no config.json; "
            f"expected config.json, transformer/ and {_HEAD}"
        )
    settings = read_json(folder / "config.json")
    if settings.pop("format", None) != FORMAT:
        raise CheckpointError(f"{folder} is not a DiT-Reward folder: its config.json does not say format {FORMAT!r}")
    fields = {field.name for field in dataclasses.fields(DiTRewardConfig)}
    if settings.keys() != fields:
        raise CheckpointError(
            f"{folder / 'config.json'}: missing keys {sorted(fields - settings.keys())}, "
            f"unknown keys {sorted(settings.keys() - fields)}"
        )
    for key in ("layers", "head_dims"):
        settings[key] = tuple(settings[key])
    try:
        return DiTRewardConfig(**settings)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def check_folder(folder: Path) -> DiTRewardConfig:
    """The settings of the folder, its weights looked at but not read; raises CheckpointError naming the file."""
    config = load_config(folder)
    settings = read_json(folder / "transformer" / "config.json")
    if settings.get("_class_name") != "SD3Transformer2DModel":
        raise CheckpointError(
            f"{folder / 'transformer' / 'config.json'}: expected _class_name SD3Transformer2DModel, "
            f"got {settings.get('_class_name')!r}"
        )
    check_model_folder(folder / "transformer", _STEM)
    check_safetensors(folder / _HEAD)
    return config


def load(folder: Path, *, dtype: torch.dtype) -> DiTRewardModel:
    """Read the folder as `dtype`, in evaluation mode; raises CheckpointError naming the file that is at fault."""
    config = check_folder(folder)
    settings = read_json(folder / "transformer" / "config.json")
    tensors = read_shards(folder / "transformer", _STEM)
    head = read_tensors(folder / _HEAD)
    with torch.device("meta"):
        try:
            model = DiTRewardModel(SD3Transformer2DModel.from_config(settings), config)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from None
    load_strict(model.transformer, tensors, folder / "transformer", dtype)
    load_strict(model.head, head, folder / _HEAD, dtype)
    return model.eval().requires_grad_(False)
