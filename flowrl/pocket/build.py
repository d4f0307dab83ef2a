"""Rebuilds every pocket checkpoint from nothing: VAE, policy, preference set, DiT-Reward, HPSv3.

Each stage leaves a record in the work folder and is skipped when that exists; within a stage, training resumes from
its own checkpoint and the preference set from its shards.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from tqdm import tqdm

from flowrl.pocket import reward_training as training
from flowrl.pocket.autoencoder import build_vae
from flowrl.pocket.generator import build_policy
from flowrl.pocket.preferences import (
    GROUP,
    KINDS,
    TEST_MARGIN,
    TRAIN_MARGIN,
    SampleTable,
    SetPlan,
    build_table,
    pairs_of,
)
from flowrl.pocket.prompt_sets import write_prompts
from flowrl.pocket.provenance import RECORD
from flowrl.pocket.vision_language import SPEC, Captioner, new_config, new_tokenizer, pretrain
from rewards.dit_reward import layout as dit_layout
from rewards.dit_reward.model import DiTRewardModel
from rewards.hpsv3 import layout as hpsv3_layout
from rewards.hpsv3.model import HPSv3Model
from rewards.preference import AccuracyReport, PreferencePairs, accuracy

STORED = torch.float16  # of the reward checkpoints; they are loaded as float32
GROWTH_SHARES = (0.25, 0.5, 1.0)
GROWTH_STEPS = 300  # of each run of the accuracy-against-data figure
PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy")
Record = dict[str, Any]


def build(out: Path, work: Path, seed: int) -> Record:
    """Run all stages that are not done, and write `out`/{sd35,dit_reward,hpsv3} and provenance.json.

    `work` keeps what a later run resumes from. Returns the provenance. Raises ValueError when `work` was begun with
    another seed, FloatingPointError when a loss is not finite.
    """
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _check_seed(work / "seed", seed)
    # Each with the folder that it must leave.
    stages: list[tuple[str, Path, Callable[[], Record]]] = [
        ("vae", work / "vae", lambda: asdict(build_vae(work / "vae", seed=seed, checkpoint=work / "vae.pt"))),
        (
            "policy",
            out / "sd35",
            lambda: asdict(build_policy(out / "sd35", vae_folder=work / "vae", seed=seed, work=work)),
        ),
        ("preferences", work / "preferences", lambda: _preferences(out, work, seed)),
        ("dit_reward", out / "dit_reward", lambda: _dit_reward(out, work, seed)),
        ("hpsv3", out / "hpsv3", lambda: _hpsv3(out, work, seed)),
        ("comparison", work, lambda: _comparison(out, work, seed)),
    ]
    records: dict[str, Record] = {}
    bar = tqdm(stages, desc="pocket build", unit="stage")
    for name, folder, run in bar:
        bar.set_postfix(stage=name)
        records[name] = _once(work / "records" / f"{name}.json", folder, run)
        _write_provenance(out, records, seed)
    write_prompts()
    return _write_provenance(out, records, seed)


def _check_seed(path: Path, seed: int) -> None:
    """Raise ValueError when the work folder holds the stages of another seed; else remember this one."""
    if path.is_file() and path.read_text(encoding="utf-8").strip() != str(seed):
        begun = path.read_text(encoding="utf-8").strip()
        raise ValueError(f"{path.parent}: was begun with seed {begun}, got {seed}; use that seed or an empty folder")
    path.write_text(f"{seed}\n", encoding="utf-8")


def _once(path: Path, folder: Path, run: Callable[[], Record]) -> Record:
    """The record at `path` of a stage that has left `folder`, or that of running it now."""
    if path.is_file() and folder.is_dir():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    record = run()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".tmp").replace(path)
    return record


def _write_provenance(out: Path, records: dict[str, Record], seed: int) -> Record:
    provenance = {
        "command": f"flowrl pocket build --seed {seed}",
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


def _tables(out: Path, work: Path, seed: int) -> tuple[SampleTable, SampleTable]:
    """The training and the held-out table, drawn now or read back."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(out / "sd35", torch_dtype=torch.float32)
    plan = SetPlan()
    folder = work / "preferences"
    return (
        build_table(pipeline, folder, test=False, seed=seed, plan=plan),
        build_table(pipeline, folder, test=True, seed=seed, plan=plan),
    )


def _preferences(out: Path, work: Path, seed: int) -> Record:
    record: Record = {"samples_per_prompt": GROUP}
    margins = (TRAIN_MARGIN, TEST_MARGIN)
    for split, table, margin in zip(("train", "test"), _tables(out, work, seed), margins, strict=True):
        pairs = pairs_of(table, margin=margin)
        record[split] = {"margin": margin, "seconds": round(table.seconds, 1)} | {
            kind: {
                "samples": int((table.kind == k).sum()),
                "pairs": int((pairs.kind == k).sum()),
                "oracle_mean": round(table.total[table.kind == k].mean().item(), 4),
                "pairs_by_part": {
                    part: int(((pairs.kind == k) & (pairs.part == p)).sum()) for p, part in enumerate(pairs.parts)
                },
            }
            for k, kind in enumerate(KINDS)
        }
    return record


