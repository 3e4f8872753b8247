"""The encoder of every family, op by op: one function over Blocks, on packed hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastbert.kernels.openmp import on_one_thread
from fastbert.layers.attention import Scores, attend, distance_bias
from fastbert.layers.block import Block, CrossAttention
from fastbert.layers.bucket_bias import DistanceBias
from fastbert.layers.cache_view import Cache, check_grown
from fastbert.layers.called import (
    CalledEmbeddings,
    CalledLayer,
    CalledStack,
    LayerInputs,
    additive_mask,
)
from fastbert.layers.calling import listening
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables, embed
from fastbert.layers.linear import Projection, project, running_on
from fastbert.layers.norm import LayerNorm
from fastbert.layers.recomputed_cache import RecomputedCache
from fastbert.layers.recomputing import Recompute, recomputing
from fastbert.layers.score_bias import ScoreBias
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan

# The layers of an encoder: each computed by kernels or called as a module, or all called at once.
Layers = Sequence[Block | CalledLayer] | CalledStack


@dataclass(frozen=True)
class CrossInput:
    """Hold what a decoder attends to.

    Attributes:
        hidden: hidden states of the encoder, (keys.total, hidden).
        keys: their batch.
        bias: added to the scores; None for none.
    """

    hidden: Tensor
    keys: PackedBatch
    bias: Tensor | None = None


@dataclass(frozen=True)
class ForwardOptions:
    """Say what one pass through the encoder is asked for; the defaults ask for nothing special.

    Attributes:
        keys: the keys' batch where it is not the queries' (behind a cache).
        causal: a token sees no later one.
        bias: (batch or 1, heads or 1, queries, keys), added to the scores.
        head_mask: (layers, 1, heads, 1, 1), multiplies the attention weights.
        cross: input of the cross-attention.
        cache: keys and values of earlier tokens, which this pass extends.
        attentions, hidden_states: whether to return them.
        hidden_dropout, attention_dropout, layer_dropout: probabilities; 0 outside of training.
        chunks: parts into which the tokens are cut for the feed-forward part.
        row_scale: (total, 1), multiplies the hidden states after every layer.
        recompute: how layers are recomputed in the backward pass, None where they are not.
        differentiable: gradients will flow.
        past: number of tokens in the cache.
        position_bias: what distances add to the scores of every layer.
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
    recompute: Recompute | None = None
    differentiable: bool = False
    past: int = 0
    position_bias: DistanceBias | None = None

    def whole_bias(self, by_kernels: bool) -> Tensor | None:
        """Compute what is added to the scores of every layer.

        Args:
            by_kernels: whether kernels read it, for which it is converted here rather than in every
                layer.

        Returns:
            (batch or 1, heads or 1, queries, keys); None where there is nothing to add.
        """
        if self.position_bias is None:
            return self.bias
        added = self.position_bias.scores()
        with on_one_thread(added):
            added = added.float() if by_kernels else added
            return added if self.bias is None else self.bias + added

    def score_bias(self) -> ScoreBias | None:
        """Compute the same, as a prepared encoder takes it."""
        if self.bias is None and self.position_bias is not None:
            return self.position_bias.score_bias()
        whole = self.whole_bias(by_kernels=True)
        return None if whole is None else ScoreBias(whole)


@dataclass
class EncoderOutput:
    """The result of one pass through an encoder.

    Attributes:
        packed: last hidden states (total, hidden), or
        grid: the same padded (batch, seqlen, hidden), zero where a token was removed.
        pooled: (batch, pooler width), where the pass computed the pooler.
        hidden_states, attentions, cross_attentions: padded (batch, seqlen, ...), one tensor a
            layer (hidden_states: one more, the embeddings first); None where not asked for.
    """

    packed: Tensor | None = None
    grid: Tensor | None = None
    pooled: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


def encode_inputs(
    tables: EmbeddingTables | CalledEmbeddings,
    layers: Layers,
    inputs: EmbeddingInput,
    batch: PackedBatch,
    plan: Plan,
    options: ForwardOptions,
) -> EncoderOutput:
    """Compute embeddings, their dropout and projection, and all layers, op by op.

    Args:
        tables: the embedding tables, or what is called in their place.
        layers: the layers.
        inputs: indices over the padded grid, or embeddings in the place of word ids.
        batch: the tokens of that grid which are computed.
        plan: the backends.
        options: what is asked for.

    Returns:
        The packed hidden states after the last block, and what else was asked for.
    """
    if isinstance(tables, CalledEmbeddings):
        with running_on(plan):
            hidden = batch.pack(tables.call(inputs, options.past))
    else:
        hidden = embed(tables, inputs.packed(batch), plan)
        if options.hidden_dropout > 0.0:
            hidden = plan.rows.dropout(hidden, options.hidden_dropout, None)
    # A stack that is called does that itself.
    projects = isinstance(layers, CalledStack) and layers.projects
    if tables.projection is not None and not projects:
        hidden = project(tables.projection, hidden, plan)
    if options.row_scale is not None:
        hidden = hidden * options.row_scale
    if isinstance(layers, CalledStack):
        return _call_stack(layers, hidden, batch, plan, options)
    return encode(layers, hidden, batch, plan, options)


