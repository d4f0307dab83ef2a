"""The flat weights buffer: what it carries arrives bit for bit or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowrl.actors.weights import WeightsError, pack, unpack
from flowrl.models.sd3 import SD3Policy
from tests import tiny


def tensors() -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("a", torch.randn(3, 4, generator=generator)),
        ("b", torch.tensor([-0.0, float("inf"), 1e-45])),
        ("c", torch.randn(2, 2, generator=generator).t()),
    ]


def zeros() -> list[tuple[str, torch.Tensor]]:
    return [(name, torch.zeros(tensor.shape)) for name, tensor in tensors()]


def test_every_bit_arrives() -> None:
    weights = pack(tensors(), version=7)
    assert weights.version == 7
    assert weights.payload.nbytes == 4 * (12 + 3 + 4)
    target = zeros()
    unpack(weights, target)
    for (_, sent), (_, arrived) in zip(tensors(), target, strict=True):
        assert torch.equal(sent, arrived)
        assert torch.equal(torch.signbit(sent), torch.signbit(arrived))


def test_an_adapter_arrives_in_another_copy_of_the_policy(policy: SD3Policy) -> None:
    weights = pack(tiny.perturb(policy).trainable(), version=1)
    values = [parameter.detach().clone() for _, parameter in policy.trainable()]
    tiny.perturb(policy, seed=5)
    unpack(weights, policy.trainable())
    for value, (_, parameter) in zip(values, policy.trainable(), strict=True):
        assert torch.equal(value, parameter)
        assert parameter.requires_grad


def test_a_packed_buffer_is_a_copy_that_nobody_can_write() -> None:
    source = tensors()
    weights = pack(source, version=1)
    source[0][1].zero_()
    target = zeros()
    unpack(weights, target)
    assert target[0][1].abs().max() > 0
    with pytest.raises(ValueError, match="read-only"):
        weights.payload[0] = 1


def test_a_target_does_not_share_memory_with_the_buffer() -> None:
    weights = pack(tensors(), version=1)
    target = zeros()
    unpack(weights, target)
    target[0][1].fill_(9)
    again = zeros()
    unpack(weights, again)
    assert torch.equal(again[0][1], tensors()[0][1])


@pytest.mark.parametrize("place", [0, 20, -1])
def test_one_flipped_bit_is_seen_and_changes_nothing(place: int) -> None:
    weights = pack(tensors(), version=3)
    payload = weights.payload.copy()
    payload[place] ^= 1
    target = zeros()
    with pytest.raises(WeightsError, match="weights version 3 changed on the way"):
        unpack(replace(weights, payload=payload), target)
    assert all(torch.equal(tensor, torch.zeros_like(tensor)) for _, tensor in target)


def test_a_truncated_buffer_is_seen() -> None:
    weights = pack(tensors(), version=3)
    with pytest.raises(WeightsError, match="changed on the way"):
        unpack(replace(weights, payload=np.ascontiguousarray(weights.payload[:-4])), zeros())


@pytest.mark.parametrize("wrong", ["name", "shape", "order", "count"])
def test_a_model_that_differs_from_the_senders_is_refused(wrong: str) -> None:
    weights = pack(tensors(), version=3)
    target = zeros()
    if wrong == "name":
        target[0] = ("other", target[0][1])
    elif wrong == "shape":
        target[0] = ("a", torch.zeros(4, 3))  # as many numbers
    elif wrong == "order":
        target.reverse()
    else:
        target.pop()
    with pytest.raises(WeightsError, match="weights version 3 do not fit this model"):
        unpack(weights, target)
