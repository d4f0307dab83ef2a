"""The names of the cases that the plan computes as well: by them a measured peak finds its computed one."""

from __future__ import annotations

from experiments.benchmarks.gpu.sizes import MicroBatch


def rollout(samples_per_forward: int) -> str:
    """A group sampled by forwards of so many samples."""
    return f"group, {samples_per_forward} per forward"


def update(micro_batch: MicroBatch) -> str:
    """The loss of a micro-batch and its backward pass."""
    again = "checkpointed" if micro_batch.checkpointing else "all activations kept"
    return f"loss and backward, {micro_batch.samples} samples, {again}"


def decode(images: int) -> str:
    """Latents decoded to images."""
    return f"VAE decode, batch {images}"


def reward(path: str, images: int) -> str:
    """Images scored along a path."""
    return f"{path}, batch {images}"
