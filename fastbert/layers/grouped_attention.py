"""Attention with grouped key/value heads: what a pass may see, and its two forms of a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fastbert.layers.masks import Layout, lay_out
from fastbert.ops.attention_grouped import grouped_with_probs
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


@dataclass
class Attending:
    """Which keys the queries of a pass see.

    Attributes:
        grid: (batch, length) of the hidden states; (1, tokens) where padding was removed.
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, key_bias, bias: as for the
            op `attention_grouped`.
        weights: takes the attention weights of every layer; None where they are not wanted.
    """

    grid: tuple[int, int]
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool
    key_bias: Tensor | None = None
    bias: Tensor | None = None
    weights: list[Tensor] | None = None

    @classmethod
    def of(cls, layout: Layout, weights: list[Tensor] | None = None) -> Self:
        """Say what a layout says."""
        batch = layout.batch
        keys = batch if layout.keys is None else layout.keys
        packed = batch.indices is not None
        return cls(
            (1, batch.total) if packed else (batch.batch_size, batch.seqlen),
            batch.cu_seqlens,
            keys.cu_seqlens,
            batch.max_seqlen,
            keys.max_seqlen,
            layout.causal,
            keys.key_bias,
            layout.bias,
            weights,
        )

    @classmethod
    def of_mask(cls, mask: Tensor | None, hidden: Tensor, past: int, causal: bool) -> Self:
        """Say what a mask says to a part that is called alone, as transformers' parts are."""
        layout = lay_out(
            mask,
            (hidden.shape[0], hidden.shape[1]),
            hidden.device,
            dtype=hidden.dtype,
            past=past,
            causal=causal,
        )
        return cls.of(layout)

    @classmethod
    def of_parts(cls, starts: Tensor, causal: bool, weights: list[Tensor] | None = None) -> Self:
        """Say that several texts stand in every row, one behind the other.

        Args:
            starts: bool (batch, length), where a text begins; column 0 counts in any case.
            causal: whether later tokens are hidden.
            weights: as the attribute.
        """
        begins = starts.clone()
        begins[:, :1] = True
        total = begins.numel()
        first = torch.nonzero(begins.reshape(-1)).squeeze(1)
        cu_seqlens = torch.cat([first, first.new_tensor([total])]).to(torch.int32)
        longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max()) if total else 0
        grid = (starts.shape[0], starts.shape[1])
        parts = cls(grid, cu_seqlens, cu_seqlens, longest, longest, causal, weights=weights)
        if weights is None:
            return parts
        # Weights are returned over the columns of the grid.
        batch = PackedBatch.dense(*grid, starts.device)
        return cls.of(Layout(batch, None, parts.as_mask(torch.float32)), weights)

    def as_mask(self, dtype: torch.dtype) -> Tensor:
        """Return the same as numbers that are added to the scores, as transformers' parts take it.

        Args:
            dtype: of the mask.

        Returns:
            (batch or 1, heads or 1, length, keys), the lowest finite value where a key is hidden.
        """
        if self.bias is not None:
            return self.bias.to(dtype)
        batch, length = self.grid
        keys = int(self.cu_seqlens_k[-1]) // max(batch, 1)
        text, row = _places(self.cu_seqlens_q, (batch, length))
        other, key = _places(self.cu_seqlens_k, (batch, keys))
        visible = text[:, :, None] == other[:, None, :]
        if self.causal:
            lengths = self.cu_seqlens_k.diff() - self.cu_seqlens_q.diff()
            behind = lengths[text.clamp(max=max(lengths.shape[0] - 1, 0))]
            visible = visible & (key[:, None, :] <= (row + behind)[:, :, None])
        if self.key_bias is not None:
            visible = visible & (self.key_bias.reshape(batch, 1, keys) == 0)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def _places(cu_seqlens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the number of every token's text, and its place within it, int64 (batch, length)."""
    starts = cu_seqlens.to(torch.int64)
    tokens = torch.arange(grid[0] * grid[1], device=starts.device)
    text = torch.searchsorted(starts[1:].contiguous(), tokens, right=True)
    return text.reshape(grid), (tokens - starts[text]).reshape(grid)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attending: Attending,
    scale: float,
    dropout: float,
    plan: Plan,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention.

    Args:
        q: (tokens, heads, head_dim).
        k: (keys, kv_heads, head_dim).
        v: likewise.
        attending: what the queries see.
        scale: multiplies the scores.
        dropout: probability with which weights are dropped.
        plan: the backends.

    Returns:
        The context (tokens, heads, head_dim), and the weights (batch, heads, length, keys) where
        they are wanted.
    """
    arguments = (
        attending.cu_seqlens_q,
        attending.cu_seqlens_k,
        attending.max_seqlen_q,
        attending.max_seqlen_k,
        scale,
        attending.causal,
        attending.key_bias,
        attending.bias,
    )
    if dropout == 0.0 and attending.weights is None:
        return plan.attention_grouped(q, k, v, *arguments), None
    if attending.weights is None:
        return plan.rows.attention(q, k, v, *arguments, dropout_p=dropout), None
    context, probs = grouped_with_probs(q, k, v, *arguments, dropout_p=dropout)
    return context, probs
