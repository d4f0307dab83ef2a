"""The reward head of DiNa-LRM: tapped tokens in, one number per sample out.

Published (arXiv 2602.11146 and its code): every layer, size and name here, so that the keys of the state dict are those
of the published `rm_head.pt`; 139,296,003 parameters at width 1536 with three taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_INIT_STD = 0.02


class LayerAdapter(nn.Module):
    """Modulates the tokens of one tap by the noise level and narrows them to a quarter of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_embed = nn.Parameter(torch.randn(1, 1, width) * _INIT_STD)
        self.cond_mlp = _mlp(width, 2 * width, 2 * width, nn.SiLU())
        _zero(self.cond_mlp[2])
        self.proj = nn.Linear(width, width // 4)

    def forward(self, tokens: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, D] under the condition temb [B, D] to [B, N, D / 4]."""
        scale, shift = self.cond_mlp(temb)[:, None].chunk(2, dim=-1)
        return self.proj(tokens * (1 + scale) + shift + self.layer_embed)


class QueryAttention(nn.Module):
    """Queries read image tokens, and text tokens in a branch of its own that is added; the queries are kept by a sum.

    With text, each token's value is weighted by a sigmoid gate on that token, which starts at one half.
    """

    def __init__(self, width: int, num_heads: int, *, text: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.text = text
        self.norm_q = nn.RMSNorm(width)
        self.norm_v = nn.RMSNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k_vis = nn.Linear(width, width)
        self.to_v_vis = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))
        if text:
            self.norm_t = nn.RMSNorm(width)
            self.to_k_text = nn.Linear(width, width)
            self.to_v_text = nn.Linear(width, width)
            self.gate_vis = _mlp(width, width, 1, nn.SiLU())
            self.gate_text = _mlp(width, width, 1, nn.SiLU())
            _zero(self.gate_vis[2])
            _zero(self.gate_text[2])

    def forward(self, queries: torch.Tensor, image: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        """Queries [B, Q, D] that have read image [B, N, D] and text [B, L, D] tokens; text is given if `text` is."""
        query = self.to_q(self.norm_q(queries))
        image = self.norm_v(image)
        value = self.to_v_vis(image)
        if text is None:
            read = self._attend(query, self.to_k_vis(image), value)
        else:
            text = self.norm_t(text)
            read = self._attend(query, self.to_k_vis(image), value * torch.sigmoid(self.gate_vis(image)))
            gated = self.to_v_text(text) * torch.sigmoid(self.gate_text(text))
            read = read + self._attend(query, self.to_k_text(text), gated)
        return queries + self.to_out(read)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class RewardHead(nn.Module):
    """Learned queries that attend to the tapped tokens of one or more noise levels, and a linear score of each."""

    def __init__(self, width: int, num_taps: int, *, num_queries: int = 4, num_heads: int = 8) -> None:
        super().__init__()
        if width % 4 or width % num_heads:
            raise ValueError(f"the width must be a multiple of 4 and of num_heads {num_heads}, got {width}")
        self.query_tokens = nn.Parameter(torch.randn(1, num_queries, width) * _INIT_STD)
        self.layer_adapters_visual = nn.ModuleList([LayerAdapter(width) for _ in range(num_taps)])
        self.layer_adapters_text = nn.ModuleList([LayerAdapter(width) for _ in range(num_taps)])
        self.agg_visual = nn.Linear(num_taps * (width // 4), width)
        self.agg_text = nn.Linear(num_taps * (width // 4), width)
        self.attn1 = QueryAttention(width, num_heads, text=True)
        self.attn2 = QueryAttention(width, num_heads, text=False)
        self.norm_ff = nn.RMSNorm(width)
        self.ff = _mlp(width, 4 * width, width, nn.GELU())
        self.head = nn.Linear(width, 1)

    def forward(
        self, image: list[list[torch.Tensor]], text: list[list[torch.Tensor]], temb: list[torch.Tensor]
    ) -> torch.Tensor:
        """Scores [B] float32 of tokens of K noise levels: per level the taps [B, N, D] and [B, L, D], and temb [B, D].

        The tokens of all levels are read as one sequence: with several this is the published `forward_ensemble`, with
        one the published `forward`.
        """
        image_tokens = [
            self.agg_visual(_narrow(self.layer_adapters_visual, taps, condition))
            for taps, condition in zip(image, temb, strict=True)
        ]
        text_tokens = [
            self.agg_text(_narrow(self.layer_adapters_text, taps, condition))
            for taps, condition in zip(text, temb, strict=True)
        ]
        seen = torch.cat(image_tokens, 1)
        queries = self.query_tokens.expand(len(seen), -1, -1)
        queries = self.attn1(queries, seen, torch.cat(text_tokens, 1))
        queries = self.attn2(queries, seen)
        queries = queries + self.ff(self.norm_ff(queries))
        return self.head(queries).mean(1)[:, 0].float()


def _narrow(adapters: nn.ModuleList, taps: list[torch.Tensor], temb: torch.Tensor) -> torch.Tensor:
    return torch.cat([adapter(tokens, temb) for adapter, tokens in zip(adapters, taps, strict=True)], -1)


def _mlp(width: int, hidden: int, out: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, out))


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
