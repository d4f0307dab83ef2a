"""Where the published files lie that configurations name: repositories, the files of each that are used, and the gates.

Published: the repositories, their licences, the files that rewards/PUBLISHED.md names, and the numbers of prompts. From
memory: which of the Hub's tokenizer files each repository has; one that is not there is an error that names it. Only
what flowrl reads is taken: of a pipeline the layout of diffusers, without the single-file checkpoints and the
half-precision duplicates that lie beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Site = Literal["hub", "github"]
# How a machine is let in where a person was.
TOKEN = "make a token for reading at https://huggingface.co/settings/tokens; run `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a person must accept before a repository lets its files go.

    Example: ``Gate(page="https://huggingface.co/stabilityai/stable-diffusion-3.5-large", licence="...")``
    """

    page: str  # where it is accepted
    licence: str

    @property
    def accepting(self) -> str:
        """How a person is let in."""
        return f"open {self.page} in a browser, log in and accept {self.licence}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files of one repository; they go into the folder of their bundle under the names that they have there.

    Example: ``Part(site="hub", repository="THUDM/ImageReward", files=("ImageReward.pt", "med_config.json"))``
    """

    site: Site
    repository: str
    files: tuple[str, ...]  # which must be there
    patterns: tuple[str, ...] = ()  # what else is taken where it is there; a star stands for anything
    weights: tuple[
        str, ...
    ] = ()  # stems of safetensors files that may lie in shards, such as vae/diffusion_pytorch_model
    unwanted: tuple[str, ...] = ()  # patterns of what is not taken all the same
    gate: Gate | None = None

    def takes(self, name: str) -> bool:
        """Whether a file of the repository belongs to the part."""
        wanted = name in self.files or any(fnmatchcase(name, pattern) for pattern in self.patterns)
        return wanted and not any(fnmatchcase(name, pattern) for pattern in self.unwanted)

    @property
    def label(self) -> str:
        """How a person calls it, such as huggingface.co/THUDM/ImageReward."""
        return f"{'huggingface.co' if self.site == 'hub' else 'github.com'}/{self.repository}"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything that one folder must hold, or one file of prompts.

    Example: ``REWARDS["image_reward"].parts[0].repository``
    """

    title: str
    parts: tuple[Part, ...]
    folder: str = ""  # how the folder must be called, which says that this is what belongs there; empty: anything
    prompts: int = 0  # of a file of prompts: how many it held when it was published; 0 for what is no such file

    @property
    def gates(self) -> tuple[Gate, ...]:
        """What must be accepted first."""
        return tuple(part.gate for part in self.parts if part.gate is not None)


_CLIP_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt")
_SPECIAL_TOKENS = ("special_tokens_map.json",)
_STABILITY = "the Stability AI Community License (free below a yearly revenue of 1 million US dollars)"


def _pipeline(size: str) -> Bundle:
    repository = f"stabilityai/stable-diffusion-3.5-{size}"
    folders = ("scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    part = Part(
        site="hub",
        repository=repository,
        files=(
            "model_index.json",
            "scheduler/scheduler_config.json",
            *(f"{folder}/config.json" for folder in folders if folder != "scheduler"),
            *(f"{folder}/tokenizer_config.json" for folder in tokenizers),
        ),
        patterns=(
            *(f"{folder}/*.{end}" for folder in folders for end in ("json", "safetensors")),
            *(f"{folder}/*" for folder in tokenizers),
            "LICENSE*",
        ),
        weights=tuple(
            f"{folder}/{'model' if folder.startswith('text') else 'diffusion_pytorch_model'}"
            for folder in folders
            if folder != "scheduler"
        ),
        unwanted=("*fp16*",),
        gate=Gate(page=f"https://huggingface.co/{repository}", licence=_STABILITY),
    )
    return Bundle(title=f"Stable Diffusion 3.5 {size.capitalize()}", parts=(part,))


