"""The encoder that BERT, CamemBERT, RemBERT and ALIGN's text tower share.

A family says how wide its embeddings are, where its positions start, and what its parts are called
where that differs; everything else is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from fastbert.engine.encoder import Wanted
from fastbert.engine.encoder_cache import ModelSnapshot
from fastbert.layers.block import Block, CrossAttention, Distances
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables
from fastbert.layers.encoder import CrossInput
from fastbert.layers.kv_cache import Cache, as_cache
from fastbert.layers.linear import Linear
from fastbert.layers.masks import cross_keys, lay_out
from fastbert.layers.norm import LayerNorm
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.modeling.encoder import EncoderModel, EncoderPass
from fastbert.modeling.encoding import EncoderInputs, Options
from fastbert.outputs import (
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
)

PooledOutput = BaseModelOutputWithPooling | BaseModelOutputWithPoolingAndCrossAttentions


class BertLikeModel(EncoderModel):
    """An encoder (or decoder) with BERT's parameter names.

    Args:
        config: hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act,
            layer_norm_eps, and so on.
        add_pooling_layer: whether it has a pooler.
    """

    embeddings: nn.Module
    encoder: nn.Module
    embeddings_class: ClassVar[type[ParameterTree]] = ParameterTree
    output_class: ClassVar[Callable[..., PooledOutput]] = (
        BaseModelOutputWithPoolingAndCrossAttentions
    )
    # Fields that hold their place in the tuple of return_dict=False even when they are None.
    kept_in_tuple: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = self.build_embeddings()
        layers = (bert_layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = ParameterTree(layer=nn.ModuleList(layers))
        self.pooler: Any = None
        if add_pooling_layer:
            self.pooler = ParameterTree(dense=Linear(config.hidden_size, config.hidden_size))
        self.prune_as_configured()

    # What a family may change

    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return int(self.config.hidden_size)

    def position_padding(self) -> int | None:
        """The row of the position table that stands for padding."""
        return None

    def default_positions(
        self, input_ids: Tensor | None, length: int, past: int, device: torch.device
    ) -> Tensor:
        """Positions of new tokens behind `past` cached ones, broadcastable to (batch, length)."""
        return torch.arange(past, past + length, device=device)

    def embedding_projection(self) -> Linear | None:
        """From the width of the tables to the hidden size, where they differ."""
        return None

    # Building

    def build_embeddings(self) -> nn.Module:
        config, width = self.config, self.embedding_width()
        return self.embeddings_class(
            word_embeddings=nn.Embedding(config.vocab_size, width, config.pad_token_id),
            position_embeddings=nn.Embedding(
                config.max_position_embeddings, width, self.position_padding()
            ),
            token_type_embeddings=nn.Embedding(config.type_vocab_size, width),
            LayerNorm=LayerNorm(width, config.layer_norm_eps),
        )

    def input_embeddings_place(self) -> tuple[nn.Module, str]:
        return self.embeddings, "word_embeddings"

    def tables(self) -> EmbeddingTables:
        parts: Any = self.embeddings
        absolute = getattr(self.config, "position_embedding_type", "absolute") == "absolute"
        return EmbeddingTables(
            parts.word_embeddings,
            parts.position_embeddings if absolute else None,
            parts.token_type_embeddings,
            None,
            parts.LayerNorm,
            self.embedding_projection(),
        )

    def first_block(self) -> Block | None:
        layers: Any = self.encoder.layer
        return bert_block(layers[0], self.config) if len(layers) else None

    def blocks(self) -> Sequence[Block]:
        return [bert_block(layer, self.config) for layer in self.encoder.layer]  # type: ignore[union-attr]

    def pooling(self) -> Linear | None:
        return None if self.pooler is None else self.pooler.dense

    # Computing

    def arrange(
        self,
        inputs: EncoderInputs,
        shape: tuple[int, int],
        snapshot: ModelSnapshot,
        wanted: Wanted,
    ) -> EncoderPass:
        """See EncoderModel.arrange."""
        config = self.config
        decoder = bool(config.is_decoder)
        use_cache = inputs.use_cache
        use_cache = decoder and (config.use_cache if use_cache is None else bool(use_cache))
        if self.training and self.gradient_checkpointing:
            use_cache = False
        states = inputs.encoder_hidden_states
        cache, past = None, None
        if decoder and (use_cache or inputs.past_key_values is not None):
            cache = as_cache(inputs.past_key_values, states is not None)
            past = int(cache.get_seq_length())
        layout = lay_out(
            inputs.attention_mask,
            shape,
            snapshot.device,
            dtype=snapshot.dtype,
            past=past,
            causal=decoder,
            keep_padding=wanted.keep_padding,
            keep_first_column=wanted.first_column,
        )
        return EncoderPass(
            layout,
            past or 0,
            cache=None if cache is None else Cache(cache),
            cross=None if states is None else self._cross(inputs, shape),
            returned_cache=cache if use_cache else None,
        )

    def look_up(
        self,
        inputs: EncoderInputs,
        shape: tuple[int, int],
        given: EncoderPass,
        snapshot: ModelSnapshot,
    ) -> EmbeddingInput:
        """See EncoderModel.look_up."""
        device, length, tables = snapshot.device, shape[1], snapshot.tables
        positions = None
        if tables.position is not None:
            positions = inputs.position_ids
            if positions is None:
                positions = self.default_positions(inputs.input_ids, length, given.past, device)
            positions = self.over_grid(shape, device, positions)
        self.check_positions(positions, given.layout.batch, length + given.past)
        token_types = inputs.token_type_ids
        if token_types is None and tables.token_type is not None:
            token_types = torch.zeros(1, 1, dtype=torch.long, device=device)
        embeds = inputs.inputs_embeds
        return EmbeddingInput(
            self.over_grid(shape, device, inputs.input_ids),
            positions,
            self.over_grid(shape, device, token_types),
            None,
            None if embeds is None else embeds.to(device, snapshot.dtype),
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **options: Unpack[Options],
    ) -> PooledOutput:
        """Encode token ids, or embeddings in their place.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: (batch, length), zero for padding; (batch, queries, keys) or (batch,
                heads, queries, keys) for any other pattern.
            token_type_ids, position_ids: int64 (batch, length) or (1, length).
            inputs_embeds: (batch, length, embedding width), in place of input_ids.
            encoder_hidden_states: (batch, encoder length, hidden), for cross-attention.
            encoder_attention_mask: (batch, encoder length), zero for padding.
            past_key_values: a cache, or tuples over layers of keys and values.
            use_cache: whether a decoder returns a cache; None for config.use_cache.

        Returns:
            BaseModelOutputWithPoolingAndCrossAttentions, or its tuple.
        """
        encoding = self.encode(
            EncoderInputs(
                input_ids,
                attention_mask,
                token_type_ids,
                position_ids,
                inputs_embeds,
                encoder_hidden_states,
                encoder_attention_mask,
                past_key_values,
                use_cache,
                options,
            ),
            Wanted(padded=True, first_column=self.pooler is not None),
        )
        return encoding.finish(
            self.output_class(
                last_hidden_state=encoding.padded(), pooler_output=self.pool(encoding)
            ),
            self.kept_in_tuple,
        )

    def _cross(self, inputs: EncoderInputs, shape: tuple[int, int]) -> CrossInput | None:
        states, mask = inputs.encoder_hidden_states, inputs.encoder_attention_mask
        if states is None or not self.config.is_decoder:
            return None
        if states.dim() != 3 or states.shape[0] != shape[0]:
            raise ValueError(
                f"encoder_hidden_states must have shape ({shape[0]}, length, "
                f"{self.config.hidden_size}), but have {tuple(states.shape)}."
            )
        length = states.shape[1]
        keys, bias = cross_keys(mask, (shape[0], length), shape[1], self.device, self.dtype)
        return CrossInput(states.to(self.dtype).reshape(-1, states.shape[2]), keys, bias)


def bert_layer(config: Any) -> ParameterTree:
    """The parameters of one layer, under BERT's names."""
    if config.add_cross_attention and not config.is_decoder:
        raise ValueError(
            "add_cross_attention=True needs a decoder; set is_decoder=True in the configuration."
        )
    hidden, inner = config.hidden_size, config.intermediate_size
    children: dict[str, nn.Module] = {"attention": _bert_attention(config, distances=True)}
    if config.add_cross_attention:
        children["crossattention"] = _bert_attention(config, distances=False)
    return ParameterTree(
        **children,
        intermediate=ParameterTree(dense=Linear(hidden, inner)),
        output=ParameterTree(
            dense=Linear(inner, hidden), LayerNorm=LayerNorm(hidden, config.layer_norm_eps)
        ),
    )


