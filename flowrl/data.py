"""Prompts: read from text files, and taken in an order that is a pure function of the seed and the step."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from flowrl.config import ConfigError
from flowrl.core import seeds
from flowrl.types import Prompt


def read_prompts(path: Path, key: str) -> list[Prompt]:
    """One prompt per non-empty line of a UTF-8 file, numbered by line; raises ConfigError naming `key` and the file."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{key}: no such prompt file: {path}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{key}: {path} is not UTF-8 text (line {line})", advice="save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from None
    lines = text.removeprefix("\ufeff").split("\n")  # a byte order mark is not part of the first prompt
    prompts = [Prompt(id=i, text=line.strip()) for i, line in enumerate(lines) if line.strip()]
    if not prompts:
        raise ConfigError(f"{key}: {path} holds no prompt", advice="it needs one per line")
    return prompts


class PromptOrder:
    """Which prompts a step trains on: passes over the file, each in its own order, no prompt twice in a step."""

    def __init__(self, prompts: list[Prompt], *, per_step: int, seed: int) -> None:
        if per_step > len(prompts):
            raise ConfigError(
                f"rollout.prompts_per_step must be at most the number of training prompts = {len(prompts)}, "
                f"got {per_step}",
                advice="add prompts or lower it",
            )
        self._prompts = prompts
        self._per_step = per_step
        self._steps_per_pass = len(prompts) // per_step
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def take(self, step: int) -> list[Prompt]:
        """The prompts of step `step` (the first is 1); needs no state, so a resumed run goes on in the same order."""
        number, place = divmod(step - 1, self._steps_per_pass)
        chosen = self._order(number)[place * self._per_step : (place + 1) * self._per_step]
        return [self._prompts[i] for i in chosen]

    def texts_ahead(self, step: int, block: int) -> list[str]:
        """The texts of all steps after `step` in its block, when steps are counted off in blocks of this size."""
        last = step + (-step) % block if block else step
        return [prompt.text for later in range(step + 1, last + 1) for prompt in self.take(later)]

    def _draw_order(self, number: int) -> list[int]:
        """The order of a pass over the file, the first is 0."""
        generator = seeds.generator(self._seed, number, seeds.PROMPT_ORDER)
        order: list[int] = torch.randperm(len(self._prompts), generator=generator).tolist()
        return order
