"""Prepared encoders: embeddings, all blocks and the pooler of a model in one native call, over
weights packed once.

Precision follows the weights: float32 and float16 ones are multiplied in float32, bfloat16 ones as
bfloat16 with float32 sums, int8 ones with their rows quantised on the way in. The residual stream
stays float32 in all of them; attention is bfloat16 wherever its output projection is not float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastbert.engine.encoder import ForwardContext, Wanted
from fastbert.kernels import native
from fastbert.layers.block import Block
from fastbert.layers.embeddings import (
    EmbeddingInput,
    EmbeddingTables,
    check_input,
    embed_and_project,
)
from fastbert.layers.encoder import EncoderOutput
from fastbert.layers.hooks import forward_hooked
from fastbert.layers.linear import Int8Linear, Linear, Projection
from fastbert.layers.norm import LayerNorm
from fastbert.ops.activations import KERNEL_ACTIVATIONS
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan

if TYPE_CHECKING:
    from fastbert import _C

_OPS = ("attention_varlen", "add_layer_norm")
# Codes of csrc/common/types.h and csrc/cpu/encoder.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INT8 = 4
_PRECISIONS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 0, torch.int8: 2}


def supports(blocks: Sequence[Block], plan: Plan) -> str | None:
    """None when the blocks can be prepared for this plan, else the reason."""
    return _plan_reason(blocks, plan) or _block_reason(blocks)


def supports_tables(tables: EmbeddingTables, plan: Plan) -> str | None:
    """None when these embeddings can be computed in the same call, else the reason."""
    choice = plan.choice("embed_layer_norm")
    if choice.backend != "cpu":
        return f"the plan computes embed_layer_norm on {choice.backend}"
    present = _tables(tables)
    for table in present:
        if type(table) is not nn.Embedding:
            return f"an embedding is computed by {type(table).__name__}"
        if table.weight.dtype != tables.word.weight.dtype or table.weight.dtype not in _DTYPES:
            return "the tables differ in precision, or kernels do not know it"
        if table.weight.stride() != (table.weight.shape[1], 1):
            return "a table is not stored row by row"
    projection = tables.projection
    if projection is not None and (reason := _projection_reason(projection, plan)):
        return reason
    modules = [*present, tables.norm, *([] if projection is None else [projection])]
    return _part_reason(modules)


def supports_pooler(pooler: nn.Module, plan: Plan) -> str | None:
    """None when the pooler can be computed in the same call, else the reason."""
    if type(pooler) is Int8Linear:
        return "the pooler's weights are int8"
    return _projection_reason(pooler, plan) or _part_reason([pooler])


def _projection_reason(part: nn.Module, plan: Plan) -> str | None:
    if type(part) not in (Linear, Int8Linear):
        return f"a projection is computed by {type(part).__name__}"
    choice = plan.choice("int8_linear" if type(part) is Int8Linear else "linear")
    return None if choice.backend == "cpu" else f"the plan computes it on {choice.backend}"


def _part_reason(modules: Sequence[nn.Module]) -> str | None:
    for module in modules:
        if type(module) not in (Linear, Int8Linear, LayerNorm, nn.Embedding):
            return f"a part is computed by {type(module).__name__}"
        if forward_hooked(module):
            return "there are hooks on parts of the model, or the forward of a part was replaced"
        # As old-style weight_norm leaves it: such a weight is no parameter, and not followed.
        if any(isinstance(vars(module).get(name), Tensor) for name in ("weight", "bias")):
            return "a weight is a plain attribute"
    return None


def _tables(tables: EmbeddingTables) -> list[nn.Embedding]:
    all_tables = (tables.word, tables.position, tables.token_type, tables.language)
    return [table for table in all_tables if table is not None]


def _plan_reason(blocks: Sequence[Block], plan: Plan) -> str | None:
    kinds = {type(block.out) for block in blocks} | {type(block.down) for block in blocks}
    linear = ["int8_linear" if kind is Int8Linear else "linear" for kind in kinds]
    for op in (*_OPS, *sorted(linear)):
        choice = plan.choice(op)
        if choice.backend == "reference" or (choice.backend != "cpu") == on_cpu(plan.device):
            return f"the plan computes {op} on {choice.backend}"
    return None if plan.dtype in _DTYPES else f"there are no kernels for {plan.dtype}"


def on_cpu(device: torch.device) -> bool:
    """Whether a device is served by the CPU's native encoder, rather than by a GPU's."""
    return device.type == "cpu"


def _block_reason(blocks: Sequence[Block]) -> str | None:
    if not blocks:
        return "there are no blocks"
    first = blocks[0]
    for block in blocks:
        if block.distances is not None:
            return "relative positions are added to the scores"
        if _shape(block) != _shape(first):
            return "the blocks differ in shape or kind"
        for group in ((block.q, block.k, block.v), (block.out,), (block.up,), (block.down,)):
            kinds = {type(part) for part in group}
            if kinds != {Linear} and kinds != {Int8Linear}:
                names = ", ".join(sorted(kind.__name__ for kind in kinds))
                return f"a projection is computed by {names}"
            if not _quantised_alike(group):
                return "projections of the same rows quantise them differently"
    if first.activation not in KERNEL_ACTIVATIONS:
        return f"kernels do not compute the activation {first.activation!r}"
    return _part_reason(list(_modules(blocks)))


def _quantised_alike(group: Sequence[Projection]) -> bool:
    first, *others = group
    for other in others:
        if not isinstance(first, Int8Linear) or not isinstance(other, Int8Linear):
            continue
        pairs = ((first.factor, other.factor), (first.repeated, other.repeated))
        for one, two in pairs:
            if one is None or two is None:
                if one is not two:
                    return False
            elif not torch.equal(one, two):
                return False
    return True


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
        native.use_torch_threads()
        first = blocks[0]
        self.hidden = first.q.in_features
        self.attention = torch.float32 if _exact_attention(blocks) else torch.bfloat16
        # While this is a list, every pass appends the times of its steps.
        self.record: list[list[StepTime]] | None = None
        self.pooled = None if pooler is None else pooler.out_features
        self._width = None if tables is None else tables.word.embedding_dim
        # Tables are read in place. Whatever a caller does to its own, these stay where they are.
        self._kept: list[Tensor] = []
        # The other sources hold addresses only until they are packed.
        alive: list[Tensor] = []
        shape = native.library.EncoderShape(
            hidden=self.hidden,
            num_heads=first.num_heads,
            head_dim=first.head_dim,
            intermediate=first.up.out_features,
            activation=KERNEL_ACTIVATIONS[first.activation],
            pre_norm=first.pre_norm,
            scale=first.scale,
            attention=_DTYPES[self.attention],
        )
        self._encoder = native.library.Encoder(
            shape,
            [_block_source(block, alive) for block in blocks],
            None if tables is None else _embedding_source(tables, self._kept, alive),
            None if pooler is None else _projection_source((pooler,), alive),
        )
        alive.clear()

    @property
    def embeds(self) -> bool:
        """Whether it computes the embeddings too."""
        return self._width is not None

    @property
    def pools(self) -> bool:
        """Whether it computes the pooler too."""
        return self.pooled is not None

    def encode(
        self, inputs: EmbeddingInput, batch: PackedBatch, wanted: Wanted, context: ForwardContext
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

        Returns:
            None, and nothing was computed, when the watch saw a change, or the instruction set is
            no longer the one of the packed weights.

        Raises:
            ValueError: when the arguments do not fit together or to the encoder.
            IndexError: for an index outside its table.
        """
        if self.record is not None and times is None:
            times = []
            self.record.append(times)
        total, hidden = batch.total, self.hidden
        out = torch.empty(
            (batch.batch_size, batch.seqlen, hidden) if grid else (total, hidden), dtype=dtype
        )
        first = torch.empty((batch.batch_size, self.pooled or 0), dtype=dtype) if pooled else None
        alive: list[Tensor] = []
        if isinstance(source, Tensor):
            given = self._hidden_states(source, batch, total, alive)
        else:
            given = self._lookups(source, batch, total, alive)
        results = native.library.EncoderOutput(
            out=out.data_ptr(),
            dtype=_DTYPES[dtype],
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
        self, rows: Tensor, batch: PackedBatch, total: int, alive: list[Tensor]
    ) -> _C.EncoderInput:
        if rows.device.type != "cpu" or rows.dtype not in _DTYPES:
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
        return native.library.EncoderInput(
            x=rows.data_ptr(),
            dtype=_DTYPES[rows.dtype],
            x_stride=max(rows.stride(0), self.hidden),
            total=total,
            cu_seqlens=cu_seqlens,
            batch=batch.batch_size,
            max_seqlen=batch.max_seqlen,
            seqlen=batch.seqlen,
            token_indices=token_indices,
            key_bias=key_bias,
        )

    def _lookups(
        self, source: EmbeddingInput, batch: PackedBatch, total: int, alive: list[Tensor]
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
        )


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