def _bert_attention(config: Any, distances: bool) -> ParameterTree:
    hidden, heads = config.hidden_size, config.num_attention_heads
    if hidden % heads:
        raise ValueError(
            f"hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})."
        )
    parts: dict[str, nn.Module] = {
        name: Linear(hidden, hidden) for name in ("query", "key", "value")
    }
    kind = getattr(config, "position_embedding_type", "absolute")
    if kind not in ("absolute", "relative_key", "relative_key_query"):
        raise ValueError(
            "position_embedding_type is 'absolute', 'relative_key' or 'relative_key_query', "
            f"not {kind!r}."
        )
    if distances and kind != "absolute":
        parts["distance_embedding"] = nn.Embedding(
            2 * config.max_position_embeddings - 1, hidden // heads
        )
    return ParameterTree(
        **{"self": ParameterTree(**parts)},
        output=ParameterTree(
            dense=Linear(hidden, hidden), LayerNorm=LayerNorm(hidden, config.layer_norm_eps)
        ),
    )


def bert_block(layer: Any, config: Any) -> Block:
    """The Block over a layer with BERT's names."""
    own, out = layer.attention.self, layer.attention.output
    head_dim = config.hidden_size // config.num_attention_heads
    cross = None
    if hasattr(layer, "crossattention"):
        other, joined = layer.crossattention.self, layer.crossattention.output
        cross = CrossAttention(other.query, other.key, other.value, joined.dense, joined.LayerNorm)
    distances = None
    if hasattr(own, "distance_embedding"):
        distances = Distances(
            own.distance_embedding, config.position_embedding_type == "relative_key_query"
        )
    return Block(
        q=own.query,
        k=own.key,
        v=own.value,
        out=out.dense,
        attention_norm=out.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        output_norm=layer.output.LayerNorm,
        num_heads=own.query.out_features // head_dim,
        scale=head_dim**-0.5,
        activation=config.hidden_act,
        cross=cross,
        distances=distances,
    )
