"""Blocks: one form for a transformer layer, whatever names its family gives the parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastbert.layers.linear import Projection
from fastbert.layers.norm import LayerNorm
from fastbert.ops.activations import Activation


@dataclass(frozen=True)
class CrossAttention:
    """The cross-attention of a decoder layer.

    Queries come from the layer's own hidden states, keys and values from the encoder's; the output
    is added to the input and normalised, as self-attention's is.

    Attributes:
        q: projects the layer's hidden states to queries, hidden -> num_heads * head_dim.
        k: projects the encoder's hidden states to keys, hidden -> num_heads * head_dim.
        v: projects the encoder's hidden states to values, hidden -> num_heads * head_dim.
        out: projects the context back, num_heads * head_dim -> hidden.
        norm: LayerNorm of the sum of input and output.
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
        table: (2 * max_position - 1, head_dim); entry i - j + max_position - 1 is the embedding for
            query i and key j.
        with_keys: whether the embedding is multiplied with the key too ("relative_key_query"), not
            with the query alone ("relative_key").
    """

    table: nn.Embedding
    with_keys: bool

    @property
    def max_position(self) -> int:
        """Number of positions that the table has room for."""
        return (self.table.num_embeddings + 1) // 2


@dataclass(frozen=True)
class Block:
    """The parts of one transformer layer.

    Post-norm: x = attention_norm(x + attention(x)); x = output_norm(x + feed_forward(x)).
    Pre-norm: x = x + attention(attention_norm(x)); x = x + feed_forward(output_norm(x)).

    Attributes:
        q: projects hidden states to queries, hidden -> num_heads * head_dim.
        k: projects hidden states to keys, hidden -> num_heads * head_dim.
        v: projects hidden states to values, hidden -> num_heads * head_dim.
        out: projects the context back, num_heads * head_dim -> hidden.
        attention_norm: LayerNorm of the attention, before or after it (see above).
        up: the first projection of the feed-forward part, hidden -> intermediate, which the
            activation follows.
        down: the second projection of the feed-forward part, intermediate -> hidden.
        output_norm: LayerNorm of the feed-forward part, before or after it.
        num_heads: number of attention heads; in a pruned layer fewer than the configuration says.
        scale: multiplies the scores of self- and cross-attention.
        activation: name of the activation in the feed-forward part.
        pre_norm: whether the LayerNorms come before attention and feed-forward part.
        cross: cross-attention between attention and feed-forward part; None in layers without.
        distances: embeddings of relative positions; None in layers without.
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
    activation: str | Activation
    pre_norm: bool = False
    cross: CrossAttention | None = None
    distances: Distances | None = None

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.q.out_features // self.num_heads