def _modules(blocks: Sequence[Block]) -> Iterator[nn.Module]:
    for block in blocks:
        yield block.q
        yield block.k
        yield block.v
        yield block.out
        yield block.attention_norm
        yield block.up
        yield block.down
        yield block.output_norm


def _shape(block: Block) -> tuple[Any, ...]:
    return (
        block.num_heads,
        block.scale,
        block.activation,
        block.pre_norm,
        block.distances is None,
        block.q.in_features,
        block.q.out_features,
        block.k.out_features,
        block.v.out_features,
        block.up.out_features,
    )


def _exact_attention(blocks: Sequence[Block]) -> bool:
    return any(
        isinstance(block.out, Linear) and block.out.weight.dtype is not torch.bfloat16
        for block in blocks
    )


def _block_source(block: Block, alive: list[Tensor]) -> _C.BlockSource:
    hidden = block.q.in_features
    return native.library.BlockSource(
        qkv=_projection_source((block.q, block.k, block.v), alive),
        out=_projection_source((block.out,), alive),
        attention_norm=_norm_source(block.attention_norm, hidden, alive),
        up=_projection_source((block.up,), alive),
        down=_projection_source((block.down,), alive),
        output_norm=_norm_source(block.output_norm, hidden, alive),
    )


def _embedding_source(
    tables: EmbeddingTables, kept: list[Tensor], alive: list[Tensor]
) -> _C.EmbeddingSource:
    width = tables.word.embedding_dim

    def table(part: nn.Embedding) -> _C.TableSource:
        weight = part.weight.detach()
        if weight.dim() != 2 or weight.shape[1] != width:
            raise ValueError(
                f"The tables are {width} wide, but one has the shape {tuple(weight.shape)}."
            )
        kept.append(weight)
        return native.library.TableSource(
            data=weight.data_ptr(), entries=weight.shape[0], stride=weight.shape[1]
        )

    def optional(part: nn.Embedding | None) -> _C.TableSource | None:
        return None if part is None else table(part)

    projection = tables.projection
    return native.library.EmbeddingSource(
        dtype=_DTYPES[tables.word.weight.dtype],
        width=width,
        word=table(tables.word),
        position=optional(tables.position),
        type=optional(tables.token_type),
        language=optional(tables.language),
        norm=_norm_source(tables.norm, width, alive),
        projection=None if projection is None else _projection_source((projection,), alive),
    )


