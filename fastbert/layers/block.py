"""Blocks: one view of a transformer layer, whatever its family calls the parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastbert.layers.linear import Projection
from fastbert.layers.norm import LayerNorm


@dataclass(frozen=True)
class CrossAttention:
    """The cross-attention of a decoder layer.

    Queries come from the layer's own hidden states, keys and values from the encoder's; the output
    is added to the input and normalised, as self-attention's is.

    Attributes:
        q: (hidden -> num_heads * head_dim), of the layer's hidden states.
        k: (hidden -> num_heads * head_dim), of the encoder's hidden states.
        v: like k.
        out: back to hidden.
        norm: of the sum.
    """

    q: Projection
    k: Projection
    v: Projection
    out: Projection
    norm: LayerNorm


@dataclass(frozen=True)
class Distances:
    """Learned embeddings of the distance between two tokens, in the scores of self-attention.

    Attributes:
        table: (2 * max_position - 1, head_dim); row (i - j + max_position - 1) for query i, key j.
        with_keys: whether the distance also meets the key (relative_key_query), not the query
            alone.
    """

    table: nn.Embedding
    with_keys: bool

    @property
    def max_position(self) -> int:
        """Positions that the table has room for."""
        return (self.table.num_embeddings + 1) // 2


@dataclass(frozen=True)
class Block:
    """The parts of one transformer layer.

    Post-norm: x = attention_norm(x + attention(x)); x = output_norm(x + feed_forward(x)).
    Pre-norm: x = x + attention(attention_norm(x)); x = x + feed_forward(output_norm(x)).

    Attributes:
        q: (hidden -> num_heads * head_dim).
        k: like q.
        v: like q.
        out: back to hidden.
        attention_norm: LayerNorm around the attention.
        up: the first projection of the feed-forward part, which the activation follows.
        down: the second one, back to hidden.
        output_norm: LayerNorm around the feed-forward part.
        num_heads: attention heads; fewer than the configuration says in a pruned layer.
        scale: multiplies the scores of self- and cross-attention.
        activation: of the feed-forward part.
        pre_norm: whether norms come before attention and feed-forward part.
        cross: between attention and feed-forward part, in decoders that have it.
        distances: relative positions, where the configuration asks for them.
    """

    q: Projection
    k: Projection
    v: Projection
    out: Projection
    attention_norm: LayerNorm
    up: Projection
    down: Projection
    output_norm: LayerNorm
    num_heads: int
    scale: float
    activation: str
    pre_norm: bool = False
    cross: CrossAttention | None = None
    distances: Distances | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.q.out_features // self.num_heads
