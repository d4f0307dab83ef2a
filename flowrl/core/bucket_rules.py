"""The rules of aspect-ratio buckets, apart from what makes them, so that a configuration is checked without torch."""

from __future__ import annotations

TOKEN = 16  # pixels of one token of a Stable Diffusion 3 policy, of which sides are multiples


def bucket_fault(
    image_size: int | None,
    step: int | None,
    max_aspect: float | None,
    *,
    keys: tuple[str, str, str] = ("image_size", "step", "max_aspect"),
) -> str:
    """Why there can be no such buckets, beginning with the key of `keys` to correct; empty when there can.

    None is not known yet, and passes.
    """
    size_key, step_key, aspect_key = keys
    if step is not None and (step < TOKEN or step % TOKEN):
        return f"{step_key} must be a multiple of {TOKEN}, the pixels of one token, got {step}"
    if image_size is not None and image_size < TOKEN:
        return f"{size_key} must be at least {TOKEN}, the pixels of one token, got {image_size}"
    if image_size is not None and step is not None and image_size < step:
        return f"{size_key} must be at least {step_key} = {step}, the shortest side of a bucket, got {image_size}"
    if max_aspect is not None and not max_aspect >= 1:
        return f"{aspect_key} must be at least 1, got {max_aspect:g}"
    return ""