def _norm_source(part: LayerNorm, width: int, alive: list[Tensor]) -> _C.NormSource:
    weight, bias = (_kept(tensor, alive) for tensor in (part.weight, part.bias))
    if weight.shape != (width,) or bias.shape != (width,):
        raise ValueError(
            f"A LayerNorm over rows of {width} has a weight of shape {tuple(weight.shape)} "
            f"and a bias of shape {tuple(bias.shape)}."
        )
    return native.library.NormSource(
        weight=weight.data_ptr(),
        weight_dtype=_DTYPES[weight.dtype],
        bias=bias.data_ptr(),
        bias_dtype=_DTYPES[bias.dtype],
        eps=part.eps,
    )


def _projection_source(parts: Sequence[Projection], alive: list[Tensor]) -> _C.ProjectionSource:
    """Return several projections of the same hidden states as one."""
    quantised = [part for part in parts if isinstance(part, Int8Linear)]
    if quantised:
        weight = _joined([part.qweight for part in quantised], alive)
        scale = _joined([part.weight_scale for part in quantised], alive)
        columns = _columns(quantised[0], alive)
    else:
        weight = _joined([part.weight for part in parts if isinstance(part, Linear)], alive)
        scale = None
        columns = None
    biases = [part.bias for part in parts]
    bias = None
    if any(b is not None for b in biases):
        bias = _joined(
            [
                torch.zeros(part.out_features) if b is None else b.detach().float()
                for part, b in zip(parts, biases, strict=True)
            ],
            alive,
        )
    for name, tensor in (("weight_scale", scale), ("bias", bias)):
        if tensor is not None and tensor.shape != (weight.shape[0],):
            raise ValueError(
                f"A projection with {weight.shape[0]} outputs has a {name} of shape "
                f"{tuple(tensor.shape)}."
            )
    return native.library.ProjectionSource(
        weight=weight.data_ptr(),
        dtype=_INT8 if weight.dtype is torch.int8 else _DTYPES[weight.dtype],
        n=weight.shape[0],
        k=weight.shape[1],
        stride=weight.shape[1],
        weight_scale=0 if scale is None else scale.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        bias_dtype=0,
        precision=_PRECISIONS[weight.dtype],
        columns=columns,
    )


def _columns(part: Int8Linear, alive: list[Tensor]) -> _C.InputColumns:
    factor, repeated, repeats = 0, 0, 0
    if part.factor is not None:
        if part.factor.shape != (part.in_features,) or part.factor.dtype is not torch.float32:
            raise ValueError(
                f"A projection of rows of {part.in_features} has a factor of shape "
                f"{tuple(part.factor.shape)}, {part.factor.dtype}."
            )
        factor = _kept(part.factor, alive).data_ptr()
    if part.repeated is not None:
        if part.repeated.dtype is not torch.int32:
            raise ValueError(f"repeated columns are int32, not {part.repeated.dtype}.")
        repeated = _kept(part.repeated, alive).data_ptr()
        repeats = part.repeated.numel()
    return native.library.InputColumns(factor=factor, repeated=repeated, repeats=repeats)


def _joined(tensors: Sequence[Tensor], alive: list[Tensor]) -> Tensor:
    return _kept(tensors[0] if len(tensors) == 1 else torch.cat(list(tensors)), alive)


def _kept(tensor: Tensor, alive: list[Tensor]) -> Tensor:
    if tensor.device.type != "cpu":
        raise ValueError(f"A weight is on {tensor.device}, but the encoder is prepared on the CPU.")
    kept = tensor.detach().contiguous()
    alive.append(kept)
    return kept
