"""From what a pass computes to what an engine is given, and back to what a forward returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastbert.engine.decoder import DecoderInput, DecoderWanted
from fastbert.kernels.openmp import on_one_thread
from fastbert.layers.cache_places import CacheSizes, unwritable
from fastbert.layers.decoder_block import DecoderBlock
from fastbert.layers.masks import for_all
from fastbert.layers.rotary import RotaryEmbedding
from fastbert.modeling.encoding import EncoderInputs, Encoding
from fastbert.models.apertus.arrange import Arranged
from fastbert.runtime.packing import PackedBatch


@dataclass
class ScoredEncoding(Encoding):
    """A pass whose engine scored the vocabulary.

    Attributes:
        logits: as VocabularyHead.scores returns them; the hidden states were not kept.
    """

    logits: Tensor | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a pass that hold tokens.

    Attributes:
        batch: the tokens of the new columns.
        first: int64 (batch,), the column of each text's first token, those in the cache counted;
            None for column 0.
    """

    batch: PackedBatch
    first: Tensor | None = None


def columns_of(mask: Tensor | None, shape: tuple[int, int], past: int) -> Columns | str:
    """Return which columns hold tokens behind a cache, or why no engine computes them.

    Args:
        mask: None, or (batch, past + length), zero for padding.
        shape: (batch, length) of the new tokens.
        past: columns that the cache holds.
    """
    batch, length = shape
    if mask is None:
        return Columns(PackedBatch.dense(batch, length))
    real = for_all(mask, batch) != 0
    first = real.int().argmax(dim=1)
    if not bool((real.sum(dim=1) == real.shape[1] - first).all()) or not bool(real[:, -1].all()):
        return "padding stands elsewhere than before the texts"
    return Columns(PackedBatch.from_mask(real[:, past:], batch, length), first)


def decoder_input(
    inputs: EncoderInputs,
    given: Arranged,
    shape: tuple[int, int],
    block: DecoderBlock,
    layers: int,
    rotary: RotaryEmbedding,
    dtype: torch.dtype,
) -> tuple[DecoderInput, PackedBatch] | str:
    """Return what an engine computes of a pass, and where its tokens stand in the grid.

    Args:
        inputs: the arguments of the forward.
        given: what they mean.
        shape: (batch, length) of the input.
        block: a layer of the model.
        layers: their number.
        rotary: the angles of positions.
        dtype: of the model.

    Returns:
        Both, or a clause that says why no engine computes the pass.
    """
    attending, cache, layout = given.attending, given.cache, given.layout
    if attending.bias is not None:
        return "the mask has more than two dimensions"
    batch, first, past, positions = layout.batch, None, 0, given.positions
    cu_seqlens = attending.cu_seqlens_q
    if cache is None:
        if attending.key_bias is not None or attending.cu_seqlens_k is not cu_seqlens:
            return "padding is computed too"
        positions = positions.expand(
            positions.shape[0] if batch.indices is not None else shape[0], -1
        )
    else:
        past = cache.get_seq_length()
        sizes = CacheSizes(
            layers, shape[0], block.num_kv_heads, block.head_dim, dtype, past + shape[1]
        )
        if (reason := unwritable(cache, sizes)) is not None:
            return reason
        columns = columns_of(inputs.attention_mask, shape, past)
        if isinstance(columns, str):
            return columns
        batch, first = columns.batch, columns.first
        cu_seqlens = batch.cu_seqlens
        positions = positions.expand(shape)
        positions = positions if batch.indices is None else batch.pack(positions)
    ids, embeds = inputs.input_ids, inputs.inputs_embeds
    if embeds is not None and embeds.dtype != dtype:
        return "the given embeddings have another precision than the model"
    with on_one_thread(positions):
        cos, sin = rotary.halves(positions.reshape(-1))
    source = DecoderInput(
        None if ids is None else batch.pack(ids.to(torch.long)),
        None if embeds is None else batch.pack(embeds),
        cu_seqlens,
        cos,
        sin,
        attending.causal,
        cache,
        first,
        past,
        shape[1],
    )
    return source, batch


def last_columns(batch: PackedBatch, count: int) -> tuple[DecoderWanted, Tensor | None]:
    """Say which tokens are scored for the last columns of a grid.

    Args:
        batch: the tokens of the grid.
        count: number of columns; 0 for all.

    Returns:
        What an engine is asked for, and bool (batch, columns) where tokens stand; None where they
        stand everywhere.
    """
    if batch.indices is None:
        if not count:
            return DecoderWanted(scores=True), None
        grid = torch.arange(batch.total, device="cpu")
        grid = grid.reshape(batch.batch_size, batch.seqlen)[:, -count:]
        return DecoderWanted(grid.reshape(-1), scores=True), None
    grid = torch.full((batch.batch_size * batch.seqlen,), -1, device="cpu")
    grid[batch.indices] = torch.arange(batch.total, device="cpu")
    grid = grid.reshape(batch.batch_size, batch.seqlen)[:, -count:]
    real = grid >= 0
    return DecoderWanted(grid[real], scores=True), real


def on_grid(scores: Tensor, real: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """Put scores (tokens, vocabulary) where their tokens stand, with zeros elsewhere.

    Args:
        scores: of the tokens that `last_columns` named.
        real: what it returned beside them.
        shape: (batch, columns).
    """
    if real is None:
        return scores.reshape(*shape, scores.shape[-1])
    out = scores.new_zeros(*shape, scores.shape[-1])
    out[real] = scores
    return out
