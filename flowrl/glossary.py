"""What every logged number means, for people who see it for the first time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", ""]


@dataclass(frozen=True)
class Entry:
    """What one number means, its unit, and which direction is good, if any."""

    meaning: str
    unit: str
    good: Direction = ""
    nullable: bool = False  # may be undefined, for example the mean of a step whose every score failed


# Keys as they are logged; <name> stands for the label of a reward or for a measure, <i> for a sampler step.
GLOSSARY: dict[str, Entry] = {
    "reward/<name>/mean": Entry(
        "Mean score of the step's training images; every step draws other prompts, so judge learning by eval/ instead.",
        "score",
        "up",
        nullable=True,
    ),
    "reward/<name>/std": Entry(
        "Spread of the scores of the step's training images; without spread there is nothing to learn from.",
        "score",
        nullable=True,
    ),
    "reward/<name>/invalid": Entry(
        "Share of the step's images without a finite score; they are left out of the update, never counted as zero.",
        "share",
        "down",
    ),
    "reward/total/mean": Entry(
        "Mean of the weighted sum of all trained rewards, which is what the update pushes up, taken before any reward "
        "is normalised within its prompt: the mean of z-scores is always 0.",
        "score",
        "up",
    ),
    "eval/<name>/mean": Entry(
        "Mean score on held-out prompts with the same noise every time: the number that shows whether it learns.",
        "score",
        "up",
        nullable=True,
    ),
    "eval/<name>/std": Entry("Spread of the scores over the held-out images.", "score", nullable=True),
    "eval/<name>/sem": Entry(
        "Standard error of the held-out mean: how far it would move with other prompts and noise.",
        "score",
        nullable=True,
    ),
    "eval/<name>/invalid": Entry("Share of the held-out images without a finite score.", "share", "down"),
    "eval/<name>/gain": Entry(
        "How far the held-out mean has moved since the first evaluation, on the same prompts and noise.",
        "score",
        "up",
        nullable=True,
    ),
    "eval/<name>/gain_sem": Entry(
        "Standard error of that gain, from the differences prompt by prompt: a gain beyond two of it is clear.",
        "score",
        nullable=True,
    ),
    "eval/diversity/mean": Entry(
        "How far apart the held-out images of one prompt are (mean pairwise RMS distance of their latents); "
        "a steady fall means that the policy draws the same image again and again. Not there with one sample a prompt: "
        "then policy/diversity tells.",
        "latent units",
        "up",
    ),
    "policy/diversity": Entry(
        "How far apart the training images of one prompt are (mean pairwise RMS distance of their latents), of the "
        "prompts of the step.",
        "latent units",
        "up",
    ),
    "policy/loss": Entry("Whole loss of the update: policy loss plus the weighted KL.", "loss"),
    "policy/policy_loss": Entry("Clipped policy-gradient part of the loss; hovers around zero by design.", "loss"),
    "policy/kl": Entry(
        "How far the policy has moved from the model it started from, per latent dimension, in the form that "
        "algorithm.kl_form names; a fast rise warns of over-optimisation. Unknown with kl_beta 0, which saves the "
        "reference's forward. It differs from sampler step to sampler step, so a moving window makes it jump.",
        "divergence",
        nullable=True,
    ),
    "policy/ratio_absdev_max": Entry(
        "Largest distance from 1 of the ratio between replayed and sampled probability, before the first optimizer "
        "step; both come from the same weights, so it must be 0 on the CPU and tiny on a GPU.",
        "ratio",
        "down",
    ),
    "policy/ratio_absdev_step_<i>": Entry(
        "The same deviation at sampler step <i> alone; shows where in the denoising the replay drifts.",
        "ratio",
        "down",
    ),
    "policy/logp_absdiff_max": Entry(
        "Largest difference between the replayed and the sampled log-probability before the first optimizer step.",
        "nats",
        "down",
    ),
    "policy/ratio_mean": Entry("Mean probability ratio of new to old policy over the whole update; near 1.", "ratio"),
    "policy/clip_fraction": Entry(
        "Share of samples whose ratio left the clip range and gave no gradient; near 1 means the steps are too big.",
        "share",
    ),
    "policy/grad_norm": Entry("Length of the gradient before it is clipped, mean over the inner steps.", "norm"),
    "policy/advantage_absmean": Entry(
        "Mean size of the advantages: how strongly samples are told apart; 0 means no learning signal.", "advantage"
    ),
    "policy/zero_variance_groups": Entry(
        "Groups whose samples all got the same score, which therefore teach nothing.", "groups", "down"
    ),
    "policy/version": Entry("Optimizer steps taken so far; names the weights that sampled the next images.", "count"),
    "time/encode_s": Entry("Encoding the prompts that were not encoded before.", "s", "down"),
    "time/rollout_s": Entry("Sampling, from the first order until the last group is sampled.", "s", "down"),
    "time/score_s": Entry(
        "Waiting for scores after the last group is sampled; most scoring hides behind the sampling.", "s", "down"
    ),
    "time/advantages_s": Entry("Turning scores into advantages.", "s", "down"),
    "time/update_s": Entry("Replaying the stored sampler steps and taking the optimizer steps.", "s", "down"),
    "time/sync_s": Entry("Bringing the new weights to the actors that sample.", "s", "down"),
    "time/eval_s": Entry("The held-out evaluation that followed the step.", "s", "down"),
    "time/checkpoint_s": Entry("Writing the checkpoint that followed the step.", "s", "down"),
    "time/step_s": Entry(
        "The training step as a whole, encode to sync; evaluation and checkpoint come on top.", "s", "down"
    ),
    "time/rollout_busy_s": Entry("Seconds that the rollout actors computed, added over actors.", "s"),
    "time/score_busy_s": Entry("Seconds that the scorers computed, added over actors.", "s"),
    "time/decode_busy_s": Entry(
        "Seconds spent decoding latents to pixels for rewards that need pixels; a latent reward needs none.",
        "s",
        "down",
    ),
    "bytes/trajectories": Entry("Size of the sampled groups that moved between actors.", "bytes", "down"),
    "bytes/weights": Entry("Size of the adapter weights sent to the actors that sample.", "bytes", "down"),
    "memory/driver_gib": Entry("Memory of the driver process.", "GiB", "down"),
    "memory/actors_gib": Entry("Memory of all actors together.", "GiB", "down"),
    "memory/peak_gib": Entry("Highest memory of driver and actors together so far.", "GiB", "down"),
    "count/images": Entry("Training images sampled in the step.", "images"),
    "speed/images_per_s": Entry("Training images per second of the whole step.", "images/s", "up"),
}
_PATTERNS = [
    (re.compile("[^/]+".join(re.escape(part) for part in re.split(r"<name>|<i>", key))), entry)
    for key, entry in GLOSSARY.items()
    if "<" in key
]
_DIRECTION_WORDS = {"up": "; higher is better", "down": "; lower is better", "": ""}


def entry(key: str) -> Entry:
    """The glossary entry of a key, an exact one before a pattern; raises KeyError where there is none."""
    if key in GLOSSARY and "<" not in key:
        return GLOSSARY[key]
    for pattern, found in _PATTERNS:
        if pattern.fullmatch(key):
            return found
    raise KeyError(f"metric {key!r} is not in the glossary; every logged key must be explained in flowrl/glossary.py")


def describe(key: str) -> str:
    """What a key means, its unit and which direction is good, in one line; raises KeyError where it is unknown."""
    found = entry(key)
    return f"{found.meaning} [{found.unit}{_DIRECTION_WORDS[found.good]}]"