def encode(
    layers: Sequence[Block | CalledLayer],
    hidden: Tensor,
    batch: PackedBatch,
    plan: Plan,
    options: ForwardOptions,
) -> EncoderOutput:
    """Compute all layers of an encoder or decoder.

    Args:
        layers: the layers.
        hidden: embeddings (batch.total, hidden).
        batch: where the tokens came from; all of them where a layer is called.
        plan: the backends.
        options: what is asked for.

    Returns:
        The packed hidden states after the last block, and what else was asked for.
    """
    states: list[Tensor] = []
    weights: list[Tensor] = []
    cross_weights: list[Tensor] = []
    asked, given = options, None
    if options.position_bias is not None:
        by_kernels = not options.differentiable and not plan.by_reference
        options = replace(options, bias=options.whole_bias(by_kernels), position_bias=None)
    if options.recompute is not None and options.cache is not None:
        options = replace(options, cache=RecomputedCache(options.cache))
    for index, layer in enumerate(layers):
        if options.layer_dropout > 0.0 and float(torch.rand([])) < options.layer_dropout:
            continue
        if options.hidden_states:
            hidden = _record(states, hidden, batch, options)
        run: _Layer | _Called
        if isinstance(layer, CalledLayer):
            given = _layer_inputs(hidden, batch, asked) if given is None else given
            run = _Called(layer, index, batch, plan, options, given)
        else:
            run = _Layer(layer, index, batch, plan, options)
        if options.recompute is None or index % options.recompute.every:
            hidden, probs, cross_probs = run(hidden)
        elif isinstance(run, _Called):
            # It extends the caller's cache by itself, which a second time would extend again.
            again = None if options.cache is not None else partial(_again, options.recompute, plan)
            with recomputing(again):
                hidden, probs, cross_probs = run(hidden)
        else:
            hidden, probs, cross_probs = options.recompute(run, hidden)
        if probs is not None:
            weights.append(probs)
        if cross_probs is not None:
            cross_weights.append(cross_probs)
    if options.hidden_states:
        hidden = _record(states, hidden, batch, options)
    return _output(
        hidden, tuple(states) if options.hidden_states else None, weights, cross_weights, options
    )


def _output(
    hidden: Tensor,
    states: tuple[Tensor, ...] | None,
    weights: Sequence[Tensor],
    cross_weights: Sequence[Tensor],
    options: ForwardOptions,
) -> EncoderOutput:
    crossed = options.attentions and options.cross is not None
    return EncoderOutput(
        packed=hidden,
        hidden_states=states,
        attentions=tuple(weights) if options.attentions else None,
        cross_attentions=tuple(cross_weights) if crossed else None,
    )


def _layer_inputs(hidden: Tensor, batch: PackedBatch, options: ForwardOptions) -> LayerInputs:
    """Write the options of a pass as modules take them."""
    keys = batch if options.keys is None else options.keys
    states = states_mask = None
    if options.cross is not None:
        source = options.cross
        states = source.keys.pad(source.hidden)
        states_mask = additive_mask(batch, source.keys, source.bias, False, hidden.dtype)
    return LayerInputs(
        additive_mask(batch, keys, options.bias, options.causal, hidden.dtype),
        states,
        states_mask,
        None if options.cache is None else options.cache.store,
        options.head_mask,
        options.attentions,
        None if options.position_bias is None else options.position_bias.scores().to(hidden.dtype),
    )


def _call_stack(
    stack: CalledStack, hidden: Tensor, batch: PackedBatch, plan: Plan, options: ForwardOptions
) -> EncoderOutput:
    given = _layer_inputs(hidden, batch, options)
    with running_on(plan), listening() as weights:
        answer = stack.call(batch.pad(hidden), given, options.hidden_states)
    return _output(batch.pack(answer.hidden), answer.states, weights.own, weights.cross, options)


# eq=False, here and below: torch._dynamo of torch 2.11 hashes what it calls, by its address then,
# since in what it traces the fields are not there yet.
@dataclass(frozen=True, eq=False)
class _Called:
    """One layer of one pass that is called as a module, as a function of the hidden states."""

    layer: CalledLayer
    index: int
    batch: PackedBatch
    plan: Plan
    options: ForwardOptions
    given: LayerInputs

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        given, options = self.given, self.options
        if given.head_mask is not None:
            given = replace(given, head_mask=given.head_mask[self.index])
        with running_on(self.plan), listening() as weights:
            hidden = self.batch.pack(self.layer.call(self.batch.pad(hidden), given))
        if options.row_scale is not None:
            hidden = hidden * options.row_scale
        if not options.attentions:
            return hidden, None, None
        own, cross = (heard[-1] if heard else None for heard in (weights.own, weights.cross))
        return hidden, own, cross


@dataclass(frozen=True, eq=False)
class _OnPlan:
    """The forward of a called layer, whose projections take a plan in the backward pass too."""

    forward: Callable[[Tensor], Any]
    plan: Plan

    def __call__(self, hidden: Tensor) -> Any:
        with running_on(self.plan):
            return self.forward(hidden)


