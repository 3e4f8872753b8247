"""Self- and cross-attention over packed tokens: bias, masks, dropout and returned weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastbert.layers.block import Distances
from fastbert.ops.attention_fused import fused_attention, fuses
from fastbert.ops.attention_varlen import attention_context, attention_probs, thinned
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


@dataclass(frozen=True)
class Scores:
    """The options of one attention: how scores become weights, and whether those are returned.

    Attributes:
        scale: multiplies q @ k.T.
        causal: whether a query sees no key after itself; queries and keys are aligned at the end.
        bias: (batch or 1, heads or 1, queries, keys), added to the scores; None adds nothing.
        head_mask: multiplies the weights, broadcast to (batch, heads, queries, keys); None leaves
            them.
        dropout: probability that a weight is dropped.
        wanted: whether the weights are returned.
        differentiable: whether the returned weights must lie on the path to the context.
    """

    scale: float
    causal: bool = False
    bias: Tensor | None = None
    head_mask: Tensor | None = None
    dropout: float = 0.0
    wanted: bool = False
    differentiable: bool = False


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: PackedBatch,
    keys: PackedBatch,
    plan: Plan,
    scores: Scores,
) -> tuple[Tensor, Tensor | None]:
    """Attend from the tokens of `queries` to the tokens of `keys`.

    Args:
        q: (queries.total, heads, head_dim).
        k: (keys.total, heads, head_dim).
        v: (keys.total, heads, head_dim).
        queries: the packed batch of q.
        keys: the packed batch of k and v, with as many sequences as `queries`.
        plan: the backends.
        scores: the options.

    Returns:
        The context (queries.total, heads * head_dim), and the weights (batch, heads,
        queries.seqlen, keys.seqlen), zero for removed tokens; None where they are not wanted.
    """
    arguments = (
        queries.cu_seqlens,
        keys.cu_seqlens,
        queries.max_seqlen,
        keys.max_seqlen,
        scores.scale,
        scores.causal,
        keys.key_bias,
        scores.bias,
    )
    # The kernels keep no weights. Where only the values of the weights are wanted, the context
    # still comes from the kernel, so that asking for attentions changes no other output.
    explicit = scores.dropout > 0.0 or scores.head_mask is not None
    if not explicit and not (scores.wanted and scores.differentiable):
        context = plan.attention_varlen(q, k, v, *arguments).flatten(1)
        if not scores.wanted:
            return context, None
        return context, _to_columns(attention_probs(q, k, *arguments), queries, keys)
    if not scores.wanted and scores.head_mask is None:
        if fuses(q, keys.key_bias, scores.bias):
            dropped = fused_attention(q, k, v, *arguments[:-2], dropout_p=scores.dropout)
        else:
            dropped = plan.rows.attention(q, k, v, *arguments, dropout_p=scores.dropout)
        return dropped.flatten(1), None
    probs = thinned(attention_probs(q, k, *arguments), scores.dropout, scores.head_mask)
    weights = None
    if scores.wanted:
        weights = _to_columns(probs, queries, keys)
        # What the caller gets must lie on the path to the context, or it would have no gradient.
        probs = _from_columns(weights, queries, keys)
    context = attention_context(probs, v, queries.cu_seqlens, keys.cu_seqlens, queries.total)
    return context.flatten(1), weights


def distance_bias(
    q: Tensor, k: Tensor, batch: PackedBatch, keys: PackedBatch, distances: Distances, scale: float
) -> Tensor:
    """Compute what the distances between tokens add to the scores.

    The distance of two tokens is that of their columns in the padded grid. Queries stand at the
    last columns of the keys' grid, as they do behind a cache.

    Args:
        q: (batch.total, heads, head_dim).
        k: (keys.total, heads, head_dim).
        batch: the packed batch of q.
        keys: the packed batch of k.
        distances: the embeddings of the distances (Shaw 2018, "Self-attention with relative
            position representations"; with keys: Huang 2020, "Improve transformer models with
            better relative position embeddings", method 4).
        scale: multiplies the result.

    Returns:
        (batch, heads, batch.max_seqlen, keys.max_seqlen), q.dtype.
    """
    heads = q.shape[1]
    offset = keys.seqlen - batch.seqlen
    key_columns = columns(keys)
    distance = (columns(batch) + offset)[:, :, None] - key_columns[:, None, :]
    embedded = distances.table(distance + distances.max_position - 1).to(q.dtype)
    query_grid = _compact(q, batch).reshape(batch.batch_size, -1, heads, q.shape[2])
    bias = torch.einsum("blhd,blrd->bhlr", query_grid, embedded)
    if distances.with_keys:
        key_grid = _compact(k, keys).reshape(batch.batch_size, -1, heads, q.shape[2])
        bias = bias + torch.einsum("brhd,blrd->bhlr", key_grid, embedded)
    return bias * scale


def columns(batch: PackedBatch, beyond: int = 0) -> Tensor:
    """Return the column of the padded grid that each token came from.

    Args:
        batch: the packed batch.
        beyond: the value behind the end of a sequence.

    Returns:
        int64 (batch, max_seqlen).
    """
    device = batch.cu_seqlens.device
    if batch.indices is None:
        return torch.arange(batch.max_seqlen, device=device).expand(batch.batch_size, -1)
    return _compact(batch.indices % max(batch.seqlen, 1) - beyond, batch) + beyond


def _compact(x: Tensor, batch: PackedBatch) -> Tensor:
    """Lay packed tokens (total, ...) out as (batch, max_seqlen, ...), zero behind each sequence."""
    if batch.indices is None:
        return x.reshape(batch.batch_size, batch.max_seqlen, *x.shape[1:])
    starts = batch.cu_seqlens.to(torch.int64)
    sequence = torch.repeat_interleave(starts[1:] - starts[:-1])
    position = torch.arange(x.shape[0], device=x.device) - starts[sequence]
    grid = x.new_zeros(batch.batch_size, batch.max_seqlen, *x.shape[1:])
    return grid.index_put((sequence, position), x)


def _to_columns(probs: Tensor, queries: PackedBatch, keys: PackedBatch) -> Tensor:
    """Move weights from positions within their sequences to columns of the padded grid."""
    if queries.indices is None and keys.indices is None:
        return probs
    batch, heads, longest, _ = probs.shape
    # Positions behind the end of a sequence go to one column more, which is cut off.
    to = columns(keys, keys.seqlen)[:, None, None, :].expand(batch, heads, longest, -1)
    wide = probs.new_zeros(batch, heads, longest, keys.seqlen + 1).scatter(3, to, probs)
    wide = wide[..., : keys.seqlen]
    to = columns(queries, queries.seqlen)[:, None, :, None].expand(batch, heads, -1, keys.seqlen)
    tall = probs.new_zeros(batch, heads, queries.seqlen + 1, keys.seqlen).scatter(2, to, wide)
    return tall[:, :, : queries.seqlen].contiguous()


def _from_columns(weights: Tensor, queries: PackedBatch, keys: PackedBatch) -> Tensor:
    """Move weights back from columns of the padded grid to positions within their sequences.

    Behind the end of a sequence stand weights of column 0, which meet no value there.
    """
    if queries.indices is None and keys.indices is None:
        return weights
    rows = columns(queries)[:, None, :, None].expand(-1, weights.shape[1], -1, weights.shape[3])
    tall = weights.gather(2, rows)
    return tall.gather(3, columns(keys)[:, None, None, :].expand(*tall.shape[:3], -1))
