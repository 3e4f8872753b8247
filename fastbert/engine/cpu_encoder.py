"""The prepared encoder of a CPU: a whole pass as one native call, over weights packed once.

Precision follows the weights: float32 and float16 ones are multiplied in float32, bfloat16 ones as
bfloat16 with float32 sums, int8 ones with their rows quantised on the way in. The residual stream
stays float32 in all of them; attention is bfloat16 wherever its output projection is not float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastbert.engine.cpu_sources import (
    DTYPES,
    block_sizes,
    block_source,
    embedding_source,
    projection_size,
    projection_source,
)
from fastbert.engine.encoder import ForwardContext, Wanted
from fastbert.kernels import cpu, native
from fastbert.kernels.openmp import on_one_thread
from fastbert.layers.block import Block
from fastbert.layers.embeddings import (
    EmbeddingInput,
    EmbeddingTables,
    check_input,
    embed_and_project,
)
from fastbert.layers.encoder import EncoderOutput
from fastbert.layers.linear import Linear
from fastbert.layers.score_bias import ScoreBias
from fastbert.ops.activations import kernel_activation
from fastbert.ops.attention_varlen import score_bias
from fastbert.ops.operands import obstacle, unreadable
from fastbert.runtime.packing import PackedBatch

if TYPE_CHECKING:
    from fastbert import _C

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class StepTime:
    """Time of one step of one block in one pass, in seconds of wall time, all threads at work."""

    block: int
    step: str
    seconds: float


class CpuEncoder:
    """All blocks of an encoder, and what stands around them, packed for the instruction set in use.

    Args:
        blocks: the layers, which `supports` has nothing against.
        tables: embeddings, which `supports_tables` has nothing against; None takes hidden states
            only.
        pooler: the projection of the first rows, which `supports_pooler` has nothing against.

    Several threads may call one encoder, or different ones, at the same time.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        tables: EmbeddingTables | None = None,
        pooler: Linear | None = None,
    ) -> None:
        cpu.use_torch_threads()
        first = blocks[0]
        self.hidden = first.q.in_features
        self._heads = first.num_heads
        self.attention = torch.float32 if _exact_attention(blocks) else torch.bfloat16
        # While this is a list, every pass appends the times of its steps.
        self.record: list[list[StepTime]] | None = None
        self.pooled = None if pooler is None else pooler.out_features
        self._width = None if tables is None else tables.word.embedding_dim
        # Tables, which come first, and vectors are read in place. Whatever a caller does to its
        # own, these stay where they are.
        self._kept: list[Tensor] = []
        activation = kernel_activation(first.activation)
        shape = native.library.EncoderShape(
            hidden=self.hidden,
            num_heads=first.num_heads,
            head_dim=first.head_dim,
            intermediate=first.up.out_features,
            activation=activation.code,
            activation_a=activation.a,
            activation_b=activation.b,
            pre_norm=first.pre_norm,
            scale=first.scale,
            attention=DTYPES[self.attention],
        )
        self._encoder = self._packed(shape, blocks, tables, pooler)

    def _packed(
        self,
        shape: _C.EncoderShape,
        blocks: Sequence[Block],
        tables: EmbeddingTables | None,
        pooler: Linear | None,
    ) -> _C.Encoder:
        """Pack one part after the other.

        What a part's source makes (joined or quantised weights) is held until that part is packed,
        and no longer. Where one fails, what was packed before goes with the packer.
        """
        sizes = [size for block in blocks for size in block_sizes(block)]
        ends = [None if tables is None else tables.projection, pooler]
        sizes += [projection_size((part,)) for part in ends if part is not None]
        packer = native.library.EncoderPacker(shape, sizes)
        alive: list[Tensor] = []
        if tables is not None:
            packer.set_embedding(embedding_source(tables, self._kept, alive))
            alive.clear()
        for block in blocks:
            packer.add_block(block_source(block, self._kept, alive))
            alive.clear()
        if pooler is not None:
            packer.set_pooler(projection_source((pooler,), self._kept, alive))
            alive.clear()
        return packer.finish()

    @property
    def embeds(self) -> bool:
        """Whether it computes the embeddings too."""
        return self._width is not None

    @property
    def pools(self) -> bool:
        """Whether it computes the pooler too."""
        return self.pooled is not None

    def encode(
        self,
        inputs: EmbeddingInput,
        batch: PackedBatch,
        wanted: Wanted,
        context: ForwardContext,
        bias: ScoreBias | None = None,
    ) -> EncoderOutput | None:
        """Compute one pass; see `fastbert.engine.encoder.Encoder.encode`."""
        snapshot = context.snapshot
        source: Tensor | EmbeddingInput = inputs
        dtype = snapshot.dtype
        if self._width is None:
            if not snapshot.holds():
                return None
            source = embed_and_project(snapshot.tables, inputs.packed(batch), context.plan)
            dtype = source.dtype
        try:
            return self.run(
                source,
                batch,
                dtype,
                grid=wanted.padded,
                pooled=wanted.first_column and self.pooled is not None,
                watch=snapshot.watch,
                bias=bias,
            )
        except IndexError:
            # In the caller's words rather than the table's.
            check_input(snapshot.tables, inputs.packed(batch))
            raise

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return int(self._encoder.packed_bytes)

    @property
    def arena_bytes(self) -> int:
        """Memory kept for passes: as much as the largest so far needed, per concurrent caller."""
        return int(self._encoder.arena_bytes)

    def __call__(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Compute the hidden states after the last block.

        Args:
            hidden: (batch.total, hidden), float32, bfloat16 or float16.
            batch: where the tokens came from.

        Returns:
            (batch.total, hidden), in the dtype of the input.

        Raises:
            ValueError: when the arguments do not fit together or to the encoder.
        """
        packed = _done(self.run(hidden, batch, hidden.dtype)).packed
        assert packed is not None
        return packed

    def padded(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Compute the same as (batch_size, seqlen, hidden), zero where a token was removed."""
        grid = _done(self.run(hidden, batch, hidden.dtype, grid=True)).grid
        assert grid is not None
        return grid

    def profile(self, source: Tensor | EmbeddingInput, batch: PackedBatch) -> list[StepTime]:
        """Compute one pass and return where its time went; arguments are those of run()."""
        times: list[StepTime] = []
        _done(self.run(source, batch, torch.float32, times=times))
        return times

    def run(
        self,
        source: Tensor | EmbeddingInput,
        batch: PackedBatch,
        dtype: torch.dtype,
        *,
        grid: bool = False,
        pooled: bool = False,
        times: list[StepTime] | None = None,
        watch: _C.Watch | None = None,
        bias: ScoreBias | None = None,
    ) -> EncoderOutput | None:
        """Compute one pass in one native call.

        Args:
            source: hidden states (batch.total, hidden), float32, bfloat16 or float16; or, with
                tables, what to look up: int64 tensors that cover the padded grid, (batch_size,
                seqlen), and embeds (batch_size, seqlen, width) in place of the word ids.
            batch: which cells of the grid hold tokens.
            dtype: of the results: float32, bfloat16 or float16.
            grid: return the padded grid, zero where a token was removed, rather than packed
                hidden states.
            pooled: return the pooler's result too.
            times: where the time of every step is appended.
            watch: tells whether what this encoder was made from has changed.
            bias: added to the attention scores of every block.

        Returns:
            None, and nothing was computed, when the watch saw a change, or the instruction set is
            no longer the one of the packed weights.

        Raises:
            NotPlain: for arguments whose values do not lie at their addresses.
            ValueError: when the arguments do not fit together or to the encoder.
            IndexError: for an index outside its table.
        """
        if self.record is not None and times is None:
            times = []
            self.record.append(times)
        total, hidden = batch.total, self.hidden
        operands = {**vars(batch), **({"x": source} if torch.is_tensor(source) else vars(source))}
        if bias is not None:
            operands["bias"] = bias.rows
        if obstacle(*operands.values()) is not None:
            raise unreadable("encoder", operands)
        shape = (batch.batch_size, batch.seqlen, hidden) if grid else (total, hidden)
        out = torch.empty(shape, dtype=dtype, device=_CPU)
        first = None
        if pooled:
            first = torch.empty((batch.batch_size, self.pooled or 0), dtype=dtype, device=_CPU)
        alive: list[Tensor] = []
        if isinstance(source, Tensor):
            given = self._hidden_states(source, batch, total, bias, alive)
        else:
            given = self._lookups(source, batch, total, bias, alive)
        results = native.library.EncoderOutput(
            out=out.data_ptr(),
            dtype=DTYPES[dtype],
            stride=hidden,
            rows=out.numel() // hidden,
            grid=grid,
            pooled=0 if first is None else first.data_ptr(),
            pooled_stride=self.pooled or 0,
        )
        done = self._encoder.run(given, results, torch.get_num_threads(), watch, times is not None)
        if done is None:
            return None
        if times is not None and isinstance(done, tuple):
            times += self._times(*done)
        if grid:
            return EncoderOutput(grid=out, pooled=first)
        return EncoderOutput(packed=out, pooled=first)

    def _times(self, spent: Sequence[int], threads: int) -> list[StepTime]:
        steps = list(self._encoder.steps)
        return [
            StepTime(i // len(steps), steps[i % len(steps)], nanoseconds / threads * 1e-9)
            for i, nanoseconds in enumerate(spent)
        ]

    def _hidden_states(
        self,
        rows: Tensor,
        batch: PackedBatch,
        total: int,
        bias: ScoreBias | None,
        alive: list[Tensor],
    ) -> _C.EncoderInput:
        if rows.device.type != "cpu" or rows.dtype not in DTYPES:
            raise ValueError(
                "A prepared encoder takes float32, bfloat16 or float16 rows on the CPU, but it was "
                f"given {rows.dtype} on {rows.device}."
            )
        if rows.shape != (total, self.hidden):
            raise ValueError(
                f"The rows must have shape ({total}, {self.hidden}) for this batch and "
                f"encoder, but they have {tuple(rows.shape)}."
            )
        rows = rows if rows.stride(1) == 1 and rows.stride(0) >= self.hidden else rows.contiguous()
        alive.append(rows)
        cu_seqlens, token_indices, key_bias = _batch_addresses(batch, total, alive)
        added = _NO_BIAS if bias is None else self._bias(bias, batch, alive)
        return native.library.EncoderInput(
            x=rows.data_ptr(),
            dtype=DTYPES[rows.dtype],
            x_stride=max(rows.stride(0), self.hidden),
            total=total,
            cu_seqlens=cu_seqlens,
            batch=batch.batch_size,
            max_seqlen=batch.max_seqlen,
            seqlen=batch.seqlen,
            token_indices=token_indices,
            key_bias=key_bias,
            bias=added.address,
            bias_batch_stride=added.over_batch,
            bias_head_stride=added.over_heads,
            bias_query_stride=added.over_queries,
        )

    def _lookups(
        self,
        source: EmbeddingInput,
        batch: PackedBatch,
        total: int,
        bias: ScoreBias | None,
        alive: list[Tensor],
    ) -> _C.EncoderInput:
        width = self._width
        if width is None:
            raise ValueError("This encoder was prepared without embeddings; give it hidden states.")
        shape = (batch.batch_size, batch.seqlen)
        embeds, address = source.embeds, 0
        if embeds is not None:
            if embeds.shape != (*shape, width) or embeds.dtype != self._kept[0].dtype:
                raise ValueError(
                    f"Embeddings must be {self._kept[0].dtype} {(*shape, width)}, but they are "
                    f"{embeds.dtype} {tuple(embeds.shape)}."
                )
            embeds = embeds.contiguous()
            alive.append(embeds)
            address = embeds.data_ptr()
        cu_seqlens, token_indices, key_bias = _batch_addresses(batch, total, alive)
        added = _NO_BIAS if bias is None else self._bias(bias, batch, alive)
        languages = source.languages
        return native.library.EncoderInput(
            word=_index_grid(None if embeds is not None else source.ids, shape, alive),
            position=_index_grid(source.positions, shape, alive),
            type=_index_grid(source.token_types, shape, alive),
            language=None if languages is None else _index_grid(languages, shape, alive),
            embeds=address,
            embeds_stride=width,
            total=total,
            cu_seqlens=cu_seqlens,
            batch=batch.batch_size,
            max_seqlen=batch.max_seqlen,
            seqlen=batch.seqlen,
            token_indices=token_indices,
            key_bias=key_bias,
            bias=added.address,
            bias_batch_stride=added.over_batch,
            bias_head_stride=added.over_heads,
            bias_query_stride=added.over_queries,
        )

    def _bias(self, bias: ScoreBias, batch: PackedBatch, alive: list[Tensor]) -> _BiasPlace:
        shape = (batch.batch_size, self._heads, batch.max_seqlen, batch.max_seqlen)
        with on_one_thread(bias.rows):
            rows, (over_batch, over_heads, over_queries) = score_bias(
                "encoder", bias.rows, shape, _CPU
            )
        alive.append(rows)
        address = rows.data_ptr()
        if not bias.backwards or not batch.max_seqlen:
            return _BiasPlace(address, over_batch, over_heads, over_queries)
        last = address + (batch.max_seqlen - 1) * over_queries * rows.element_size()
        return _BiasPlace(last, over_batch, over_heads, -over_queries)


@dataclass(frozen=True)
class _BiasPlace:
    """Where native code finds a bias of the scores; address 0 for none."""

    address: int = 0
    over_batch: int = 0
    over_heads: int = 0
    over_queries: int = 0


_NO_BIAS = _BiasPlace()


def _done(result: EncoderOutput | None) -> EncoderOutput:
    if result is None:
        raise ValueError(
            "The instruction set is no longer the one that the weights were packed for; prepare "
            "the encoder again."
        )
    return result


def _index_grid(
    indices: Tensor | None, shape: tuple[int, int], alive: list[Tensor]
) -> _C.IndexGrid | None:
    if indices is None:
        return None
    if indices.shape != shape or indices.dtype is not torch.int64 or indices.device.type != "cpu":
        raise ValueError(
            f"Indices must be int64 {shape} on the CPU, but they are {indices.dtype} "
            f"{tuple(indices.shape)} on {indices.device}."
        )
    alive.append(indices)
    return native.library.IndexGrid(
        data=indices.data_ptr(), row_stride=indices.stride(0), column_stride=indices.stride(1)
    )


def _batch_addresses(batch: PackedBatch, total: int, alive: list[Tensor]) -> tuple[int, int, int]:
    """Return the addresses of cu_seqlens, indices and key_bias; 0 for one that is None."""
    expected = (
        ("cu_seqlens", batch.cu_seqlens, torch.int32, batch.batch_size + 1),
        ("batch.indices", batch.indices, torch.int64, total),
        ("key_bias", batch.key_bias, torch.float32, total),
    )
    addresses = []
    for name, vector, dtype, length in expected:
        if vector is None:
            addresses.append(0)
            continue
        if vector.dtype is not dtype or vector.device.type != "cpu" or vector.shape != (length,):
            raise ValueError(
                f"{name} must be {str(dtype).removeprefix('torch.')} ({length},) on the CPU, but "
                f"it is {vector.dtype} {tuple(vector.shape)} on {vector.device}."
            )
        vector = vector.contiguous()
        alive.append(vector)
        addresses.append(vector.data_ptr())
    cu_seqlens, token_indices, key_bias = addresses
    return cu_seqlens, token_indices, key_bias


def _exact_attention(blocks: Sequence[Block]) -> bool:
    return any(
        isinstance(block.out, Linear) and block.out.weight.dtype is not torch.bfloat16
        for block in blocks
    )
