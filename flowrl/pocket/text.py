"""The pocket tokenizers and text encoders: the classes of Stable Diffusion 3.5's three slots at small size."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from flowrl.pocket.scene import vocabulary

MAX_TOKENS = 14  # the longest prompt: twelve words, a start and an end
JOINT_DIM = 96
CLIP_WIDTHS = (32, 48)
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer whose merges make one token of every word of the pocket grammar.

    Learned here, because the library's trainer numbers tokens differently in every process, and a build that was
    interrupted goes on with text encoders that know the numbers.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary()]
    vocab = [_BOS, _EOS, *sorted({piece for parts in pieces for piece in parts})]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for parts in pieces for pair in pairwise(parts)):
        merges.append(max(counts, key=lambda pair: (counts[pair], pair)))
        vocab.append("".join(merges[-1]))
        pieces = [_merged(parts, merges[-1]) for parts in pieces]
    numbers = {token: number for number, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=MAX_TOKENS)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result


def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer with one piece for every word of the pocket grammar."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -8.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in vocabulary()]
    letters = sorted({letter for word in vocabulary() for letter in word})
    pieces += [(letter, -6.0) for letter in letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def clip_encoder(slot: int, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """The CLIP text encoder of slot 0 or 1, untrained."""
    width = CLIP_WIDTHS[slot]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        hidden_act=("quick_gelu", "gelu")[slot],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """The T5 encoder of slot 2, untrained."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=JOINT_DIM,
        d_kv=24,
        d_ff=2 * JOINT_DIM,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)