def _again(
    recompute: Recompute, plan: Plan, forward: Callable[[Tensor], Any], hidden: Tensor
) -> Any:
    return recompute(_OnPlan(forward, plan), hidden)


def _record(
    states: list[Tensor], hidden: Tensor, batch: PackedBatch, options: ForwardOptions
) -> Tensor:
    """Append the padded hidden states to `states`, and return those that the pass goes on with."""
    padded = batch.pad(hidden)
    states.append(padded)
    # What the caller gets must lie on the path to the output, or it would have no gradient.
    return batch.pack(padded) if options.differentiable else hidden


@dataclass(frozen=True, eq=False)
class _Layer:
    """One block of one pass, as a function of the hidden states alone."""

    block: Block
    index: int
    batch: PackedBatch
    plan: Plan
    options: ForwardOptions

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        block = self.block
        after = None if block.pre_norm else block.attention_norm
        normed = block.attention_norm(hidden, self.plan) if block.pre_norm else hidden
        context, probs = self._self_attention(normed)
        hidden = self._join(block.out, context, hidden, after)
        cross_probs = None
        if self.options.cross is not None:
            if block.cross is None:
                raise ValueError(
                    "encoder_hidden_states were given, but this model has no cross-attention; "
                    "build it with is_decoder=True and add_cross_attention=True."
                )
            context, cross_probs = self._cross_attention(block.cross, self.options.cross, hidden)
            hidden = self._join(block.cross.out, context, hidden, block.cross.norm)
        hidden = self._feed_forward(hidden)
        if self.options.row_scale is not None:
            hidden = hidden * self.options.row_scale
        return hidden, probs, cross_probs

    def _join(
        self, projection: Projection, x: Tensor, residual: Tensor, norm: LayerNorm | None
    ) -> Tensor:
        """Compute norm(residual + dropout(projection(x))); no norm where it comes first."""
        dropout = self.options.hidden_dropout
        if dropout > 0.0:
            out = self.plan.rows.dropout(project(projection, x, self.plan), dropout, residual)
            return out if norm is None else norm(out, self.plan)
        if norm is None:
            return project(projection, x, self.plan, residual=residual)
        normed: Tensor = norm(project(projection, x, self.plan), self.plan, residual)
        return normed

    def _scores(self, bias: Tensor | None, causal: bool = False) -> Scores:
        options = self.options
        head_mask = None if options.head_mask is None else options.head_mask[self.index]
        return Scores(
            self.block.scale,
            causal,
            bias,
            head_mask=head_mask,
            dropout=options.attention_dropout,
            wanted=options.attentions,
            differentiable=options.differentiable,
        )

    def _self_attention(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        block, options, plan, batch = self.block, self.options, self.plan, self.batch
        q, k, v = (
            _heads(project(part, hidden, plan), block.head_dim)
            for part in (block.q, block.k, block.v)
        )
        keys = batch if options.keys is None else options.keys
        if options.cache is not None:
            grown = options.cache.update(_to_cache(k, batch), _to_cache(v, batch), self.index)
            check_grown(grown[0], keys.seqlen)
            k, v = map(_from_cache, grown)
        bias = options.bias
        if block.distances is not None:
            distances = distance_bias(q, k, batch, keys, block.distances, block.scale)
            bias = distances if bias is None else bias + distances
        scores = self._scores(bias, options.causal)
        return attend(q, k, v, batch, keys, plan, scores)

    def _cross_attention(
        self, cross: CrossAttention, source: CrossInput, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        head_dim, plan, cache = self.block.head_dim, self.plan, self.options.cache
        q = _heads(project(cross.q, hidden, plan), head_dim)
        stored = None if cache is None else cache.cross_layer(self.index)
        if stored is None:
            k = _heads(project(cross.k, source.hidden, plan), head_dim)
            v = _heads(project(cross.v, source.hidden, plan), head_dim)
            if cache is not None:
                cache.store_cross(_to_cache(k, source.keys), _to_cache(v, source.keys), self.index)
        else:
            k, v = (_from_cache(part) for part in stored)
        return attend(q, k, v, self.batch, source.keys, plan, self._scores(source.bias))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        parts = hidden.chunk(self.options.chunks) if self.options.chunks > 1 else (hidden,)
        done = [self._feed_forward_part(part) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _feed_forward_part(self, hidden: Tensor) -> Tensor:
        block, plan = self.block, self.plan
        normed = block.output_norm(hidden, plan) if block.pre_norm else hidden
        inner = project(block.up, normed, plan, block.activation)
        return self._join(block.down, inner, hidden, None if block.pre_norm else block.output_norm)


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1] // head_dim, head_dim)


def _to_cache(x: Tensor, batch: PackedBatch) -> Tensor:
    """Turn (total, heads, head_dim) into (batch, heads, seqlen, head_dim), as caches keep it."""
    return batch.pad(x).transpose(1, 2)


def _from_cache(x: Tensor) -> Tensor:
    """Turn (batch, heads, seqlen, head_dim) into (batch * seqlen, heads, head_dim)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])
