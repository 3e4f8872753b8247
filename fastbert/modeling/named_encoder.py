"""Encoders whose parts stand where a table of names says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from fastbert.layers.block import Block
from fastbert.layers.embeddings import EmbeddingTables
from fastbert.layers.linear import Linear
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.modeling import parts
from fastbert.modeling.encoder import EncoderModel
from fastbert.modeling.parameter_names import EncoderShape, ParameterNames


class NamedEncoder(EncoderModel):
    """An encoder that is built and read by its names and its shape.

    Args:
        config: what `encoder_shape` reads.
        add_pooling_layer: whether it has a pooler, in families that have one.

    Class attributes:
        parameter_names: where its parts are.
        branch_classes: path of a branch -> the class it is made of, where that is not ParameterTree
            alone.
    """

    parameter_names: ClassVar[ParameterNames] = ParameterNames()
    branch_classes: ClassVar[Mapping[str, type[ParameterTree]]] = {}

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        names, shape = self.parameter_names, self.encoder_shape()
        for path, branch in self.branch_classes.items():
            parts.plant(self, path, branch())
        self.build_tables(shape)
        parts.build_layers(self, names, shape)
        if names.pooler is not None:
            if add_pooling_layer:
                parts.plant(self, names.pooler, Linear(shape.hidden, shape.hidden))
            else:
                # People ask for it by name, as in `model.pooler is None`.
                setattr(self, names.pooler.partition(".")[0], None)
        self.prune_as_configured()
        self.post_init()

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes from the configuration."""
        raise NotImplementedError

    def build_tables(self, shape: EncoderShape) -> None:
        """Build the embedding tables."""
        parts.build_tables(self, self.parameter_names, shape)

    def input_embeddings_place(self) -> tuple[nn.Module, str]:
        """Find the module and attribute that hold the table of words."""
        branch, _, name = self.parameter_names.word.rpartition(".")
        return (parts.part(nn.Module, self, branch) if branch else self), name

    def tables(self) -> EmbeddingTables:
        """Read the embedding tables."""
        return parts.read_tables(self, self.parameter_names, self.encoder_shape())

    def first_block(self) -> Block | None:
        """Read the first layer; None in an encoder without layers."""
        names = self.parameter_names
        if not parts.layer_count(self, names):
            return None
        return parts.read_block(self, names, self.encoder_shape(), 0)

    def blocks(self) -> Sequence[Block]:
        """Read all layers."""
        names, shape = self.parameter_names, self.encoder_shape()
        count = parts.layer_count(self, names)
        return [parts.read_block(self, names, shape, layer) for layer in range(count)]

    def pooling(self) -> Linear | None:
        """Find the projection of the pooler; None in an encoder without one."""
        names = self.parameter_names
        if parts.find(self, names.pooler) is None:
            return None
        assert names.pooler is not None
        return parts.part(Linear, self, names.pooler)
