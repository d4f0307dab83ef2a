"""Rebuilds every pocket checkpoint from nothing: VAE, policy, preference set, captioner, DiT-Reward, HPSv3.

Each stage leaves a record in the work folder and is skipped when that exists; within a stage, training resumes from
its own checkpoint and the preference set from its shards.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from flowrl.base.errors import UserError
from flowrl.pocket.build_plan import BuildPlan
from flowrl.pocket.build_stages import Record, Stages
from flowrl.pocket.prompt_sets import write_prompts
from flowrl.pocket.provenance import RECORD

PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy")


def build(out: Path, work: Path, seed: int, scale: float = 1.0) -> Record:
    """Run all stages that are not done, and write `out`/{sd35,dit_reward,hpsv3} and provenance.json.

    `work` keeps what a later run resumes from; `scale` is the share of the full work. Returns the provenance. Raises
    UserError when `work` was begun with another seed or scale, FloatingPointError when a loss is not finite.
    """
    plan = BuildPlan().scaled(scale)
    command = f"flowrl pocket build --seed {seed}" + (f" --scale {scale:g}" if scale != 1 else "")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    check_begun(work, command, "--work")
    stage = Stages(out=out, work=work, seed=seed, plan=plan)
    # Each with the folder that it must leave.
    stages: list[tuple[str, Path, Callable[[], Record]]] = [
        ("vae", work / "vae", stage.vae),
        ("policy", out / "sd35", stage.policy),
        ("preferences", work / "preferences", stage.preferences),
        ("captioner", work / "preferences", stage.captioner),
        ("dit_reward", out / "dit_reward", stage.dit_reward),
        ("hpsv3", out / "hpsv3", stage.hpsv3),
    ]
    records: dict[str, Record] = {}
    bar = tqdm(stages, desc="pocket build", unit="stage")
    for name, folder, run in bar:
        bar.set_postfix(stage=name)
        records[name] = _once(work / "records" / f"{name}.json", folder, run)
        _write_provenance(out, records, seed, command)
    write_prompts()
    return _write_provenance(out, records, seed, command)


def check_begun(folder: Path, command: str, option: str) -> None:
    """Raise UserError when a folder holds the work of another command; else remember this one."""
    path = folder / "begun"
    if path.is_file() and (begun := path.read_text(encoding="utf-8").strip()) != command:
        raise UserError(f"{folder}: was begun by {begun}, not {command}; go on as begun, or use an empty {option}")
    path.write_text(f"{command}\n", encoding="utf-8")


def _once(path: Path, folder: Path, run: Callable[[], Record]) -> Record:
    """The record at `path` of a stage that has left `folder`, or that of running it now."""
    if path.is_file() and folder.is_dir():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    record = run()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".tmp").replace(path)
    return record


def _write_provenance(out: Path, records: dict[str, Record], seed: int, command: str) -> Record:
    provenance = {
        "command": command,
        "seed": seed,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "cpu_threads": torch.get_num_threads(),
        "stages": records,
    }
    path = out / RECORD
    path.with_suffix(".tmp").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".tmp").replace(path)
    return provenance
