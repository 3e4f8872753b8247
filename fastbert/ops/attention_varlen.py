"""Scaled dot-product attention over packed sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float scale, bool causal=False, "
    "Tensor? key_bias=None, Tensor? bias=None) -> Tensor"
)


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale * q @ k.T + key_bias + bias) @ v, for every head of every sequence.

    The softmax is float32 or better. A score of -inf is invisible; one of finfo.min is visible, so
    a row of nothing but those is uniform and finite. A query that sees no key gets zeros.

    Args:
        q: (total_q, num_heads, head_dim), floating; the last dimension contiguous, the other
            strides free (views into a fused projection).
        k, v: (total_k, num_heads, head_dim), q.dtype.
        cu_seqlens_q, cu_seqlens_k: int32 (batch + 1,), from 0 to the total, never falling;
            sequence b is rows cu_seqlens[b] up to cu_seqlens[b + 1].
        max_seqlen_q, max_seqlen_k: at least the longest length.
        scale: multiplies q @ k.T; usually head_dim ** -0.5.
        causal: key j is visible to query i iff j <= i + len_k - len_q (aligned at the end).
        key_bias: float32 (total_k,), added to every score of that key.
        bias: floating, (batch or 1, num_heads or 1, max_seqlen_q, max_seqlen_k), added to the
            scores, indexed by positions within the sequence.
        dropout_p: probability that a weight is dropped; the reference only.

    Returns:
        (total_q, num_heads, head_dim), q.dtype.

    Source: Vaswani et al. 2017, "Attention is all you need", equation 1.
    """
    out, _ = attention_with_probs(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        scale,
        causal,
        key_bias,
        bias,
        dropout_p=dropout_p,
    )
    return out


def attention_with_probs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention_varlen`, together with the weights that multiplied v.

    Args:
        head_mask: broadcastable to (batch, num_heads, max_seqlen_q, max_seqlen_k), multiplies the
            weights after dropout.

    Returns:
        (total_q, num_heads, head_dim) and (batch, num_heads, max_seqlen_q, max_seqlen_k), both
        q.dtype; the weights after dropout and head_mask, zero beyond the end of a sequence.
    """
    probs = attention_probs(
        q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal, key_bias, bias
    )
    if dropout_p > 0.0:
        probs = F.dropout(probs, dropout_p, training=True)
    if head_mask is not None:
        probs = probs * head_mask.to(probs.dtype)
    return attention_context(probs, v, cu_seqlens_q, cu_seqlens_k, q.shape[0]), probs


def attention_probs(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    scale: float,
    causal: bool = False,
    key_bias: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q @ k.T + key_bias + bias) as (batch, num_heads, max_seqlen_q, max_seqlen_k).

    Zero where either position lies beyond the end of its sequence or the key is not visible.
    Arguments are those of `attention_varlen`; the result has q.dtype.
    """
    query_grid = to_grid(q, cu_seqlens_q, max_seqlen_q).transpose(1, 2)
    key_grid = to_grid(k, cu_seqlens_k, max_seqlen_k).transpose(1, 2)
    scores = torch.matmul(query_grid, key_grid.transpose(2, 3))
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)) * scale
    if key_bias is not None:
        scores = scores + to_grid(key_bias, cu_seqlens_k, max_seqlen_k)[:, None, None, :].to(
            scores.dtype
        )
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    visible = visible_keys(
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        causal,
        full=_is_full(q, cu_seqlens_q, max_seqlen_q) and _is_full(k, cu_seqlens_k, max_seqlen_k),
    )
    return masked_softmax(scores, visible).to(q.dtype)


def masked_softmax(scores: Tensor, visible: Tensor | None) -> Tensor:
    """softmax over the last dimension, of the visible scores above -inf; zeros where none is."""
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)


def attention_context(
    probs: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, total_q: int
) -> Tensor:
    """probs @ v for weights (batch, num_heads, max_seqlen_q, max_seqlen_k): (total_q, heads, dim)."""
    value_grid = to_grid(v, cu_seqlens_k, probs.shape[3]).transpose(1, 2)
    context = torch.matmul(probs.to(v.dtype), value_grid).transpose(1, 2)
    return from_grid(context, cu_seqlens_q, total_q)


def visible_keys(
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    full: bool = False,
) -> Tensor | None:
    """bool (batch, 1, max_seqlen_q or 1, max_seqlen_k): which keys a query sees; None for all.

    Args:
        full: every sequence is known to have the maximal length.
    """
    if full and not causal:
        return None
    device = cu_seqlens_k.device
    keys = torch.arange(max_seqlen_k, device=device)[None, None, None, :]
    len_k = _lengths(cu_seqlens_k)[:, None, None, None]
    visible = keys < len_k
    if causal:
        queries = torch.arange(max_seqlen_q, device=device)[None, None, :, None]
        len_q = _lengths(cu_seqlens_q)[:, None, None, None]
        visible = visible & (keys <= queries + len_k - len_q)
    return visible


def to_grid(x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """(total, ...) -> (batch, max_seqlen, ...), zeros beyond the end of a sequence."""
    batch = cu_seqlens.shape[0] - 1
    if _is_full(x, cu_seqlens, max_seqlen):
        return x.reshape(batch, max_seqlen, *x.shape[1:])
    grid = x.new_zeros((batch * max_seqlen, *x.shape[1:]))
    grid = grid.index_copy(0, _grid_positions(cu_seqlens, max_seqlen, x.shape[0]), x)
    return grid.reshape(batch, max_seqlen, *x.shape[1:])


def from_grid(grid: Tensor, cu_seqlens: Tensor, total: int) -> Tensor:
    """(batch, max_seqlen, ...) -> (total, ...), contiguous: the inverse of `to_grid`."""
    batch, max_seqlen = grid.shape[:2]
    flat = grid.reshape(batch * max_seqlen, *grid.shape[2:])
    if batch * max_seqlen == total:
        return flat.contiguous()
    return flat.index_select(0, _grid_positions(cu_seqlens, max_seqlen, total))


def _is_full(x: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> bool:
    # No length exceeds max_seqlen, so this total is reached only when all of them equal it.
    return x.shape[0] == (cu_seqlens.shape[0] - 1) * max_seqlen


def _lengths(cu_seqlens: Tensor) -> Tensor:
    return cu_seqlens[1:] - cu_seqlens[:-1]


def _grid_positions(cu_seqlens: Tensor, max_seqlen: int, total: int) -> Tensor:
    rows = torch.arange(total, device=cu_seqlens.device)
    starts = cu_seqlens.to(torch.int64)
    sequence = torch.searchsorted(starts[1:].contiguous(), rows, right=True)
    return sequence * max_seqlen + rows - starts[sequence]