def _hub(repository: str, *files: str, patterns: tuple[str, ...] = ()) -> Part:
    return Part(site="hub", repository=repository, files=files, patterns=patterns)


def _hpsv2(weights: str, title: str) -> Bundle:
    base = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    clip = _hub(base, "config.json", *_CLIP_TOKENIZER, patterns=_SPECIAL_TOKENS)
    return Bundle(title=title, parts=(_hub("xswu/HPSv2", weights), clip))


def _prompts(folder: str, part: str, count: int) -> Bundle:
    file = f"dataset/{folder}/{part}.txt"
    title = f"the PickScore prompts of Flow-GRPO ({part}{', safe for work' if folder.endswith('sfw') else ''})"
    return Bundle(
        title=title, parts=(Part(site="github", repository="yifan123/flow_grpo", files=(file,)),), prompts=count
    )


# By the name of the folder that a configuration gives for a policy, or for the model that a reward is made from.
FOLDERS: Mapping[str, Bundle] = {
    "stable-diffusion-3.5-large": _pipeline("large"),
    "stable-diffusion-3.5-medium": _pipeline("medium"),
}
_CLIP_LARGE = _hub(
    "openai/clip-vit-large-patch14", "config.json", "model.safetensors", *_CLIP_TOKENIZER, patterns=_SPECIAL_TOKENS
)
# By the name of the reward.
REWARDS: Mapping[str, Bundle] = {
    "hpsv3": Bundle(
        title="HPSv3",
        parts=(
            _hub("MizzenAI/HPSv3", "HPSv3.safetensors"),
            _hub("Qwen/Qwen2-VL-7B-Instruct", "config.json", *_CLIP_TOKENIZER),
        ),
    ),
    "hpsv2": _hpsv2("HPS_v2_compressed.pt", "HPSv2"),
    "hpsv2_1": _hpsv2("HPS_v2.1_compressed.pt", "HPSv2.1"),
    "pick_score": Bundle(
        title="PickScore",
        parts=(
            _hub("yuvalkirstain/PickScore_v1", "config.json", "model.safetensors"),
            _hub("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", *_CLIP_TOKENIZER, patterns=_SPECIAL_TOKENS),
        ),
    ),
    "aesthetic": Bundle(
        title="the aesthetic predictor",
        parts=(
            Part(
                site="github",
                repository="christophschuhmann/improved-aesthetic-predictor",
                files=("sac+logos+ava1-l14-linearMSE.pth",),
            ),
            _hub("openai/clip-vit-large-patch14", "config.json", "model.safetensors"),
        ),
    ),
    "image_reward": Bundle(
        title="ImageReward",
        parts=(
            _hub("THUDM/ImageReward", "ImageReward.pt", "med_config.json"),
            _hub("google-bert/bert-base-uncased", "tokenizer_config.json", "tokenizer.json", "vocab.txt"),
        ),
    ),
    "dina_lrm": Bundle(
        title="DiNa-LRM",
        parts=(
            _hub(
                "liuhuohuo/DiNa-LRM-SD35M-12layers",
                "config.json",
                "checkpoint/rm_head.pt",
                "checkpoint/backbone_lora/adapter_config.json",
                "checkpoint/backbone_lora/adapter_model.safetensors",
            ),
        ),
    ),
    # It takes any CLIP, so the folder's name says which.
    "clip_score": Bundle(title="CLIP ViT-L/14", parts=(_CLIP_LARGE,), folder="clip-vit-large-patch14"),
}
# By the last two names of the path that a configuration gives for prompts.
PROMPTS: Mapping[str, Bundle] = {
    f"{folder}/{part}.txt": _prompts(folder, part, count)
    for folder, part, count in (
        ("pickscore", "train", 25_432),
        ("pickscore", "test", 2_048),
        ("pickscore_sfw", "train", 15_486),
        ("pickscore_sfw", "test", 1_024),
    )
}
