"""The stages of a build: VAE, policy, preference set, DiT-Reward, HPSv3, and what these are compared with."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from transformers import Qwen2Tokenizer

from flowrl.core.seeds import global_seed
from flowrl.pocket import autoencoder, generator
from flowrl.pocket import reward_training as training
from flowrl.pocket.build_plan import BuildPlan
from flowrl.pocket.fitting import FitRecord
from flowrl.pocket.preferences import (
    GROUP,
    KINDS,
    TEST_MARGIN,
    TRAIN_MARGIN,
    SampleTable,
    build_table,
    pairs_of,
)
from flowrl.pocket.vision_language import SPEC, Captioner, new_config, new_tokenizer, pretrain
from rewards.dit_reward import layout as dit_layout
from rewards.dit_reward.model import DiTRewardModel
from rewards.hpsv3 import layout as hpsv3_layout
from rewards.hpsv3.model import HPSv3Model
from rewards.preference import AccuracyReport, PreferencePairs, accuracy

STORED = torch.float16  # of the reward checkpoints; they are loaded as float32
GROWTH_SHARES = (0.25, 0.5, 1.0)
Record = dict[str, Any]  # what provenance.json holds of a stage


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages of one build; each returns what provenance.json says of it."""

    out: Path
    work: Path
    seed: int
    plan: BuildPlan

    def vae(self) -> Record:
        """The VAE, left in the work folder."""
        folder, checkpoint = self.work / "vae", self.work / "vae.pt"
        return asdict(autoencoder.build_vae(folder, seed=self.seed, checkpoint=checkpoint, plan=self.plan.vae))

    def policy(self) -> Record:
        """The policy, with that VAE, as a diffusers folder."""
        record = generator.build_policy(
            self.out / "sd35",
            vae_folder=self.work / "vae",
            seed=self.seed,
            work=self.work,
            plan=self.plan.policy,
            num_images=self.plan.policy_images,
        )
        return asdict(record)

    def preferences(self) -> Record:
        """Samples of the policy and edited renderings, with the oracle's judgement."""
        record: Record = {"samples_per_prompt": GROUP}
        margins = (TRAIN_MARGIN, TEST_MARGIN)
        for split, table, margin in zip(("train", "test"), self._tables(), margins, strict=True):
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

    def dit_reward(self) -> Record:
        """DiT-Reward on the policy's backbone."""
        train, test = self._tables()
        model = self._new_dit_reward(train)
        record = training.train_full(
            model,
            train,
            pairs_of(train, margin=TRAIN_MARGIN),
            name="dit_reward",
            seed=self.seed,
            checkpoint=self.work / "dit_reward.pt",
            plan=self.plan.dit_reward,
        )
        training.centre(model.head.mlp[-1], training.score_latents(model, train), train)
        folder = _fresh(self.out / "dit_reward")
        notes = "Trained on pairs of the pocket policy's samples and edited renderings; see ../provenance.json."
        dit_layout.save(model, folder, dtype=STORED, notes=notes)
        stored = dit_layout.load(folder, dtype=torch.float32)
        return asdict(record) | _accuracies(training.score_latents(stored, test), test)

    def hpsv3(self) -> Record:
        """HPSv3 on a small Qwen2-VL that has learned to caption renderings."""
        train, test = self._tables()
        captioner, tokenizer, captions = self._captioner()
        model = captioner.model
        record = training.train_hpsv3(
            model,
            tokenizer,
            train,
            pairs_of(train, margin=TRAIN_MARGIN),
            name="hpsv3",
            seed=self.seed,
            checkpoint=self.work / "hpsv3.pt",
            plan=self.plan.hpsv3,
        )
        training.centre(model.rm_head[-1], training.score_images(model, tokenizer, train), train)
        folder = _fresh(self.out / "hpsv3")
        head = captioner.lm_head.weight
        hpsv3_layout.save(model, tokenizer, folder, area=SPEC.area, lm_head=head, dtype=STORED)
        stored, tokenizer, _ = hpsv3_layout.load(folder, dtype=torch.float32)
        return asdict(record) | {
            "pretraining": "captioning of renderings in HPSv3's own chat; no oracle",
            "pretraining_record": asdict(captions),
            **_accuracies(training.score_images(stored, tokenizer, test), test),
        }

    def comparison(self) -> Record:
        """What the paper's figures compare: a frozen backbone, and accuracy against the number of pairs."""
        train, test = self._tables()
        pairs = pairs_of(train, margin=TRAIN_MARGIN)
        frozen = self._new_dit_reward(train)
        frozen_record = training.train_frozen(
            frozen,
            train,
            pairs,
            name="dit_reward frozen",
            seed=self.seed,
            checkpoint=self.work / "frozen.pt",
            plan=self.plan.dit_reward_frozen,
        )
        return {
            "dit_reward_frozen": asdict(frozen_record) | _accuracies(training.score_latents(frozen, test), test),
            "growth_steps": self.plan.growth_steps,
            "growth": {f"{round(100 * share)}%": self._growth(share, pairs, train, test) for share in GROWTH_SHARES},
        }

    def _growth(self, share: float, pairs: PreferencePairs, train: SampleTable, test: SampleTable) -> Record:
        """Both rewards trained on a share of the pairs."""
        part = training.first_groups(pairs, share)
        percent, steps = round(100 * share), self.plan.growth_steps
        model = self._new_dit_reward(train)
        training.train_full(
            model,
            train,
            part,
            name=f"dit_reward {percent} %",
            seed=self.seed,
            checkpoint=self.work / f"growth-dit-{percent}.pt",
            plan=replace(self.plan.dit_reward, steps=steps),
        )
        captioner, tokenizer, _ = self._captioner()
        training.train_hpsv3(
            captioner.model,
            tokenizer,
            train,
            part,
            name=f"hpsv3 {percent} %",
            seed=self.seed,
            checkpoint=self.work / f"growth-hpsv3-{percent}.pt",
            plan=replace(self.plan.hpsv3, steps=steps),
        )
        return {
            "pairs": len(part),
            "dit_reward": _accuracies(training.score_latents(model, test), test)["accuracy"],
            "hpsv3": _accuracies(training.score_images(captioner.model, tokenizer, test), test)["accuracy"],
        }

    def _tables(self) -> tuple[SampleTable, SampleTable]:
        """The training and the held-out table, drawn now or read back."""
        pipeline = StableDiffusion3Pipeline.from_pretrained(self.out / "sd35", torch_dtype=torch.float32)
        folder = self.work / "preferences"
        return (
            build_table(pipeline, folder, test=False, seed=self.seed, plan=self.plan.pairs),
            build_table(pipeline, folder, test=True, seed=self.seed, plan=self.plan.pairs),
        )

    def _new_dit_reward(self, table: SampleTable) -> DiTRewardModel:
        config = training.dit_reward_config(
            AutoencoderKL.load_config(self.out / "sd35" / "vae"), text_length=table.text.embeds.shape[1]
        )
        return training.new_dit_reward(self.out / "sd35" / "transformer", config, seed=self.seed)

    def _captioner(self) -> tuple[Captioner, Qwen2Tokenizer, FitRecord]:
        """The pretrained captioner; trained at the first call, read back later."""
        tokenizer = new_tokenizer()
        with global_seed(self.seed):
            captioner = Captioner(HPSv3Model(new_config(tokenizer)))
        record = pretrain(
            captioner, tokenizer, seed=self.seed, checkpoint=self.work / "captions.pt", plan=self.plan.captions
        )
        return captioner, tokenizer, record


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


def _fresh(folder: Path) -> Path:
    """An empty folder, so that nothing of an earlier build stays in it."""
    if folder.exists():
        shutil.rmtree(folder)
    os.makedirs(folder)
    return folder
