"""The pocket tokenizers: one token per word, and the same numbers in every process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from transformers import PreTrainedTokenizerBase

from flowrl.pocket.scene import all_scenes, vocabulary
from flowrl.pocket.text import MAX_TOKENS, clip_encoder, clip_tokenizer, t5_tokenizer

CODE = """
import hashlib, json
from flowrl.pocket.text import clip_tokenizer
print(hashlib.sha256(json.dumps(clip_tokenizer().get_vocab(), sort_keys=True).encode()).hexdigest())
"""


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def test_a_word_has_the_same_number_in_every_process() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split()[-1] == digest(clip_tokenizer())


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
def test_every_word_of_the_grammar_is_a_token_of_its_own(make: type) -> None:
    tokenizer = make()
    numbers = [tokenizer(word, add_special_tokens=False).input_ids for word in vocabulary()]
    assert {len(found) for found in numbers} == {1}
    assert len({found[0] for found in numbers}) == len(vocabulary())


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
def test_every_prompt_fits_and_comes_back(make: type) -> None:
    tokenizer = make()
    for scene in all_scenes(test=True)[:50]:
        numbers = tokenizer(str(scene)).input_ids
        assert len(numbers) <= MAX_TOKENS
        assert tokenizer.decode(numbers, skip_special_tokens=True).strip() == str(scene)


def test_the_text_encoder_knows_the_special_tokens() -> None:
    tokenizer = clip_tokenizer()
    config = clip_encoder(0, tokenizer).config
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert config.vocab_size == len(tokenizer)
    first, *_, last = tokenizer("a circle").input_ids
    assert (first, last) == (0, 1)
