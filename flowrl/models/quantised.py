"""A frozen transformer with the weights of its blocks in 8 or 4 bits, so that it fits a small GPU.

bitsandbytes rounds the weights and unpacks them again; the products are those of any other linear layer. Its own layers
are not used: they compute otherwise with gradients than without (4 bits), or round the activations too (8 bits), and
then the ratio of the first update is not 1.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from flowrl.base.errors import UserError
from flowrl.types import Quantisation

BLOCK = 64  # weights that share a scale
_BITS: dict[Quantisation, int] = {"int8": 8, "int4": 4}
_PACKAGE = "bitsandbytes"


def check_installed(quantisation: Quantisation) -> None:
    """Raise UserError unless what this quantisation needs is installed."""
    if quantisation != "none" and find_spec(_PACKAGE) is None:
        raise UserError(
            f"model.quantisation: {quantisation} needs {_PACKAGE}, which is not installed: pip install "
            "'flowrl[quantise]', or take model.quantisation=none"
        )


class QuantisedLinear(torch.nn.Linear):
    """A frozen linear layer of whose weight codes and scales are kept.

    `weight` holds the codes [n * bits / 8, 1] uint8 of the n weights row after row, `scales` [n / 64] float32 the
    largest magnitude of each 64 of them. 8 bits: 255 values evenly from -scale to scale. 4 bits: the 16 NormalFloat
    values (QLoRA, arXiv 2305.14314, section 3), times scale. A product unpacks the weight for itself alone, in the
    dtype of its input.
    """

    scales: torch.Tensor

    def __init__(self, *, in_features: int, out_features: int, bits: int, bias: torch.Tensor | None) -> None:
        """The layer without a weight: `weight` and `scales` are on the meta device."""
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.bits = bits
        if bias is not None:
            self.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
        count = in_features * out_features
        self._hold(
            torch.empty(math.ceil(count * bits / 8), 1, dtype=torch.uint8, device="meta"),
            torch.empty(math.ceil(count / BLOCK), device="meta"),
        )

    @classmethod
    def of(cls, linear: torch.nn.Linear, *, bits: int, device: str) -> QuantisedLinear:
        """The layer of a float one, whose weight goes to `device` and is rounded there."""
        bias = None if linear.bias is None else linear.bias.to(device)
        layer = cls(in_features=linear.in_features, out_features=linear.out_features, bits=bits, bias=bias)
        layer._hold(*_pack(linear.weight.detach().to(device), bits))
        return layer

    def _hold(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales, persistent=False)

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out_features, in_features] as it takes part in a product."""
        flat = _unpack(self.weight, self.scales, self.bits, self.in_features * self.out_features, dtype)
        return flat.view(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features], of the same dtype."""
        product: torch.Tensor = _Product.apply(input, self)
        return product


class _Product(torch.autograd.Function):
    """A linear layer that unpacks its weight in either direction, and keeps it for neither."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, input: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        return torch.nn.functional.linear(input, layer.unpacked(input.dtype), layer.bias)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        layer: QuantisedLinear = ctx.layer  # type: ignore[attr-defined]
        return gradient @ layer.unpacked(gradient.dtype), None


def quantise(transformer: torch.nn.Module, quantisation: Quantisation, *, device: str) -> None:
    """Round the weights of every linear layer in `transformer_blocks`, one layer after the other on `device`.

    Embeddings, norms, biases and the layers before and after the blocks stay as they are. A layer's float weight is
    freed before the next one is touched, so that `device` never holds more than one. The same weights become the same
    codes each time.
    """
    if quantisation == "none":
        return
    check_installed(quantisation)
    for parent, name in _places(transformer):
        rounded = QuantisedLinear.of(_linear(parent, name), bits=_BITS[quantisation], device=device)
        setattr(parent, name, rounded)


def hollow_out(transformer: torch.nn.Module, quantisation: Quantisation, layer: type[QuantisedLinear]) -> None:
    """Put layers of the shapes of `quantise`, without weights, in the places where it puts them."""
    if quantisation == "none":
        return
    for parent, name in _places(transformer):
        linear = _linear(parent, name)
        hollow = layer(
            in_features=linear.in_features,
            out_features=linear.out_features,
            bits=_BITS[quantisation],
            bias=linear.bias,
        )
        setattr(parent, name, hollow)


def _places(transformer: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Where the linear layers of the blocks are: the module that has one, and its name there."""
    return [
        (parent, name)
        for parent in transformer.get_submodule("transformer_blocks").modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.Linear)
    ]


def _linear(parent: torch.nn.Module, name: str) -> torch.nn.Linear:
    child = parent.get_submodule(name)
    assert isinstance(child, torch.nn.Linear), name
    return child


def _pack(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [n * bits / 8, 1] uint8 and scales [n / 64] float32 of a weight."""
    library = _library()
    # As one row: on the CPU bitsandbytes 0.50 unpacks rows wrongly that do not end with a block.
    flat = weight.reshape(1, -1)
    if bits == 4:
        codes, state = library.quantize_4bit(flat, blocksize=BLOCK, quant_type="nf4")
    else:
        codes, state = library.quantize_blockwise(flat, code=_steps(str(weight.device)), blocksize=BLOCK)
    return codes.view(-1, 1), state.absmax


def _unpack(codes: torch.Tensor, scales: torch.Tensor, bits: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The weights [1, count] of codes and scales."""
    library = _library()
    if bits == 4:
        state = library.QuantState(scales, shape=(1, count), blocksize=BLOCK, quant_type="nf4", dtype=dtype)
        weights: torch.Tensor = library.dequantize_4bit(codes, state)
        return weights
    state = library.QuantState(scales, code=_steps(str(codes.device)), blocksize=BLOCK, dtype=dtype)
    weights = library.dequantize_blockwise(codes.view(1, -1), state)
    return weights


@cache
def _steps(device: str) -> torch.Tensor:
    """The values of the 8-bit codes: 0 and 127 to either side of it; one of the 256 codes is left over."""
    steps: torch.Tensor = _library().create_linear_map(signed=True, total_bits=8)
    return steps.to(device)


@cache
def _library() -> Any:
    import bitsandbytes.functional

    return bitsandbytes.functional
