"""Attention as the token projectors use it: small, pre-norm, blind to padding.

B rows, Q queries, T tokens, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


class Attention(torch.nn.Module):
    """Multi-head attention of queries (B, Q, W) over context (B, T, W); what is not real has no share.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.query = torch.nn.Linear(width, width)
        self.key_value = torch.nn.Linear(width, 2 * width)
        self.out = torch.nn.Linear(width, width)

    def forward(self, queries_BQW: Tensor, context_BTW: Tensor, real_BT: Tensor) -> Tensor:
        keys, values = map(self._split, self.key_value(context_BTW).chunk(2, dim=-1))
        mixed = functional.scaled_dot_product_attention(
            self._split(self.query(queries_BQW)), keys, values, attn_mask=real_BT[:, None, None, :]
        )
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return joined

    def _split(self, states_BTW: Tensor) -> Tensor:
        """(B, T, W) -> (B, heads, T, W / heads)."""
        batch, length, width = states_BTW.shape
        return states_BTW.view(batch, length, self._heads, width // self._heads).transpose(1, 2)


class Block(torch.nn.Module):
    """Attention, then two layers with GELU between them; each adds to what comes in, which is normalised first.

    Source of the order: Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_queries = torch.nn.LayerNorm(width)
        self.norm_context = torch.nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = torch.nn.Sequential(
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, 4 * width),
            torch.nn.GELU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(4 * width, width),
        )
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, queries_BQW: Tensor, context_BTW: Tensor, real_BT: Tensor) -> Tensor:
        attended = self.attention(self.norm_queries(queries_BQW), self.norm_context(context_BTW), real_BT)
        mixed_BQW = queries_BQW + self.dropout(attended)
        added_BQW: Tensor = mixed_BQW + self.dropout(self.feed_forward(mixed_BQW))
        return added_BQW


def sinusoids(length: int, width: int) -> Tensor:
    """Position codes (length, width), width even: half sines, half cosines (Vaswani et al. 2017)."""
    frequencies = torch.exp(torch.arange(width // 2) * (-math.log(10_000) / max(1, width // 2 - 1)))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
