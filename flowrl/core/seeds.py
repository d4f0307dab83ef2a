"""Random generators by key: what is drawn for a sample depends on what the sample is, never on who draws it or when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

# Streams keep the draws of different purposes apart.
INITIAL_NOISE = "initial"
STEP_NOISE = "step"
PROMPT_ORDER = "prompts"
WINDOW = "window"
ADAPTER = "adapter"
EVALUATION = "evaluation"


def derive(*key: int | str) -> int:
    """A seed in [0, 2^63) from a key, by blake2b of its parts."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded from a key."""
    return torch.Generator(device="cpu").manual_seed(derive(*key))


def sample_seeds(run_seed: int, step: int, prompt_id: int, num_samples: int) -> torch.Tensor:
    """The seeds [num_samples] int64 of the samples of one group."""
    return torch.tensor([derive(run_seed, step, prompt_id, sample) for sample in range(num_samples)])


def evaluation_seeds(prompts: Sequence[str], seed: int = 0) -> torch.Tensor:
    """The seeds [len(prompts)] int64 of samples that no policy drew, where rewards are measured or images scored.

    By the prompt's text alone: the images of one prompt share the noise that a latent reward draws, as within a pair in
    training, wherever they lie and whatever else is scored.
    """
    return torch.tensor([derive(EVALUATION, seed, prompt) for prompt in prompts], dtype=torch.int64)


def initial_noise(seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal start latents [len(seeds), *shape] float32 on the CPU, one stream per sample."""
    return keyed_noise(seeds, shape, INITIAL_NOISE, 0)


def step_noise(seeds: torch.Tensor, shape: tuple[int, ...], step_index: int) -> torch.Tensor:
    """Standard normal noise [len(seeds), *shape] float32 of one sampler step on the CPU, one stream per sample."""
    return keyed_noise(seeds, shape, STEP_NOISE, step_index)


def keyed_noise(seeds: torch.Tensor, shape: tuple[int, ...], *stream: int | str) -> torch.Tensor:
    """Standard normal noise [len(seeds), *shape] float32 on the CPU, row b from (seeds[b], *stream) alone."""
    # Drawn on the CPU on every device, so that a run on a GPU has the noise of the same run elsewhere.
    return torch.stack([torch.randn(shape, generator=generator(seed, *stream)) for seed in seeds.tolist()])


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """For libraries that draw from the global CPU generator: seeded within the context, as it was before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
