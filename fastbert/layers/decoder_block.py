"""The parameters of a decoder's layer, as an engine reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fastbert.layers.activation import XIELU, NamedActivation
from fastbert.layers.linear import Projection
from fastbert.layers.rms_norm import RMSNorm


@dataclass(frozen=True)
class DecoderBlock:
    """A layer: attention and feed-forward part, each behind a norm and around a residual.

    Attributes:
        attention_norm: before the queries, keys and values.
        q, k, v: their projections.
        q_norm, k_norm: norms of each head of queries and keys, before they are rotated.
        out: the projection of what attention gives.
        feedforward_norm: before the feed-forward part.
        up, down: its projections.
        activation: between the two.
        num_heads, num_kv_heads, head_dim: sizes of heads.
        scale: multiplies the scores.
    """

    attention_norm: RMSNorm
    q: Projection
    k: Projection
    v: Projection
    q_norm: RMSNorm
    k_norm: RMSNorm
    out: Projection
    feedforward_norm: RMSNorm
    up: Projection
    down: Projection
    activation: XIELU | NamedActivation
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All products of the layer."""
        return (self.q, self.k, self.v, self.out, self.up, self.down)

    @property
    def norms(self) -> tuple[RMSNorm, ...]:
        """All norms of the layer."""
        return (self.attention_norm, self.q_norm, self.k_norm, self.feedforward_norm)

    def parts(self) -> Iterator[nn.Module]:
        """Yield the modules that hold parameters."""
        yield from self.projections
        yield from self.norms
        yield self.activation

    def sizes(self) -> tuple[object, ...]:
        """Return what all layers of a decoder have in common."""
        shape = (self.num_heads, self.num_kv_heads, self.head_dim, self.scale)
        name = getattr(self.activation, "name", "xielu")
        return (*shape, self.q.in_features, self.up.out_features, name)
