"""What a pass takes from a model: the parts that kernels compute, and those that are called."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fastbert.layers.block import Block
from fastbert.layers.called import CalledEmbeddings, CalledPooler, CalledStack
from fastbert.layers.embeddings import EmbeddingTables
from fastbert.layers.encoder import Layers
from fastbert.layers.linear import Linear


@dataclass(frozen=True)
class Reading:
    """One reading of an encoder model.

    Attributes:
        layers: its layers.
        tables: its embedding tables, or what is called in their place.
        pooler: the projection of its pooler; None where it has none or is called.
        called_pooler: the pooler, where it is called.
        called: why parts are called as modules, a clause for each.
        position_bias: the table of what distances add to the scores of every layer; None where
            there is none.
        foreign: projections that are computed by modules that are not ours, a clause for each.
    """

    layers: Layers
    tables: EmbeddingTables | CalledEmbeddings
    pooler: Linear | None = None
    called_pooler: CalledPooler | None = None
    called: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    position_bias: nn.Embedding | None = None

    @property
    def blocks(self) -> list[Block]:
        """The layers that kernels compute."""
        if isinstance(self.layers, CalledStack):
            return []
        return [layer for layer in self.layers if isinstance(layer, Block)]

    @property
    def on_grid(self) -> bool:
        """Whether a part is called that may look at any token, so that all must be computed."""
        if isinstance(self.layers, CalledStack) or self.called_pooler is not None:
            return True
        return len(self.blocks) < len(self.layers)
