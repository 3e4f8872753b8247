"""The encoder that BERT, CamemBERT, RemBERT and ALIGN's text tower share.

A family says how wide its embeddings are, where its positions start, and what its parts are called
where that differs; everything else is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from fastbert.layers.block import Block, CrossAttention, Distances
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables
from fastbert.layers.encoder import CrossInput
from fastbert.layers.kv_cache import Cache, as_cache
from fastbert.layers.linear import Linear, project
from fastbert.layers.masks import cross_keys, lay_out
from fastbert.layers.norm import LayerNorm
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.modeling.encoder import EncoderModel
from fastbert.modeling.encoding import Encoding, Options
from fastbert.outputs import BaseModelOutputWithPoolingAndCrossAttentions, ModelOutput


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
    output_class: ClassVar[type[ModelOutput]] = BaseModelOutputWithPoolingAndCrossAttentions
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

    def compute(
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
        *,
        first_column: bool = False,
        keep_padding: bool = False,
        padded: bool = False,
        **options: Any,
    ) -> Encoding:
        """See EncoderModel.encode."""
        config = self.config
        shape = self.grid(input_ids, inputs_embeds)
        request = self.request(shape, options, inputs_embeds, encoder_hidden_states)
        view = request.view
        decoder = bool(config.is_decoder)
        use_cache = decoder and (config.use_cache if use_cache is None else bool(use_cache))
        if self.training and self.gradient_checkpointing:
            use_cache = False
        cache, past = None, None
        if decoder and (use_cache or past_key_values is not None):
            cache = as_cache(past_key_values, encoder_hidden_states is not None)
            past = int(cache.get_seq_length())
        layout = lay_out(
            attention_mask,
            shape,
            view.device,
            dtype=view.dtype,
            past=past,
            causal=decoder,
            keep_padding=keep_padding,
            keep_first_column=first_column,
        )
        if position_ids is None:
            position_ids = self.default_positions(input_ids, shape[1], past or 0, view.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros(1, 1, dtype=torch.long, device=view.device)
        positions = None if view.tables.position is None else position_ids
        positions = self.over_grid(shape, request, positions)
        self.check_positions(positions, layout.batch, shape[1] + (past or 0))
        rows = EmbeddingInput(
            self.over_grid(shape, request, input_ids),
            positions,
            self.over_grid(shape, request, token_type_ids),
            None,
            None if inputs_embeds is None else inputs_embeds.to(view.device, view.dtype),
        )
        encoded = self.run(
            rows,
            layout,
            request,
            cache=None if cache is None else Cache(cache),
            cross=self._cross(encoder_hidden_states, encoder_attention_mask, shape),
            padded=padded,
            pooled=first_column,
        )
        return self.encoding(encoded, layout.batch, request, cache if use_cache else None)

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
    ) -> Any:
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
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache,
            first_column=self.pooler is not None,
            padded=True,
            **options,
        )
        return encoding.finish(
            self.output_class,
            self.kept_in_tuple,
            last_hidden_state=encoding.padded(),
            pooler_output=self.pool(encoding),
        )

    def _cross(
        self, states: Tensor | None, mask: Tensor | None, shape: tuple[int, int]
    ) -> CrossInput | None:
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

    def pool(self, encoding: Encoding) -> Tensor | None:
        """tanh(dense(column 0)), (batch, hidden); None without a pooler."""
        if self.pooler is None:
            return None
        if encoding.pooled is not None:
            return encoding.pooled
        return project(self.pooler.dense, encoding.first_rows(), encoding.plan, "tanh")


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
