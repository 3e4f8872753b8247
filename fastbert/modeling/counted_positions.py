"""Positions that count the tokens which are not padding, from behind the row of padding on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.parameter_names import EncoderShape


def positions_of_ids(
    input_ids: Tensor, padding_idx: int, past_key_values_length: int = 0
) -> Tensor:
    """Count the tokens that are not padding, from padding_idx + 1; padding has padding_idx.

    The count goes by the ids, whatever the attention mask says.

    Args:
        input_ids: (batch, length).
        padding_idx: the id of padding.
        past_key_values_length: tokens that came before.

    Returns:
        int64 (batch, length).
    """
    real = (input_ids != padding_idx).long()
    return (torch.cumsum(real, dim=1) + past_key_values_length) * real + padding_idx


def positions_of_columns(inputs_embeds: Tensor, padding_idx: int) -> Tensor:
    """Count all columns from padding_idx + 1: embeddings do not tell which are padding.

    Args:
        inputs_embeds: (batch, length, width).
        padding_idx: the id of padding.

    Returns:
        int64 (batch, length).
    """
    batch, length = inputs_embeds.shape[:2]
    first = padding_idx + 1
    columns = torch.arange(first, first + length, device=inputs_embeds.device)
    return columns.expand(batch, length)


class CountedPositions(BertLikeModel):
    """An encoder whose table of positions has a row for padding, and counts from behind it."""

    def __init__(self, config: Any, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        self.first_position = int(self.built_shape.position_padding or 0) + 1

    def padding_position(self) -> int:
        """Return the id of padding, which is also its row of the table of positions."""
        return int(self.config.pad_token_id)

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes; padding has a row of its own in the table of positions."""
        return replace(super().encoder_shape(), position_padding=self.padding_position())

    def default_positions(
        self, input_ids: Tensor | None, length: int, past: int, device: torch.device
    ) -> Tensor:
        """Return the positions of new tokens, (batch, length) or broadcastable to it."""
        first = self.first_position
        if input_ids is not None:
            return positions_of_ids(input_ids, first - 1, past)
        return super().default_positions(None, length, past, device) + first

    def positions_from_mask(self, mask: Tensor) -> Tensor:
        """Return the positions of the tokens of a mask (batch, length), padded on the left."""
        real = (mask != 0).long()
        return real.cumsum(dim=1) * real + self.first_position - 1
