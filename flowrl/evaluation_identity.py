"""What an evaluation depends on, as a digest: equal ones give equal numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flowrl.base.config_file import flat_config
from flowrl.config import RunConfig

# Sections and keys that shape no number of an evaluation.
_ELSEWHERE = (
    "run.",
    "placement.",
    "checkpoint.",
    "optim.",
    "gate.",
    "algorithm.",
    "data.condition_cache",
    "data.train",
)
_COMPUTES = ("placement.device", "placement.threads")  # other ones round otherwise


def evaluation_identity(config: RunConfig, weights: Path | None) -> str:
    """64 digits over the configuration, the held-out prompts and the files of the weights, if any."""
    digest = hashlib.sha256()
    for key, value in sorted(flat_config(config).items()):
        if key in _COMPUTES or not key.startswith(_ELSEWHERE):
            digest.update(f"{key}={value!r}\n".encode())
    files = sorted(weights.glob("*.safetensors")) if weights is not None else []
    for file in (*files, Path(config.data.eval_prompts)):
        if file.is_file():
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
