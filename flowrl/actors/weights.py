"""Trained weights as one flat, versioned, checksummed buffer: how a learner hands its adapter to the rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from flowrl.base.errors import UserError
from flowrl.types import PolicyWeights


class WeightsError(UserError, RuntimeError):
    """A buffer that does not belong to the model it was sent to, or that changed on the way."""


def pack(named: Iterable[tuple[str, torch.Tensor]], version: int, *, is_average: bool = False) -> PolicyWeights:
    """Copy the tensors, as float32 and in order, into one buffer."""
    tensors = [(name, tensor.detach().float().cpu().contiguous()) for name, tensor in named]
    flat = np.concatenate([tensor.numpy().reshape(-1) for _, tensor in tensors]).view(np.uint8)
    flat.setflags(write=False)
    return PolicyWeights(
        version=version,
        payload=flat,
        manifest=_manifest((name, tensor.shape) for name, tensor in tensors),
        checksum=checksum(flat),
        is_average=is_average,
    )


def unpack(weights: PolicyWeights, named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy a buffer into the tensors in place; raises WeightsError unless it fits and is whole."""
    targets = list(named)
    expected = _manifest((name, tensor.shape) for name, tensor in targets)
    if weights.manifest != expected:
        raise WeightsError(
            f"weights version {weights.version} do not fit this model: their manifest is {weights.manifest}, the "
            f"model's is {expected}; rank and targets of the adapter must agree on all actors"
        )
    found = checksum(weights.payload)
    if found != weights.checksum:
        raise WeightsError(
            f"weights version {weights.version} changed on the way: checksum {found}, sent as {weights.checksum}"
        )
    # A copy, because torch wants a writable array and the buffer is shared and read-only.
    values = torch.from_numpy(weights.payload.view(np.float32).copy())
    parts = values.split([tensor.numel() for _, tensor in targets])
    with torch.no_grad():
        for (_, tensor), part in zip(targets, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def checksum(payload: np.ndarray) -> str:
    """blake2b of the bytes."""
    return hashlib.blake2b(payload.data, digest_size=16).hexdigest()


def _manifest(shapes: Iterable[tuple[str, torch.Size]]) -> str:
    text = "\n".join(f"{name} {tuple(shape)}" for name, shape in shapes)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
