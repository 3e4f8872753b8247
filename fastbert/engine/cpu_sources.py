"""The weights of a model as the native encoder takes them: addresses, sizes and codes.

An address is good only as long as its tensor lives. Whoever asks for a source keeps the tensors
that are appended to `alive` until the native encoder has packed them, and those that are appended
to `kept` as long as the native encoder: tables, and vectors in float32, are read in place. Sources
are asked for one layer at a time, and sizes before all of them: a source may join or quantise
weights, which are gone when the next layer's come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastbert.kernels import native
from fastbert.layers.block import Block
from fastbert.layers.decoder_block import DecoderBlock
from fastbert.layers.embeddings import EmbeddingTables
from fastbert.layers.linear import Int8Linear, Linear, Projection
from fastbert.layers.norm import LayerNorm
from fastbert.ops.operands import obstacle
from fastbert.runtime.pages import passing

if TYPE_CHECKING:
    from fastbert import _C

# Codes of csrc/common/types.h and csrc/cpu/encoder.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INT8 = 4
_PANEL = 32  # columns of the widest panel of weights, csrc/cpu/ops/gemm.h
_PRECISIONS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 0}
_INT8_PRECISIONS = {"int8_linear": 2, "linear_w8a16": 3}


_READ = (Linear, Int8Linear, LayerNorm)


def in_place(*parts: nn.Module) -> list[Tensor]:
    """Return the vectors that kernels read where they lie; empty where some must be copied.

    Args:
        parts: a norm, a projection, or projections that are computed as one; or what someone put
            in their place, of which kernels read nothing.
    """
    if not all(isinstance(part, _READ) for part in parts):
        return []
    names = ("weight", "bias") if isinstance(parts[0], LayerNorm) else ("bias",)
    vectors = [getattr(part, name) for part in parts for name in names]
    if any(v is None or v.dtype is not torch.float32 or not v.is_contiguous() for v in vectors):
        return []
    width = len(vectors[0])
    joined = len(parts) > 1
    if joined and (width % _PANEL or any(len(v) != width for v in vectors)):
        return []
    return vectors


def block_sizes(block: Block | DecoderBlock) -> list[_C.ProjectionSize]:
    """Say how large the projections of one layer are; no weights are read."""
    groups = ((block.q, block.k, block.v), (block.out,), (block.up,), (block.down,))
    return [projection_size(parts) for parts in groups]


def projection_size(parts: Sequence[Projection]) -> _C.ProjectionSize:
    """Say how large several projections of the same hidden states are as one."""
    first = parts[0]
    if isinstance(first, Int8Linear):
        rows, width = sum(part.out_features for part in parts), first.columns
        precision = _INT8_PRECISIONS[first.op]
    else:
        # As the weights are, whatever the layers say of themselves.
        weights = [_plain(part.weight) for part in parts if isinstance(part, Linear)]
        rows, width = sum(weight.shape[0] for weight in weights), weights[0].shape[-1]
        precision = _precision(weights[0])
    return native.library.ProjectionSize(n=rows, k=width, precision=precision)


def _precision(weight: Tensor) -> int:
    _code(weight)
    return _PRECISIONS[weight.dtype]


def block_source(block: Block, kept: list[Tensor], alive: list[Tensor]) -> _C.BlockSource:
    """Describe the weights of one layer."""
    hidden = block.q.in_features
    return native.library.BlockSource(
        qkv=projection_source((block.q, block.k, block.v), kept, alive),
        out=projection_source((block.out,), kept, alive),
        attention_norm=_norm_source(block.attention_norm, hidden, kept),
        up=projection_source((block.up,), kept, alive),
        down=projection_source((block.down,), kept, alive),
        output_norm=_norm_source(block.output_norm, hidden, kept),
    )


def embedding_source(
    tables: EmbeddingTables, kept: list[Tensor], alive: list[Tensor]
) -> _C.EmbeddingSource:
    """Describe the embedding tables, which are read in place.

    Args:
        tables: the tables.
        kept: where the tables' tensors come first; see the module.
        alive: see the module.

    Raises:
        ValueError: for a table of another width.
    """
    width = tables.word.embedding_dim

    def table(part: nn.Embedding) -> _C.TableSource:
        return table_source(part, width, kept)

    def optional(part: nn.Embedding | None) -> _C.TableSource | None:
        return None if part is None else table(part)

    projection = tables.projection
    return native.library.EmbeddingSource(
        dtype=DTYPES[tables.word.weight.dtype],
        width=width,
        word=table(tables.word),
        position=optional(tables.position),
        type=optional(tables.token_type),
        language=optional(tables.language),
        norm=_norm_source(tables.norm, width, kept),
        projection=None if projection is None else projection_source((projection,), kept, alive),
    )


def table_source(part: nn.Embedding, width: int, kept: list[Tensor]) -> _C.TableSource:
    """Describe an embedding table, which is read in place.

    Args:
        part: the table.
        width: of its rows.
        kept: where its tensor is appended, to be held as long as the address is used.

    Raises:
        ValueError: for a table of another width.
    """
    weight = _plain(part.weight)
    if weight.dim() != 2 or weight.shape[1] != width:
        raise ValueError(
            f"The tables are {width} wide, but one has the shape {tuple(weight.shape)}."
        )
    kept.append(weight)
    return native.library.TableSource(
        data=weight.data_ptr(), entries=weight.shape[0], stride=weight.shape[1]
    )


def weight_source(weight: Tensor, width: int, alive: list[Tensor]) -> tuple[int, int]:
    """Return the address of a norm's weight and the code of its dtype.

    Raises:
        ValueError: for a weight of another shape or in a dtype that kernels do not read.
    """
    found = _kept(weight, alive)
    if found.shape != (width,):
        raise ValueError(f"A norm over rows of {width} has a weight of shape {tuple(found.shape)}.")
    return found.data_ptr(), _code(found)


def _norm_source(part: LayerNorm, width: int, kept: list[Tensor]) -> _C.NormSource:
    weight, bias = (_kept(tensor, kept) for tensor in (part.weight, part.bias))
    if weight.shape != (width,) or bias.shape != (width,):
        raise ValueError(
            f"A LayerNorm over rows of {width} has a weight of shape {tuple(weight.shape)} "
            f"and a bias of shape {tuple(bias.shape)}."
        )
    return native.library.NormSource(
        weight=weight.data_ptr(),
        weight_dtype=_code(weight),
        bias=bias.data_ptr(),
        bias_dtype=_code(bias),
        eps=part.eps,
    )


def _code(tensor: Tensor) -> int:
    """Return the code of a weight's dtype.

    Raises:
        ValueError: for a dtype that kernels do not read.
    """
    code = DTYPES.get(tensor.dtype)
    if code is None:
        raise ValueError(
            f"A weight of shape {tuple(tensor.shape)} is {tensor.dtype}, but kernels read float32, "
            "bfloat16 and float16; convert it, or use the backend 'reference'."
        )
    return code


def projection_source(
    parts: Sequence[Projection], kept: list[Tensor], alive: list[Tensor]
) -> _C.ProjectionSource:
    """Return several projections of the same hidden states as one; see the module."""
    quantised = [part.parts() for part in parts if isinstance(part, Int8Linear)]
    if quantised:
        weight = _joined([part["qweight"] for part in quantised], alive)
        scale = _joined([part["weight_scale"] for part in quantised], alive)
        columns = _columns(quantised[0], alive)
    else:
        weight = _joined([part.weight for part in parts if isinstance(part, Linear)], alive)
        scale = None
        columns = None
    biases = _biases(parts, kept)
    for name, tensors in (("weight_scale", [] if scale is None else [scale]), ("bias", biases)):
        if any(tensor.shape != (weight.shape[0] // len(tensors),) for tensor in tensors):
            raise ValueError(
                f"A projection with {weight.shape[0]} outputs has a {name} of shape "
                f"{tuple(tensors[0].shape)}."
            )
    addresses = [bias.data_ptr() for bias in biases]
    return native.library.ProjectionSource(
        weight=weight.data_ptr(),
        dtype=_INT8 if weight.dtype is torch.int8 else _code(weight),
        n=weight.shape[0],
        k=weight.shape[1],
        stride=weight.shape[1],
        weight_scale=0 if scale is None else scale.data_ptr(),
        **dict(zip(("bias", "second_bias", "third_bias"), addresses, strict=False)),
        precision=_INT8_PRECISIONS[parts[0].op]
        if isinstance(parts[0], Int8Linear)
        else _precision(weight),
        columns=columns,
    )


def _biases(parts: Sequence[Projection], kept: list[Tensor]) -> list[Tensor]:
    """Return one bias for all of some projections, or three where they are read in place."""
    given = [part.bias for part in parts]
    if all(bias is None for bias in given):
        return []
    if len(parts) == 3 and in_place(*parts):
        return [_kept(bias, kept) for bias in given if bias is not None]
    whole = [
        torch.zeros(part.out_features, dtype=torch.float32, device="cpu")
        if bias is None
        else bias.detach().float()
        for part, bias in zip(parts, given, strict=True)
    ]
    return [_joined(whole, kept)]


def _columns(parts: Mapping[str, Tensor], alive: list[Tensor]) -> _C.InputColumns:
    factor, repeated = parts.get("factor"), parts.get("repeated")
    return native.library.InputColumns(
        factor=0 if factor is None else _kept(factor, alive).data_ptr(),
        repeated=0 if repeated is None else _kept(repeated, alive).data_ptr(),
        repeats=0 if repeated is None else repeated.numel(),
    )


def _joined(tensors: Sequence[Tensor], alive: list[Tensor]) -> Tensor:
    return _kept(tensors[0] if len(tensors) == 1 else _one_behind_the_other(tensors), alive)


def _one_behind_the_other(tensors: Sequence[Tensor]) -> Tensor:
    """Copy matrices or vectors of the same width and dtype into one, which is soon packed."""
    first = tensors[0]
    if any(tensor.dtype != first.dtype for tensor in tensors):
        return torch.cat(list(tensors))
    rows = sum(tensor.shape[0] for tensor in tensors)
    out = passing((rows, *first.shape[1:]), first.dtype, first.device)
    return torch.cat([_plain(tensor) for tensor in tensors], out=out)


def _kept(tensor: Tensor, alive: list[Tensor]) -> Tensor:
    kept = _plain(tensor).contiguous()
    alive.append(kept)
    return kept


def _plain(tensor: Tensor) -> Tensor:
    """Return a weight that can be read at its address, without its history."""
    if tensor.device.type != "cpu":
        raise ValueError(f"A weight is on {tensor.device}, but the encoder is prepared on the CPU.")
    if reason := obstacle(tensor):
        raise ValueError(f"A weight is {reason}, so that it cannot be packed.")
    return tensor.detach()
