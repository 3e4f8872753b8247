"""Encoders whose parts stand where a table of names says."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from fastbert.engine.reading import Reading
from fastbert.layers.block import Block
from fastbert.layers.called import (
    CalledEmbeddings,
    CalledLayer,
    CalledPooler,
    CalledStack,
    LayerInputs,
    StackAnswer,
)
from fastbert.layers.calling import call, call_by_name, hidden_of, tell
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables
from fastbert.layers.encoder import Layers
from fastbert.layers.linear import Int8Linear, Linear
from fastbert.modeling import parts
from fastbert.modeling.encoder import EncoderModel
from fastbert.modeling.module_table import (
    Built,
    Difference,
    ModuleTable,
    Region,
    differences,
    foreign_projections,
    is_projection,
    record,
    region_of,
)
from fastbert.modeling.parameter_names import EncoderShape, ParameterNames
from fastbert.runtime.plan import Traits


class NamedEncoder(EncoderModel):
    """An encoder that is built and read by its names and its shape.

    Args:
        config: what `encoder_shape` reads.
        add_pooling_layer: whether it has a pooler, in families that have one.

    Class attributes:
        parameter_names: where its parts are.
        module_table: the modules that hold them.

    Attributes:
        built_shape: its sizes and what it computes, as it was built.
    """

    parameter_names: ClassVar[ParameterNames] = ParameterNames()
    module_table: ClassVar[ModuleTable] = ModuleTable()

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        names, shape = self.parameter_names, self.encoder_shape()
        # What a configuration says later changes no module, so that it changes no result either.
        self.built_shape = shape
        self.build_tables(shape)
        parts.build_layers(self, names, shape, self.make_branch)
        if names.pooler is not None:
            if add_pooling_layer:
                pooler = Linear(shape.hidden, shape.hidden)
                parts.plant(self, names.pooler, pooler, make=self.make_branch)
            else:
                # People ask for it by name, as in `model.pooler is None`.
                setattr(self, names.pooler.partition(".")[0], None)
        self._built: dict[str, Built] = record(self)
        self._dropouts = self.dropouts()
        self.prune_as_configured()
        self.post_init()

    def make_branch(self, path: str, layer: int | None) -> nn.Module:
        """Make the branch that the family has at a path."""
        kind = self.module_table.classes.get(path)
        if kind is None:
            return parts.bare(path, layer)
        branch: nn.Module = kind(self.config, self.built_shape, layer)
        return branch

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes from the configuration, once, when the model is built."""
        raise NotImplementedError

    def build_tables(self, shape: EncoderShape) -> None:
        """Build the embedding tables."""
        parts.build_tables(self, self.parameter_names, shape, make=self.make_branch)

    def input_embeddings_place(self) -> tuple[nn.Module, str]:
        """Find the module and attribute that hold the table of words."""
        branch, _, name = self.parameter_names.word.rpartition(".")
        return (parts.part(nn.Module, self, branch) if branch else self), name

    def tables(self) -> EmbeddingTables:
        """Read the embedding tables."""
        return parts.read_tables(self, self.parameter_names, self.built_shape)

    def longest(self) -> int:
        """Count the tokens for which the table of positions that stands there has room."""
        absolute = self.built_shape.position_type == "absolute"
        table = parts.find(self, self.parameter_names.position) if absolute else None
        weight = getattr(table, "weight", None)
        rows = len(weight) if isinstance(weight, Tensor) else self.built_shape.positions
        return rows - self.first_position

    def first_block(self) -> Block | None:
        """Read the first layer that has the parts that were built; None where there is none."""
        names, shape = self.parameter_names, self.built_shape
        for layer in range(parts.layer_count(self, names)):
            if parts.complete(self, names, layer):
                return parts.read_block(self, names, shape, layer)
        return None

    def traits(self) -> Traits:
        """Return what the choice of kernels depends on, as the model was built or as it is."""
        shape, block = self.built_shape, self.first_block()
        return Traits(
            num_heads=shape.heads if block is None else block.num_heads,
            head_dim=shape.head_dim,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate if block is None else block.up.out_features,
            embedding_size=shape.width,
            activation=shape.activation,
            quantized=block is not None and isinstance(block.q, Int8Linear),
        )

    def blocks(self) -> Sequence[Block]:
        """Read all layers."""
        names, shape = self.parameter_names, self.built_shape
        count = parts.layer_count(self, names)
        return [parts.read_block(self, names, shape, layer) for layer in range(count)]

    def pooling(self) -> Linear | None:
        """Find the projection of the pooler; None in an encoder without one."""
        names = self.parameter_names
        if parts.find(self, names.pooler) is None:
            return None
        assert names.pooler is not None
        return parts.part(Linear, self, names.pooler)

    # Parts that are not as they were built

    def read(self) -> Reading:
        """Read the parts that kernels compute, and say which are called as modules instead.

        Raises:
            ValueError: for a part that was replaced or hooked and cannot be called.
        """
        found = [*differences(self, self._built), *self.own_differences()]
        if not self.module_table.regions:
            found = [one for one in found if not self._kept_by_rows(one)]
        regions: dict[tuple[Region, int | None], str] = {}
        for one in found:
            for place in self._places(one):
                regions.setdefault(place, one.why)
        embeddings, pooler = ("embeddings", None) in regions, ("pooler", None) in regions
        return Reading(
            self._layers(regions),
            CalledEmbeddings(self.call_embeddings, self.called_projection())
            if embeddings
            else self.tables(),
            None if pooler else self.pooling(),
            CalledPooler(self.call_pooler) if pooler else None,
            tuple(dict.fromkeys(regions.values())),
            tuple(foreign_projections(self, self._built)),
            cast(nn.Embedding | None, parts.find(self, self.parameter_names.position_bias)),
        )

    def own_differences(self) -> Iterable[Difference]:
        """Yield what a family keeps beside its modules and finds no longer as it was built."""
        return ()

    def _kept_by_rows(self, one: Difference) -> bool:
        """Whether a family without callable branches computes a part by rows all the same.

        That is a projection with hooks; any other module might look at more than its row.
        """
        found = parts.find(self, one.pattern, one.layer) if one.pattern else None
        return not one.pattern or (found is not None and is_projection(found))

    def _places(self, one: Difference) -> list[tuple[Region, int | None]]:
        """Return the regions that must be called because of a difference."""
        table = self.module_table
        if not one.pattern:
            return [(region, None) for region in dict.fromkeys(table.regions.values())]
        region = region_of(one.pattern, table)
        if region is None:
            raise ValueError(
                f"{one.why}, and the modules around it in this {type(self).__name__} cannot be "
                "called. Put the part that was built back; a linear layer may be an nn.Linear or a "
                "LoRA adapter of peft, and may have hooks. A family whose parts may be replaced "
                "says in its module_table how they are called."
            )
        return [(region, one.layer if region == "layer" else None)]

    def _layers(self, regions: dict[tuple[Region, int | None], str]) -> Layers:
        if ("encoder", None) in regions:
            return CalledStack(self.call_stack, self._stack_projects())
        names, shape = self.parameter_names, self.built_shape
        every = ("layer", None) in regions
        return [
            CalledLayer(functools.partial(self.call_layer, layer))
            if every or ("layer", layer) in regions
            else parts.read_block(self, names, shape, layer)
            for layer in range(parts.layer_count(self, names))
        ]

    def _stack_projects(self) -> bool:
        """Whether the projection of the embeddings is part of the module that holds the layers."""
        paths = self.module_table.regions.items()
        stack = next(path for path, region in paths if region == "encoder")
        return (self.parameter_names.embedding_projection or "").startswith(f"{stack}.")

    def called_projection(self) -> Linear | None:
        """Find the projection of embeddings that `call_embeddings` leaves as the tables hold."""
        found = parts.find(self, self.parameter_names.embedding_projection)
        return found if found is None else parts.cast_linear(found)

    def _region_root(self, region: Region, layer: int | None = None) -> nn.Module:
        """Find the module that is called for a region."""
        path = next(path for path, name in self.module_table.regions.items() if name == region)
        return parts.part(nn.Module, self, path, layer)

    def call_embeddings(self, inputs: EmbeddingInput, past: int) -> Tensor:
        """Call the embeddings as torch would: (batch, seqlen, width)."""
        return hidden_of(
            call_by_name(
                self._region_root("embeddings"),
                input_ids=inputs.ids,
                token_type_ids=inputs.token_types,
                position_ids=inputs.positions,
                inputs_embeds=inputs.embeds,
                past_key_values_length=past or None,
            )
        )

    def layer_arguments(self, hidden: Tensor, given: LayerInputs) -> dict[str, Any]:
        """Return what a layer gets by position behind hidden states, by name and in that order."""
        return {"attention_mask": given.mask, "encoder_hidden_states": given.states}

    def call_layer(self, layer: int, hidden: Tensor, given: LayerInputs) -> Tensor:
        """Call a layer as torch would, on (batch, seqlen, hidden)."""
        answer = call(
            self._region_root("layer", layer),
            hidden,
            self.layer_arguments(hidden, given),
            encoder_attention_mask=given.states_mask,
            past_key_values=given.cache,
            head_mask=given.head_mask,
            output_attentions=given.attentions or None,
        )
        return hidden_of(answer)

    def call_stack(self, hidden: Tensor, given: LayerInputs, states: bool) -> StackAnswer:
        """Call the module that holds all layers as torch would, on (batch, seqlen, width)."""
        answer = call(
            self._region_root("encoder"),
            hidden,
            attention_mask=given.mask,
            encoder_hidden_states=given.states,
            encoder_attention_mask=given.states_mask,
            past_key_values=given.cache,
            head_mask=given.head_mask,
            output_attentions=given.attentions or None,
            output_hidden_states=states or None,
        )
        for name, cross in (("attentions", False), ("cross_attentions", True)):
            for weights in getattr(answer, name, None) or ():
                tell(weights, cross)
        return StackAnswer(hidden_of(answer), getattr(answer, "hidden_states", None))

    def call_pooler(self, hidden: Tensor) -> Tensor:
        """Call the pooler as torch would, on (batch, seqlen, hidden)."""
        return hidden_of(call(self._region_root("pooler"), hidden))
