"""The embedded prompt files: training prompts and held-out evaluation prompts of the pocket grammar."""

from __future__ import annotations

from pathlib import Path

import torch

from flowrl.pocket.scene import Scene, all_scenes

FOLDER = Path(__file__).parent / "prompts"
COUNTS = {"train": 2000, "eval": 256}
_SINGLE_SHARE = 0.05
_SEED = 7


def prompt_file(split: str) -> Path:
    """The file of "train" or "eval", one prompt per line; raises ValueError on another name."""
    if split not in COUNTS:
        raise ValueError(f"pocket prompts must be one of {tuple(COUNTS)}, got {split!r}")
    return FOLDER / f"{split}.txt"


def make_prompts(split: str) -> list[str]:
    """The prompts of a split in their fixed order: different scenes, a twentieth of them with a single thing."""
    test = split == "eval"
    generator = torch.Generator().manual_seed(_SEED + test)
    scenes = all_scenes(test=test)
    singles = [scene for scene in scenes if scene.relation is None]
    doubles = [scene for scene in scenes if scene.relation is not None]
    num_single = min(len(singles), round(_SINGLE_SHARE * COUNTS[split]))

    def draw(pool: list[Scene], count: int) -> list[Scene]:
        return [pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()]

    chosen = draw(singles, num_single) + draw(doubles, COUNTS[split] - num_single)
    return [str(chosen[i]) for i in torch.randperm(len(chosen), generator=generator).tolist()]


def write_prompts() -> None:
    """Write both files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        prompt_file(split).write_text("\n".join(make_prompts(split)) + "\n", encoding="utf-8")
