"""Attention of Stable Diffusion 3 by the backend that diffusers' switch chooses, which its own processor passes over.

diffusers 0.42 sends the attention of newer models through `dispatch_attention_fn`, where `set_attention_backend` has a
say. The joint blocks of Stable Diffusion 3 still call torch's function themselves. `JointAttention` computes what
`JointAttnProcessor2_0` does, and dispatches.
"""

from __future__ import annotations

import torch
from diffusers import SD3Transformer2DModel, attention_backend
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention

from flowrl.base.config_tree import did_you_mean
from flowrl.base.errors import UserError

NATIVE = "native"
# Of a trial against torch's own attention: a wrong mask or scale is off by about 1, and kernels that work in 8 bits by
# a few hundredths.
_MAX_DEVIATION = 0.05
_TRIAL_SHAPE = (2, 80, 2)  # samples, tokens, heads
_HEAD_DIM = 64  # of every Stable Diffusion 3


class JointAttention:
    """The attention of a joint block: over image and text together, or in SD3.5-Medium's second one over the image.

    Projections, norms and the order of tokens (image, then text) are those of diffusers' `JointAttnProcessor2_0`.
    `_attention_backend` is the name by which `set_attention_backend` finds its choice.
    """

    def __init__(self) -> None:
        self._attention_backend: AttentionBackendName | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Image tokens [B, N, D] and text tokens [B, L, D] to the same shapes; without text to image tokens alone.

        Raises ValueError for a mask, which no joint block has.
        """
        if attention_mask is not None:
            raise ValueError("joint blocks attend to every token: attention_mask must be None")
        query, key, value = (
            _heads(attn, project(hidden_states), norm)
            for project, norm in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None))
        )
        if encoder_hidden_states is not None:
            text = (
                _heads(attn, project(encoder_hidden_states), norm)
                for project, norm in (
                    (attn.add_q_proj, attn.norm_added_q),
                    (attn.add_k_proj, attn.norm_added_k),
                    (attn.add_v_proj, None),
                )
            )
            query, key, value = (torch.cat(both, dim=1) for both in zip((query, key, value), text, strict=True))
        mixed = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        mixed = mixed.flatten(2).to(query.dtype)
        num_image = hidden_states.shape[1]
        dropout_free, dropout = attn.to_out
        image = dropout(dropout_free(mixed[:, :num_image]))
        if encoder_hidden_states is None:
            return image
        rest = mixed[:, num_image:]
        return image, rest if attn.context_pre_only else attn.to_add_out(rest)


def _heads(attn: Attention, projected: torch.Tensor, norm: torch.nn.Module | None) -> torch.Tensor:
    """[B, N, heads * d] as [B, N, heads, d], each head normed."""
    split = projected.unflatten(-1, (attn.heads, -1))
    return split if norm is None else norm(split)


def use_backend(transformer: SD3Transformer2DModel, name: str, device: str) -> None:
    """Have every attention of the transformer computed by a backend of diffusers; "native" leaves it as it is.

    The transformer is of its dtype and will compute on the device. Raises UserError unless the backend's package is
    installed and the backend can be trained with there.
    """
    if name == NATIVE:
        return
    check_backend(name, dtype=transformer.dtype, device=device)
    transformer.set_attn_processor(JointAttention())
    transformer.set_attention_backend(name)


def check_backend(name: str, *, dtype: torch.dtype, device: str) -> None:
    """Try a backend, forwards and backwards, on a device; raises UserError, which names model.attention.

    A backend without a backward pass would leave the adapter without the part of its gradient that goes through
    attention, and nothing would say so.
    """
    check_package(name)
    if name == NATIVE:
        return
    drawn = torch.randn(4, *_TRIAL_SHAPE, _HEAD_DIM, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    expected = _forward_and_back(drawn, NATIVE)
    try:
        found = _forward_and_back(drawn, name)
    except (RuntimeError, ValueError, ImportError, AssertionError) as error:  # whatever its package raises
        raise UserError(
            f"model.attention: {name} cannot be trained with on {device} in {str(dtype).removeprefix('torch.')}: "
            f"{_first_line(error)}; model.attention=native works everywhere"
        ) from error
    deviation = ((found - expected).square().mean() / expected.square().mean()).sqrt().item()
    if not deviation <= _MAX_DEVIATION:
        raise UserError(
            f"model.attention: {name} differs from torch's own attention by {deviation:.2g} of its size on {device}, "
            f"where at most {_MAX_DEVIATION} is rounding; take model.attention=native"
        )


def check_package(name: str) -> None:
    """Raise UserError unless what a backend is made of is installed; touches no device.

    Kernels that diffusers gets from a hub are downloaded here.
    """
    if name == NATIVE:
        return
    known = [backend.value for backend in AttentionBackendName if not backend.value.startswith("_")]
    if name.removeprefix("_") == name and name not in known:
        raise UserError(f"model.attention: diffusers has no backend called {name!r}; {did_you_mean(name, known)}")
    try:
        with attention_backend(name):
            pass
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        raise UserError(
            f"model.attention: {name} cannot be used here: {_first_line(error)}",
            advice="model.attention=native works everywhere",
        ) from error


def _forward_and_back(drawn: torch.Tensor, backend: str) -> torch.Tensor:
    """Output and gradients of query, key and value, one after the other, for drawn [4, B, N, heads, d]."""
    query, key, value = (one.clone().requires_grad_() for one in drawn[:3])
    output = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(backend))
    gradients = torch.autograd.grad(output, (query, key, value), drawn[3])
    return torch.stack([output.detach(), *gradients]).float()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
