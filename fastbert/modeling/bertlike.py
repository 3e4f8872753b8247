"""The encoder of BERT and of every family that differs from it in names and shape alone.

A family says what its parts are called (`parameter_names`), how large they are (`encoder_shape`)
and where its positions start; everything else is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from fastbert.engine.encoder import Wanted
from fastbert.engine.encoder_cache import ModelSnapshot
from fastbert.layers.cache_checks import check_layers
from fastbert.layers.cache_view import Cache, as_cache
from fastbert.layers.called import CalledEmbeddings
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables, check_no_indices
from fastbert.layers.encoder import CrossInput
from fastbert.layers.masks import cross_keys, lay_out
from fastbert.modeling.encoder import EncoderPass, keeps_padding
from fastbert.modeling.encoding import EncoderInputs, Options
from fastbert.modeling.named_encoder import NamedEncoder
from fastbert.modeling.parameter_names import EncoderShape
from fastbert.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    finish,
)

EncoderModelOutput = (
    BaseModelOutput
    | BaseModelOutputWithPooling
    | BaseModelOutputWithPoolingAndCrossAttentions
    | BaseModelOutputWithPastAndCrossAttentions
)


class BertLikeModel(NamedEncoder):
    """An encoder (or decoder) that computes what BERT computes.

    Args:
        config: hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act,
            layer_norm_eps and so on; see `encoder_shape`.
        add_pooling_layer: whether it has a pooler, in families that have one.

    Class attributes:
        output_class: what forward returns; fields that it lacks are left out.
        kept_in_tuple: fields that keep their place in the tuple of return_dict=False even when they
            are None.
    """

    output_class: ClassVar[Callable[..., EncoderModelOutput]] = (
        BaseModelOutputWithPoolingAndCrossAttentions
    )
    kept_in_tuple: ClassVar[tuple[str, ...]] = ()

    # What a family may change

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes from the configuration.

        A family whose configuration says more, or says it otherwise, overrides this. Fields that
        not every family has are optional: type_vocab_size, add_cross_attention and
        position_embedding_type.

        Raises:
            ValueError: for values that do not fit together.
        """
        config = self.config
        cross_attention = bool(getattr(config, "add_cross_attention", False))
        if cross_attention and not self.is_decoder():
            raise ValueError(
                "add_cross_attention=True needs a decoder; set is_decoder=True in the "
                "configuration."
            )
        return EncoderShape(
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            token_types=getattr(config, "type_vocab_size", 0),
            width=config.hidden_size,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            intermediate=config.intermediate_size,
            activation=config.hidden_act,
            norm_eps=config.layer_norm_eps,
            padding=config.pad_token_id,
            position_type=getattr(config, "position_embedding_type", "absolute"),
            cross_attention=cross_attention,
        )

    def default_positions(
        self, input_ids: Tensor | None, length: int, past: int, device: torch.device
    ) -> Tensor:
        """Return the positions of new tokens, broadcastable to (batch, length).

        Args:
            input_ids: (batch, length); None where embeddings were given.
            length: number of new tokens.
            past: number of cached tokens before them.
            device: of the result.
        """
        return torch.arange(past, past + length, device=device)

    def is_decoder(self) -> bool:
        """Say whether tokens see no later ones, and a cache may be kept."""
        return bool(getattr(self.config, "is_decoder", False))

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
        decoder = self.is_decoder()
        use_cache = inputs.use_cache
        use_cache = decoder and (config.use_cache if use_cache is None else bool(use_cache))
        if self.training and self.gradient_checkpointing:
            use_cache = False
        states = inputs.encoder_hidden_states
        cache, past = None, None
        # An encoder takes a cache too: the prefix that prompt tuning learned.
        if use_cache or inputs.past_key_values is not None:
            cache = as_cache(inputs.past_key_values, states is not None)
            check_layers(cache, config.num_hidden_layers)
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
        if isinstance(tables, CalledEmbeddings):
            embeds = inputs.inputs_embeds
            given_indices = (inputs.input_ids, inputs.position_ids, inputs.token_type_ids)
            ids, positions, types = (self.over_grid(shape, device, x) for x in given_indices)
            return EmbeddingInput(
                ids, positions, types, None, None if embeds is None else embeds.to(device)
            )
        positions = None
        if tables.position is not None:
            positions = inputs.position_ids
            if positions is None:
                positions = self.default_positions(inputs.input_ids, length, given.past, device)
            positions = self.over_grid(shape, device, positions)
        self.check_positions(positions, given.layout.batch, length + given.past, tables)
        token_types = _token_types(inputs.token_type_ids, tables, device)
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
    ) -> EncoderModelOutput:
        """Encode token ids, or embeddings in their place.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: (batch, length), zero for padding; (batch, queries, keys) or (batch,
                heads, queries, keys) for any other pattern.
            token_type_ids: int64 (batch, length) or (1, length).
            position_ids: int64 (batch, length) or (1, length).
            inputs_embeds: (batch, length, embedding width), in place of input_ids.
            encoder_hidden_states: (batch, encoder length, hidden), for cross-attention.
            encoder_attention_mask: (batch, encoder length), zero for padding.
            past_key_values: a cache, or tuples over layers of keys and values.
            use_cache: whether a decoder returns a cache; None for config.use_cache.

        Returns:
            An object of output_class, or its tuple.
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
            Wanted(
                padded=True,
                first_column=self.pooling() is not None,
                keep_padding=keeps_padding(),
            ),
        )
        output = self.output_class(last_hidden_state=encoding.padded())
        pooled = self.pool(encoding) if "pooler_output" in output.field_names() else None
        if pooled is not None:
            output["pooler_output"] = pooled
        return finish(output, encoding, self.kept_in_tuple)

    def _cross(self, inputs: EncoderInputs, shape: tuple[int, int]) -> CrossInput | None:
        states, mask = inputs.encoder_hidden_states, inputs.encoder_attention_mask
        if states is None or not self.is_decoder():
            return None
        if states.dim() != 3 or states.shape[0] != shape[0]:
            raise ValueError(
                f"encoder_hidden_states must have shape ({shape[0]}, length, "
                f"{self.config.hidden_size}), but have {tuple(states.shape)}."
            )
        length = states.shape[1]
        keys, bias = cross_keys(mask, (shape[0], length), shape[1], self.device, self.dtype)
        return CrossInput(states.to(self.dtype).reshape(-1, states.shape[2]), keys, bias)


def _token_types(
    given: Tensor | None, tables: EmbeddingTables, device: torch.device
) -> Tensor | None:
    """Choose the token types to look up: type 0 unless others are given, nothing without a table.

    Raises:
        IndexError: for a type other than 0 where there is no table (checked on the CPU).
    """
    if tables.token_type is not None:
        return torch.zeros(1, 1, dtype=torch.long, device=device) if given is None else given
    check_no_indices("token_type_ids", given)
    return None
