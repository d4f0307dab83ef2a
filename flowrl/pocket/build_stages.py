"""The stages of a build: VAE, policy, preference set, captioner, DiT-Reward, HPSv3."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import safe_open

from flowrl.base.metric_log import read_metrics
from flowrl.pocket import autoencoder, generator
from flowrl.pocket.build_plan import BuildPlan
from flowrl.pocket.preference_store import draw_preferences, make_captioner
from flowrl.pocket.preferences import GROUP, KINDS, TEST_MARGIN, TRAIN_MARGIN, ranked_pairs
from flowrl.pocket.reward_training import dit_reward_config, hpsv3_config
from rewards.training.config import RewardTrainConfig
from rewards.training.run import train_reward

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
        tables = draw_preferences(self._set, self.out / "sd35", seed=self.seed, plan=self.plan.pairs)
        record: Record = {"samples_per_prompt": GROUP}
        for split, part, margin in (("train", "train", TRAIN_MARGIN), ("test", "validation", TEST_MARGIN)):
            table = tables[part]
            pairs = ranked_pairs(table, margin=margin)
            kind_of = table.kind[pairs.winner]
            record[split] = {"margin": margin, "seconds": round(table.seconds, 1)} | {
                kind: {
                    "samples": int((table.kind == k).sum()),
                    "pairs": int((kind_of == k).sum()),
                    "oracle_mean": round(table.total[table.kind == k].mean().item(), 4),
                    "pairs_by_part": {
                        name.removeprefix(f"{kind}/"): int((pairs.category == c).sum())
                        for c, name in enumerate(pairs.categories)
                        if name.startswith(kind)
                    },
                }
                for k, kind in enumerate(KINDS)
            }
        return record

    def captioner(self) -> Record:
        """A small Qwen2-VL that has learned to caption renderings in HPSv3's own chat; no oracle."""
        return asdict(make_captioner(self._set, seed=self.seed, plan=self.plan.captions))

    def dit_reward(self) -> Record:
        """DiT-Reward on the policy's backbone."""
        steps = self.plan.rewards.dit_reward
        return self._reward(dit_reward_config(self.work, self.out / "sd35", seed=self.seed, steps=steps))

    def hpsv3(self) -> Record:
        """HPSv3 on the captioner."""
        return self._reward(hpsv3_config(self.work, seed=self.seed, steps=self.plan.rewards.hpsv3))

    @property
    def _set(self) -> Path:
        """The preference set."""
        return self.work / "preferences"

    def _reward(self, config: RewardTrainConfig) -> Record:
        """Train a reward, or go on with that, and put it in its place."""
        folder = Path(config.run.dir)
        reward = train_reward(config, resume=(folder / "config.yaml").is_file())
        if reward is None:
            raise KeyboardInterrupt  # a signal ended the training in good order, and so the build
        place = self.out / config.run.name
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(reward, place)
        rows = read_metrics(folder / "metrics.jsonl")
        losses = [row["train/loss"] for row in rows]
        part = max(1, len(losses) // 20)
        return {
            "steps": len(rows),
            "seconds": round(sum(row["time/step_s"] for row in rows), 1),
            "parameters": _num_parameters(place),
            "losses": [round(fmean(losses[i : i + part]), 5) for i in range(0, len(losses) - part + 1, part)],
            "accuracy": _shares(json.loads((folder / "validation.json").read_text(encoding="utf-8"))),
        }


def _shares(reached: Mapping[str, Any]) -> dict[str, float]:
    """Flat, rounded accuracies: "all", by source, by what the two samples of a pair differ in."""
    shares = {"all": reached["overall"], **reached["by_source"], **reached["by_category"]}
    return {name: round(share, 4) for name, share in shares.items()}


def _num_parameters(folder: Path) -> int:
    """How many numbers the weight files of a folder hold."""
    total = 0
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            total += sum(tensors.get_tensor(key).numel() for key in tensors.keys())
    return total
