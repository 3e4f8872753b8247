"""The encoder of every family: one function over Blocks, on packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastbert.layers.attention import Scores, attend, distance_bias
from fastbert.layers.block import Block, CrossAttention
from fastbert.layers.kv_cache import Cache
from fastbert.layers.linear import Projection, project
from fastbert.layers.norm import LayerNorm
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


@dataclass(frozen=True)
class CrossInput:
    """What a decoder attends to: encoder rows (keys.total, hidden) and their batch."""

    rows: Tensor
    keys: PackedBatch
    bias: Tensor | None = None


@dataclass(frozen=True)
class ForwardOptions:
    """What one pass through the encoder is asked for. The defaults ask for nothing special.

    Attributes:
        keys: the keys' batch where it is not the queries' (behind a cache).
        causal: a token sees no later one.
        bias: (batch or 1, heads or 1, queries, keys), added to the scores.
        head_mask: (layers, 1, heads, 1, 1), multiplies the attention weights.
        cross: input of the cross-attention.
        cache: keys and values of earlier tokens, which this pass extends.
        attentions, hidden_states: whether to return them.
        hidden_dropout, attention_dropout, layer_dropout: probabilities; 0 outside of training.
        chunks: parts into which the rows are cut for the feed-forward part.
        row_scale: (total, 1), multiplies the rows after every layer.
        recompute: keyword arguments of torch's checkpoint() where layers are recomputed in the
            backward pass, None where they are not.
        differentiable: gradients will flow.
    """

    keys: PackedBatch | None = None
    causal: bool = False
    bias: Tensor | None = None
    head_mask: Tensor | None = None
    cross: CrossInput | None = None
    cache: Cache | None = None
    attentions: bool = False
    hidden_states: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_dropout: float = 0.0
    chunks: int = 1
    row_scale: Tensor | None = None
    recompute: dict[str, Any] | None = None
    differentiable: bool = False

    @property
    def plain(self) -> bool:
        """Nothing is asked that a prepared encoder does not do, but for gradients."""
        special = (
            self.keys,
            self.bias,
            self.head_mask,
            self.cross,
            self.cache,
            self.row_scale,
            self.recompute,
        )
        flags = self.causal or self.attentions or self.hidden_states
        dropout = self.hidden_dropout + self.attention_dropout + self.layer_dropout
        return not flags and dropout == 0.0 and all(value is None for value in special)


@dataclass
class Encoded:
    """What one pass gives: the last rows, packed (total, hidden) or as a padded grid (batch,
    seqlen, hidden), one of the two; and what was asked for besides, padded (batch, seqlen, ...).
    pooled: (batch, hidden), where the pass computed it already."""

    rows: Tensor | None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    grid: Tensor | None = None
    pooled: Tensor | None = None


def encode(
    blocks: Sequence[Block],
    rows: Tensor,
    batch: PackedBatch,
    plan: Plan,
    request: ForwardOptions,
) -> Encoded:
    """All layers of an encoder or decoder.

    Args:
        blocks: the layers.
        rows: embeddings (batch.total, hidden).
        batch: where the rows came from.
        plan: the backends.
        request: what is asked for.

    Returns:
        The rows after the last block, and what else was asked for.
    """
    states: list[Tensor] = []
    weights: list[Tensor] = []
    cross_weights: list[Tensor] = []
    for index, block in enumerate(blocks):
        if request.layer_dropout > 0.0 and float(torch.rand([])) < request.layer_dropout:
            continue
        if request.hidden_states:
            rows = _record(states, rows, batch, request)
        run = _Layer(block, index, batch, plan, request)
        if request.recompute is None:
            rows, probs, cross_probs = run(rows)
        else:
            rows, probs, cross_probs = checkpoint(run, rows, **request.recompute)
        if probs is not None:
            weights.append(probs)
        if cross_probs is not None:
            cross_weights.append(cross_probs)
    if request.hidden_states:
        rows = _record(states, rows, batch, request)
    return Encoded(
        rows,
        tuple(states) if request.hidden_states else None,
        tuple(weights) if request.attentions else None,
        tuple(cross_weights) if request.attentions and request.cross is not None else None,
    )


def _record(
    states: list[Tensor], rows: Tensor, batch: PackedBatch, request: ForwardOptions
) -> Tensor:
    padded = batch.pad(rows)
    states.append(padded)
    # What the caller gets must lie on the path to the output, or it would have no gradient.
    return batch.pack(padded) if request.differentiable else rows


@dataclass(frozen=True)
class _Layer:
    """One block of one pass, as a function of its rows alone."""

    block: Block
    index: int
    batch: PackedBatch
    plan: Plan
    request: ForwardOptions

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        block = self.block
        after = None if block.pre_norm else block.attention_norm
        normed = block.attention_norm(rows, self.plan) if block.pre_norm else rows
        context, probs = self._self_attention(normed)
        rows = self._join(block.out, context, rows, after)
        cross_probs = None
        if self.request.cross is not None:
            if block.cross is None:
                raise ValueError(
                    "encoder_hidden_states were given, but this model has no cross-attention; "
                    "build it with is_decoder=True and add_cross_attention=True."
                )
            context, cross_probs = self._cross_attention(block.cross, self.request.cross, rows)
            rows = self._join(block.cross.out, context, rows, block.cross.norm)
        rows = self._feed_forward(rows)
        if self.request.row_scale is not None:
            rows = rows * self.request.row_scale
        return rows, probs, cross_probs

    def _join(
        self, projection: Projection, x: Tensor, residual: Tensor, norm: LayerNorm | None
    ) -> Tensor:
        """norm(residual + dropout(projection(x))), without the norm where it comes first."""
        dropout = self.request.hidden_dropout
        if norm is None and dropout == 0.0:
            return project(projection, x, self.plan, residual=residual)
        out = project(projection, x, self.plan)
        if dropout > 0.0:
            out = F.dropout(out, dropout, training=True)
        return residual + out if norm is None else norm(out, self.plan, residual)

    def _scores(self, **values: Any) -> Scores:
        request = self.request
        head_mask = None if request.head_mask is None else request.head_mask[self.index]
        return Scores(
            self.block.scale,
            head_mask=head_mask,
            dropout=request.attention_dropout,
            wanted=request.attentions,
            differentiable=request.differentiable,
            **values,
        )

    def _self_attention(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        block, request, plan, batch = self.block, self.request, self.plan, self.batch
        q, k, v = (
            _heads(project(part, rows, plan), block.head_dim)
            for part in (block.q, block.k, block.v)
        )
        keys = batch if request.keys is None else request.keys
        if request.cache is not None:
            k, v = (
                _from_cache(part)
                for part in request.cache.update(
                    _to_cache(k, batch), _to_cache(v, batch), self.index
                )
            )
        bias = request.bias
        if block.distances is not None:
            distances = distance_bias(q, k, batch, keys, block.distances, block.scale)
            bias = distances if bias is None else bias + distances
        scores = self._scores(causal=request.causal, bias=bias)
        return attend(q, k, v, batch, keys, plan, scores)

    def _cross_attention(
        self, cross: CrossAttention, source: CrossInput, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        head_dim, plan, cache = self.block.head_dim, self.plan, self.request.cache
        q = _heads(project(cross.q, rows, plan), head_dim)
        stored = None if cache is None else cache.cross_layer(self.index)
        if stored is None:
            k = _heads(project(cross.k, source.rows, plan), head_dim)
            v = _heads(project(cross.v, source.rows, plan), head_dim)
            if cache is not None:
                cache.store_cross(_to_cache(k, source.keys), _to_cache(v, source.keys), self.index)
        else:
            k, v = (_from_cache(part) for part in stored)
        return attend(q, k, v, self.batch, source.keys, plan, self._scores(bias=source.bias))

    def _feed_forward(self, rows: Tensor) -> Tensor:
        parts = rows.chunk(self.request.chunks) if self.request.chunks > 1 else (rows,)
        done = [self._feed_forward_part(part) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _feed_forward_part(self, rows: Tensor) -> Tensor:
        block, plan = self.block, self.plan
        normed = block.output_norm(rows, plan) if block.pre_norm else rows
        hidden = project(block.up, normed, plan, block.activation)
        return self._join(block.down, hidden, rows, None if block.pre_norm else block.output_norm)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1] // head_dim, head_dim)


def _to_cache(x: Tensor, batch: PackedBatch) -> Tensor:
    """(total, heads, head_dim) -> (batch, heads, seqlen, head_dim), as caches keep it."""
    return batch.pad(x).transpose(1, 2)


def _from_cache(x: Tensor) -> Tensor:
    """(batch, heads, seqlen, head_dim) -> (batch * seqlen, heads, head_dim)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
