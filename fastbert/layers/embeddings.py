"""Embedding tables and what goes into them, on packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from fastbert.layers.hooks import hooked
from fastbert.layers.linear import Linear, project
from fastbert.layers.norm import LayerNorm
from fastbert.ops.operands import batched
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


@dataclass(frozen=True)
class EmbeddingTables:
    """The embedding tables of a family.

    Attributes:
        word: (vocabulary, width).
        position: (positions, width); None without absolute positions.
        token_type: (token types, width); None where the family has none.
        language: (languages, width); None where the family has none.
        norm: LayerNorm over the sum of all.
        projection: from the width of the tables to the hidden width, where they differ.
    """

    word: nn.Embedding
    position: nn.Embedding | None
    token_type: nn.Embedding | None
    language: nn.Embedding | None
    norm: LayerNorm
    projection: Linear | None = None


@dataclass(frozen=True)
class EmbeddingInput:
    """Indices into the embedding tables, one for every token of the padded grid.

    Attributes:
        ids: int64 (batch, seqlen), of words; packed (total,), as all others then are.
        positions: int64 (batch, seqlen); None where that table adds nothing, as for the next two.
        token_types: int64 (batch, seqlen).
        languages: int64 (batch, seqlen).
        embeds: (batch, seqlen, width), in place of ids; packed (total, width).
    """

    ids: Tensor | None
    positions: Tensor | None = None
    token_types: Tensor | None = None
    languages: Tensor | None = None
    embeds: Tensor | None = None

    def packed(self, batch: PackedBatch) -> EmbeddingInput:
        """Return the indices of the batch's tokens alone."""
        values = (self.ids, self.positions, self.token_types, self.languages, self.embeds)
        return EmbeddingInput(*(None if value is None else batch.pack(value) for value in values))


def check_input(tables: EmbeddingTables, rows: EmbeddingInput) -> None:
    """Refuse packed indices outside their tables. Raises IndexError."""
    check_indices("input_ids", rows.ids, tables.word, "ids of the vocabulary")
    check_indices("position_ids", rows.positions, tables.position, "the model's positions")
    check_indices("token_type_ids", rows.token_types, tables.token_type, "the token types")
    check_indices("langs", rows.languages, tables.language, "the languages")


def embed(tables: EmbeddingTables, rows: EmbeddingInput, plan: Plan) -> Tensor:
    """Compute norm(word + token_type + position + language) of packed rows: (total, width).

    Dropout and the projection come later.

    Raises:
        IndexError: for an index outside its table (checked for tensors on the CPU).
    """
    check_input(tables, rows)
    ids, embeds = rows.ids, rows.embeds
    if embeds is None and not _alone(tables.word):
        embeds = tables.word(ids)
    hidden: Tensor = plan.embed_layer_norm(
        ids if embeds is None else None,
        None if embeds is not None else tables.word.weight,
        tables.norm.weight,
        tables.norm.bias,
        tables.norm.eps,
        *_lookup(tables.position, rows.positions),
        *_lookup(tables.token_type, rows.token_types),
        *_lookup(tables.language, rows.languages),
        embeds,
        padding_idx=_padding(tables.word),
        position_padding_idx=_padding(tables.position),
    )
    return hidden


def embed_and_project(tables: EmbeddingTables, inputs: EmbeddingInput, plan: Plan) -> Tensor:
    """Compute the first block's input from packed indices, without dropout: (total, hidden).

    Raises:
        IndexError: for an index outside its table (checked for tensors on the CPU).
    """
    hidden = embed(tables, inputs, plan)
    return hidden if tables.projection is None else project(tables.projection, hidden, plan)


def _alone(table: nn.Embedding) -> bool:
    """Say whether a table is a plain one that nobody hooked.

    Otherwise (adapters, gradients of its rows) what it makes of the indices is what counts.
    """
    return type(table) is nn.Embedding and not hooked(table)


def _lookup(
    table: nn.Embedding | None, indices: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the indices and the weight they point into; neither where one of them is absent."""
    if table is None or indices is None:
        return None, None
    if _alone(table):
        return indices, table.weight
    rows = table(indices)
    return torch.arange(rows.shape[0], device=rows.device), rows


def _padding(table: nn.Embedding | None) -> int:
    index = None if table is None or not _alone(table) else table.padding_idx
    return -1 if index is None else index


def _readable(indices: Tensor | None) -> TypeGuard[Tensor]:
    """Return whether there are indices whose values can be looked at without waiting."""
    if indices is None or indices.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not batched(indices)


def check_indices(name: str, indices: Tensor | None, table: nn.Embedding | None, what: str) -> None:
    """Refuse indices that lie outside a table, in a sentence.

    On an accelerator nothing is checked, since looking at the values would wait for the device.
    """
    if table is None or not _readable(indices) or indices.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(indices))
    if low < 0 or high >= table.num_embeddings:
        raise IndexError(
            f"{name} reach from {low} to {high}, but {what} go from 0 to "
            f"{table.num_embeddings - 1}; check that tokenizer and model belong together."
        )


def check_no_indices(name: str, indices: Tensor | None) -> None:
    """Refuse indices other than 0 into a table that a model does not have.

    Zeros are what tokenizers give for a single text, and mean nothing there. On an accelerator
    nothing is checked, as in `check_indices`.

    Raises:
        IndexError: naming the argument.
    """
    if _readable(indices) and bool(indices.any()):
        raise IndexError(
            f"{name} other than 0 were given, but this model has no table for them; leave them out."
        )
