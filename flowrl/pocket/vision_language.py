"""The pocket Qwen2-VL below the pocket HPSv3: its tokenizer, its sizes, and its pretraining as a captioner.

The published HPSv3 starts from a model that can already see; the pocket one learns to see by writing the prompt of a
rendering, in the very chat that the reward will read. No oracle is involved in that.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer, Qwen2VLConfig

from flowrl.pocket.fitting import FitPlan, FitRecord, fit
from flowrl.pocket.render import render
from flowrl.pocket.scene import IMAGE_SIZE, all_scenes, vocabulary
from rewards.hpsv3.model import ChatBatch, HPSv3Model, tokenize
from rewards.hpsv3.preprocess import PatchSpec, patchify
from rewards.hpsv3.template import IMAGE_TOKEN, INSTRUCTION, REWARD_TOKEN, SUFFIX

SPEC = PatchSpec(area=IMAGE_SIZE**2, patch_size=8)
NUM_IMAGE_TOKENS = SPEC.num_tokens(IMAGE_SIZE, IMAGE_SIZE)
CAPTION_PLAN = FitPlan(steps=700, lr=2e-3, warmup=100, ema_decay=0.995)
_BATCH = 96
_SINGLE_SHARE = 0.25
_CLEAN_SHARE = 0.5
_SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    IMAGE_TOKEN,
    "<|video_pad|>",
)
# The space before the prompt stays outside, so that its first word looks like the others to the byte-pair merges.
_BEFORE_PROMPT = INSTRUCTION.split("{text_prompt}")[0].rstrip(" ")
_AFTER_PROMPT = INSTRUCTION.split("{text_prompt}")[1] + SUFFIX.split(REWARD_TOKEN)[0]
# Fixed text of the chat; one token each, since 550 tokens of instruction would be most of the work on a CPU.
_BOILERPLATE = (
    "system\nYou are a helpful assistant.",
    "user\n",
    _BEFORE_PROMPT,
    _AFTER_PROMPT,
    SUFFIX.split(REWARD_TOKEN)[1],
    "assistant\n",
)


def new_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer with one token for each word of the grammar and each fixed part of the chat."""
    model = Tokenizer(BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(initial_alphabet=alphabet, special_tokens=[], show_progress=False)
    model.train_from_iterator([f" {word}" for word in vocabulary()], trainer)
    trained = json.loads(model.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=trained["vocab"], merges=[tuple(merge) for merge in trained["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL)})
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _BOILERPLATE])
    tokenizer.add_special_tokens({"additional_special_tokens": [*_SPECIAL, REWARD_TOKEN]})
    return tokenizer


def new_config(tokenizer: Qwen2Tokenizer) -> Qwen2VLConfig:
    """The sizes of the pocket Qwen2-VL: about 1.1M parameters."""
    token = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.pad_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 96,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 3,
            "patch_size": SPEC.patch_size,
            "temporal_patch_size": SPEC.temporal_patch_size,
            "spatial_merge_size": SPEC.merge_size,
        },
        image_token_id=token(IMAGE_TOKEN),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )


class Captioner(torch.nn.Module):
    """An HPSv3 network and the language head that its published file carries along."""

    def __init__(self, model: HPSv3Model) -> None:
        super().__init__()
        text = model.backbone.config.text_config
        self.model = model
        self.lm_head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def forward(
        self, chats: ChatBatch, patches: torch.Tensor, grid: torch.Tensor, caption: torch.Tensor
    ) -> torch.Tensor:
        """The mean negative log-likelihood [] of the tokens at `caption` [B, L] bool, each from what stands before."""
        hidden = self.model.hidden_states(chats, patches, grid)
        logits = self.lm_head(hidden[:, :-1][caption[:, 1:]])
        return F.cross_entropy(logits, chats.input_ids[:, 1:][caption[:, 1:]])


def caption_mask(tokenizer: Qwen2Tokenizer, chats: ChatBatch) -> torch.Tensor:
    """Where the prompt and the token that ends it stand: [B, L] bool."""
    ids = chats.input_ids
    after = (ids == tokenizer.convert_tokens_to_ids(_BEFORE_PROMPT)).cumsum(1).bool()
    ended = (ids == tokenizer.convert_tokens_to_ids(_AFTER_PROMPT)).cumsum(1).bool()
    begins = ids == tokenizer.convert_tokens_to_ids(_BEFORE_PROMPT)
    ends = ids == tokenizer.convert_tokens_to_ids(_AFTER_PROMPT)
    return (after & ~begins & ~ended) | ends


def pretrain(
    captioner: Captioner, tokenizer: Qwen2Tokenizer, *, seed: int, checkpoint: Path, plan: FitPlan = CAPTION_PLAN
) -> FitRecord:
    """Teach the network to write the prompts of renderings of the training scenes, flaws included."""
    scenes = all_scenes(test=False)
    singles = [scene for scene in scenes if scene.relation is None]

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        single = (torch.rand(_BATCH, generator=generator) < _SINGLE_SHARE).tolist()
        index = torch.randint(0, 2**40, (_BATCH,), generator=generator).tolist()
        pools = [singles if one else scenes for one in single]
        chosen = [pool[i % len(pool)] for pool, i in zip(pools, index, strict=True)]
        images = render(chosen, generator, clean_share=_CLEAN_SHARE)
        chats = tokenize(tokenizer, tuple(str(scene) for scene in chosen), NUM_IMAGE_TOKENS)
        patches, grid = patchify(images, SPEC)
        return captioner(chats, patches, grid, caption_mask(tokenizer, chats))

    return fit("hpsv3 captions", captioner, loss_at, plan, checkpoint=checkpoint)