def _accuracies(scores: torch.Tensor, table: SampleTable) -> Record:
    """Held-out accuracy by kind and part, with intervals; also on pairs of one rollout setting, and on closer pairs."""
    pairs: PreferencePairs = pairs_of(table, margin=TEST_MARGIN)
    report: AccuracyReport = accuracy(scores, pairs)
    same = accuracy(scores, pairs.select(table.same[pairs.winner] & table.same[pairs.loser]))
    close = accuracy(scores, pairs_of(table, margin=TRAIN_MARGIN)).by_kind["policy"]
    return {
        "accuracy": report.shares()
        | {
            "policy, one setting": round(same.overall.share, 4),
            f"policy, margin {TRAIN_MARGIN}": round(close.share, 4),
        },
        "interval_95": {
            kind: [round(bound, 4) for bound in found.interval()] for kind, found in report.by_kind.items()
        },
        "pairs": {kind: found.total for kind, found in report.by_kind.items()},
    }


def _new_dit_reward(out: Path, table: SampleTable, seed: int) -> DiTRewardModel:
    config = training.dit_reward_config(
        AutoencoderKL.load_config(out / "sd35" / "vae"), text_length=table.text.embeds.shape[1]
    )
    return training.new_dit_reward(out / "sd35" / "transformer", config, seed=seed)


def _dit_reward(out: Path, work: Path, seed: int) -> Record:
    train, test = _tables(out, work, seed)
    model = _new_dit_reward(out, train, seed)
    record = training.train_full(
        model,
        train,
        pairs_of(train, margin=TRAIN_MARGIN),
        name="dit_reward",
        seed=seed,
        checkpoint=work / "dit_reward.pt",
    )
    training.centre(model.head.mlp[-1], training.score_latents(model, train), train)
    folder = _fresh(out / "dit_reward")
    notes = "Trained on pairs of the pocket policy's samples and edited renderings; see ../provenance.json."
    dit_layout.save(model, folder, dtype=STORED, notes=notes)
    stored = dit_layout.load(folder, dtype=torch.float32)
    return asdict(record) | _accuracies(training.score_latents(stored, test), test)


def _hpsv3(out: Path, work: Path, seed: int) -> Record:
    train, test = _tables(out, work, seed)
    captioner, tokenizer, captions = _captioner(work, seed)
    model = captioner.model
    record = training.train_hpsv3(
        model,
        tokenizer,
        train,
        pairs_of(train, margin=TRAIN_MARGIN),
        name="hpsv3",
        seed=seed,
        checkpoint=work / "hpsv3.pt",
    )
    training.centre(model.rm_head[-1], training.score_images(model, tokenizer, train), train)
    folder = _fresh(out / "hpsv3")
    head = captioner.lm_head.weight
    hpsv3_layout.save(model, tokenizer, folder, area=SPEC.area, lm_head=head, dtype=STORED)
    stored, tokenizer, _ = hpsv3_layout.load(folder, dtype=torch.float32)
    return asdict(record) | {
        "pretraining": "captioning of renderings in HPSv3's own chat; no oracle",
        "pretraining_record": asdict(captions),
        **_accuracies(training.score_images(stored, tokenizer, test), test),
    }


def _captioner(work: Path, seed: int) -> tuple[Captioner, Any, Any]:
    """The pretrained captioner; trained at the first call, read back later."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    captioner = Captioner(HPSv3Model(new_config(tokenizer)))
    record = pretrain(captioner, tokenizer, seed=seed, checkpoint=work / "captions.pt")
    return captioner, tokenizer, record


def _comparison(out: Path, work: Path, seed: int) -> Record:
    """What the paper's figures compare: a frozen backbone, and accuracy against the number of pairs."""
    train, test = _tables(out, work, seed)
    pairs = pairs_of(train, margin=TRAIN_MARGIN)
    frozen = _new_dit_reward(out, train, seed)
    frozen_record = training.train_frozen(
        frozen, train, pairs, name="dit_reward frozen", seed=seed, checkpoint=work / "frozen.pt"
    )
    record: Record = {
        "dit_reward_frozen": asdict(frozen_record) | _accuracies(training.score_latents(frozen, test), test),
        "growth_steps": GROWTH_STEPS,
        "growth": {},
    }
    for share in GROWTH_SHARES:
        part = training.first_groups(pairs, share)
        percent = round(100 * share)
        model = _new_dit_reward(out, train, seed)
        plan = replace(training.FULL_PLAN, steps=GROWTH_STEPS)
        name = f"dit_reward {percent} %"
        training.train_full(
            model, train, part, name=name, seed=seed, checkpoint=work / f"growth-dit-{percent}.pt", plan=plan
        )
        captioner, tokenizer, _ = _captioner(work, seed)
        plan = replace(training.HPSV3_PLAN, steps=GROWTH_STEPS)
        name = f"hpsv3 {percent} %"
        checkpoint = work / f"growth-hpsv3-{percent}.pt"
        training.train_hpsv3(
            captioner.model, tokenizer, train, part, name=name, seed=seed, checkpoint=checkpoint, plan=plan
        )
        record["growth"][f"{percent}%"] = {
            "pairs": len(part),
            "dit_reward": _accuracies(training.score_latents(model, test), test)["accuracy"],
            "hpsv3": _accuracies(training.score_images(captioner.model, tokenizer, test), test)["accuracy"],
        }
    return record


def _fresh(folder: Path) -> Path:
    """An empty folder, so that nothing of an earlier build stays in it."""
    if folder.exists():
        shutil.rmtree(folder)
    os.makedirs(folder)
    return folder
