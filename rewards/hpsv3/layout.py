"""The folder of HPSv3: the published HPSv3.safetensors beside the files of its Qwen2-VL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLConfig

from flowrl.base.errors import CheckpointError
from flowrl.base.file_mode import apply_umask
from flowrl.base.module_tensors import check_tensors
from flowrl.base.tensor_files import TensorFiles
from flowrl.base.weight_files import check_safetensors, read_json
from rewards.hpsv3.model import DROPPED, HEAD, HPSv3Model, from_published, to_published
from rewards.hpsv3.preprocess import PUBLISHED_AREA, PatchSpec
from rewards.hpsv3.template import IMAGE_TOKEN, REWARD_TOKEN

WEIGHTS = "HPSv3.safetensors"
# Ours, and absent from the published files: the image area that a small model was trained with.
_PIXELS = "image_area.json"


def save(
    model: HPSv3Model,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    area: int,
    lm_head: torch.Tensor,
    dtype: torch.dtype,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder in the published layout, language head included, weights as `dtype`, reward head float32.

    `state` is the model's state dict where its own tensors are not all here, as when they are sharded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_published(model.state_dict() if state is None else state) | {DROPPED: lm_head}
    stored = {
        key: value.detach().to("cpu", torch.float32 if key.startswith(HEAD) else dtype).contiguous()
        for key, value in tensors.items()
    }
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    apply_umask(folder / WEIGHTS)
    model.backbone.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _PIXELS).write_text(json.dumps({"area": area}) + "\n", encoding="utf-8")


def load_lm_head(folder: Path) -> torch.Tensor:
    """The language head [vocabulary, D] that a folder carries along; raises CheckpointError when it has none."""
    check_safetensors(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        if DROPPED not in file.keys():
            raise CheckpointError(f"{folder / WEIGHTS}: has no {DROPPED}; use the published file, which carries it")
        return file.get_tensor(DROPPED)


def check_folder(folder: Path) -> dict[str, Any]:
    """The content of config.json, the weights looked at but not read; raises CheckpointError naming the file."""
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} is not an HPSv3 folder: it has no {WEIGHTS}")
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "qwen2_vl":
        raise CheckpointError(
            f"{folder / 'config.json'}: expected model_type qwen2_vl, got {settings.get('model_type')!r}; "
            "copy the config.json of Qwen2-VL-7B-Instruct beside the weights"
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise CheckpointError(
            f"{folder}: tokenizer_config.json is missing; copy the tokenizer files of Qwen2-VL-7B-Instruct here"
        )
    for file in sorted(folder.glob("*.json")):
        read_json(file)  # what the library says of a damaged one does not name it
    check_safetensors(folder / WEIGHTS)
    return settings


@dataclass(frozen=True, kw_only=True)
class StoredHPSv3:
    """An HPSv3 folder as a network in evaluation mode whose weights are still in their file, and what goes with it.

    Example: ``open_folder(Path("HPSv3")).spec.patch_size`` is 14.
    """

    model: HPSv3Model  # on the meta device but for its buffers
    tokenizer: PreTrainedTokenizerBase
    spec: PatchSpec  # how images are cut
    file: Path

    def read_weights(self, dtype: torch.dtype, *, share: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights of the empty model on the CPU by name, each read when it is asked for: the head as float32, all
        else as `dtype`.

        With `share` they are for keeping, and those that can are pages of the file that other processes have as well.
        Without it they are for copying: to hold one is to hold its pages. Raises CheckpointError before the first.
        """
        stored = TensorFiles([self.file])
        keys = from_published({key: key for key in stored.shapes})
        check_tensors(self.model, {name: stored.shapes[key] for name, key in keys.items()}, self.file)
        for name, key in keys.items():
            wanted = torch.float32 if name.startswith(HEAD) else dtype
            yield name, stored.share(key, wanted, placed=True) if share else stored.convert(key, wanted)


def open_folder(folder: Path) -> StoredHPSv3:
    """Everything but the weights, of which the header is read; raises CheckpointError naming the file."""
    settings = check_folder(folder)
    config = Qwen2VLConfig.from_dict(settings)
    shapes = TensorFiles([folder / WEIGHTS]).shapes
    rows = from_published(shapes).get("backbone.language_model.embed_tokens.weight")
    if rows is not None:
        # The published file cuts the embedding to the tokens in use, so the hub's vocab_size does not fit it.
        config.text_config.vocab_size = rows[0]
    tokenizer = _load_tokenizer(folder, config.text_config.vocab_size)
    if config.image_token_id != tokenizer.convert_tokens_to_ids(IMAGE_TOKEN):
        raise CheckpointError(
            f"{folder}: config.json has image_token_id {config.image_token_id}, the tokenizer "
            f"{tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)} for {IMAGE_TOKEN}"
        )
    with init_empty_weights(include_buffers=False):  # the rotary frequencies are buffers, and not in the file
        model = HPSv3Model(config)
    vision = config.vision_config
    pixels = folder / _PIXELS
    spec = PatchSpec(
        area=int(read_json(pixels)["area"]) if pixels.is_file() else PUBLISHED_AREA,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    model.eval().requires_grad_(False)
    return StoredHPSv3(model=model, tokenizer=tokenizer, spec=spec, file=folder / WEIGHTS)


def _load_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if REWARD_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
    token = tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
    if token >= vocab_size:
        raise CheckpointError(
            f"{folder}: {REWARD_TOKEN} has id {token}, but the weights have {vocab_size} embedding rows; "
            "the tokenizer is not the one of these weights"
        )
    return tokenizer
