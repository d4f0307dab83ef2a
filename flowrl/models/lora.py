"""LoRA adapters by peft: attach them reproducibly, name their parameters, and save them as diffusers loads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from flowrl.base.errors import CheckpointError
from flowrl.base.file_mode import apply_umask
from flowrl.core import seeds

ADAPTER = "default"
_FILE = "pytorch_lora_weights.safetensors"


def attach(transformer: SD3Transformer2DModel, *, rank: int, alpha: int, targets: list[str], seed: int) -> None:
    """Freeze `transformer` and add an adapter that changes nothing yet: A has standard deviation 1/rank, B is 0.

    The A matrices are drawn from `seed` and the layer's name, not from the global generator. Parameters are float32
    whatever the base's dtype. Raises CheckpointError when a target names no layer.
    """
    names = [name for name, _ in transformer.named_modules()]
    missing = [target for target in targets if not any(_matches(name, target) for name in names)]
    if missing:
        raise CheckpointError(f"model.lora_targets: no layer of the model ends in {missing}")
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
    # peft draws from the global generator; the draws are replaced below, and its state is put back.
    state = torch.get_rng_state()
    transformer.add_adapter(config, adapter_name=ADAPTER)
    torch.set_rng_state(state)
    with torch.no_grad():
        for name, parameter in trainable(transformer):
            parameter.data = parameter.data.float()
            if ".lora_A." in name:
                drawn = torch.randn(parameter.shape, generator=seeds.generator(seed, name, seeds.ADAPTER))
                parameter.copy_(drawn / rank)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def trainable(transformer: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The adapter's parameters by name, in the model's order."""
    for name, parameter in transformer.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            yield name, parameter


@contextmanager
def disabled(transformer: torch.nn.Module) -> Iterator[None]:
    """Within the context the adapter is off and the model is exactly its base."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save(transformer: torch.nn.Module, folder: Path) -> None:
    """Write the adapter as `pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` reads."""
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=ADAPTER),
        # Without its metadata a loader takes alpha to be the rank, and the adapter acts at the wrong strength.
        **_collate_lora_metadata({"transformer": transformer}),
    )

    apply_umask(folder / _FILE)


def load(transformer: torch.nn.Module, folder: Path) -> None:
    """Copy a saved adapter into the attached one; raises CheckpointError unless its layers and rank are the same."""
    file = folder / _FILE
    if not file.is_file():
        raise CheckpointError(f"{folder}: no adapter there: {_FILE} is missing")
    saved = load_file(file)
    targets = {f"transformer.{name.replace(f'.{ADAPTER}.', '.')}": p for name, p in trainable(transformer)}
    unlike = sorted(
        name
        for name in saved.keys() | targets.keys()
        if name not in saved or name not in targets or saved[name].shape != targets[name].shape
    )
    if unlike:
        raise CheckpointError(
            f"{file} does not fit the configured adapter: {len(unlike)} tensors are missing, unknown or of another "
            f"shape, the first is {unlike[0]}; model.lora_rank and model.lora_targets must be those it was made with"
        )
    with torch.no_grad():
        for name, parameter in targets.items():
            parameter.copy_(saved[name])
