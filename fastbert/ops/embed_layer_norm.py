"""Embedding lookups, their sum, and its LayerNorm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastbert.ops.add_layer_norm import layer_norm

SCHEMA = (
    "(Tensor? input_ids, Tensor? word, Tensor weight, Tensor bias, float eps, "
    "Tensor? position_ids=None, Tensor? position_table=None, Tensor? token_type_ids=None, "
    "Tensor? type_table=None, Tensor? extra_ids=None, Tensor? extra_table=None, "
    "Tensor? inputs_embeds=None, int padding_idx=-1, int position_padding_idx=-1) -> Tensor"
)


def embed_layer_norm(
    input_ids: Tensor | None,
    word: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    position_ids: Tensor | None = None,
    position_table: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    type_table: Tensor | None = None,
    extra_ids: Tensor | None = None,
    extra_table: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    padding_idx: int = -1,
    position_padding_idx: int = -1,
) -> Tensor:
    """LayerNorm(word[input_ids] + type[...] + position[...] + extra[...]), summed in that order.

    Args:
        input_ids: int64 (total,); None when inputs_embeds is given.
        word: (vocabulary, hidden), floating; None when inputs_embeds is given.
        weight, bias: (hidden,), of the LayerNorm.
        eps: added to the variance.
        position_ids, token_type_ids, extra_ids: int64 (total,), each with its table
            (entries, hidden), or both None.
        inputs_embeds: (total, hidden), in place of word[input_ids].
        padding_idx, position_padding_idx: rows of word and position_table that receive no
            gradient; -1 for none. The result does not depend on them.

    Returns:
        (total, hidden), the dtype of the tables.

    Raises:
        ValueError, IndexError: an id without a row in its table.
    """
    if inputs_embeds is not None:
        total = inputs_embeds
    elif input_ids is None or word is None:
        raise ValueError(
            "embed_layer_norm needs either inputs_embeds, or input_ids together with their table."
        )
    else:
        total = _lookup(input_ids, word, padding_idx)
    if token_type_ids is not None and type_table is not None:
        total = total + _lookup(token_type_ids, type_table)
    if position_ids is not None and position_table is not None:
        total = total + _lookup(position_ids, position_table, position_padding_idx)
    if extra_ids is not None and extra_table is not None:
        total = total + _lookup(extra_ids, extra_table)
    return layer_norm(total, weight, bias, eps)


def _lookup(ids: Tensor, table: Tensor, padding_idx: int = -1) -> Tensor:
    return F.embedding(ids, table, padding_idx if padding_idx >= 0 else None)
