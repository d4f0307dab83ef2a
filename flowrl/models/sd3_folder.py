"""What a Stable Diffusion 3 folder must hold, as diffusers saves it, found out before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from flowrl.base.errors import CheckpointError
from flowrl.base.fingerprint import fingerprint
from flowrl.base.tokenizer_files import check_tokenizer_files
from flowrl.base.weight_files import check_model_folder, read_json

_WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}
_BPE = (("tokenizer.json",), ("vocab.json", "merges.txt"))
TOKENIZERS = {"tokenizer": _BPE, "tokenizer_2": _BPE, "tokenizer_3": (("tokenizer.json",), ("spiece.model",))}
_REQUIRED = ("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")


def check_folder(path: Path) -> None:
    """Raise CheckpointError, which names the file, unless `path` looks like a Stable Diffusion 3 folder as diffusers
    saves it: all files whole, of which none is loaded.
    """
    for name in _REQUIRED:
        if not (path / name).is_file():
            raise CheckpointError(
                f"{path} is not a Stable Diffusion 3 folder: {name} is missing",
                advice="give the folder that diffusers' save_pretrained wrote or that was downloaded whole",
            )
    for file in sorted(path.rglob("*.json")):
        read_json(file)
    _check_text_parts(path)
    for part in listed_parts(path, (*_WEIGHTS, *TOKENIZERS)):
        if part in _WEIGHTS:
            check_model_folder(path / part, _WEIGHTS[part])
        else:
            check_tokenizer_files(path / part, TOKENIZERS[part], advice="copy the folder again")


def listed_parts(path: Path, parts: Iterable[str]) -> list[str]:
    """Those of the parts that the pipeline has: it may be saved without T5."""
    listed = read_json(path / "model_index.json")
    return [part for part in parts if (listed.get(part) or [None])[0] is not None]


def text_digest(path: Path) -> str:
    """A digest of what makes text conditions: weights and settings of the text encoders, files of the tokenizers.

    It does not read all weights. Raises CheckpointError when a file of weights is missing or torn.
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in listed_parts(path, (*(name for name in _WEIGHTS if name.startswith("text_")), *TOKENIZERS)):
        digest.update(part.encode())
        if part in _WEIGHTS:
            digest.update(fingerprint(path / part, _WEIGHTS[part]).encode())
            digest.update(json.dumps(read_json(path / part / "config.json"), sort_keys=True).encode())
            continue
        for file in sorted((path / part).iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _check_text_parts(path: Path) -> None:
    """Raise CheckpointError unless the pipeline has both CLIPs, and a tokenizer for each text encoder."""
    needed = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    if listed_parts(path, ["text_encoder_3"]):
        needed.append("tokenizer_3")
    if lacking := sorted(set(needed) - set(listed_parts(path, needed))):
        raise CheckpointError(
            f"{path / 'model_index.json'}: lists no {', '.join(lacking)}; texts need both CLIPs with their tokenizers, "
            "T5 alone can be left out",
            advice="export or download the folder with them",
        )
