"""Checks of tensors before their addresses are taken; each failure is a sentence.

An op's operands are judged by one function for all compiled backends. It holds every argument
against the first one (its device and dtype) and returns them in a layout whose addresses may be
taken: columns adjacent, rows not overlapping, copied where that was not so. Native drivers check
sizes, strides and offsets again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# As in csrc/common/types.h.
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class RowNorm(NamedTuple):
    """Operands of add_layer_norm and act_layer_norm."""

    code: int
    rows: int
    width: int
    x: Tensor
    x_bias: Tensor | None
    residual: Tensor | None
    weight: Tensor
    bias: Tensor


class Product(NamedTuple):
    """Operands of linear and int8_linear; the weight is as it was given."""

    code: int
    rows: int
    inner: int
    outer: int
    x: Tensor
    bias: Tensor | None
    residual: Tensor | None
    weight_scale: Tensor | None
    factor: Tensor | None
    repeated: Tensor | None


class Attention(NamedTuple):
    """Operands of attention_varlen; bias_strides are over sequences, heads and queries."""

    code: int
    total_q: int
    total_k: int
    heads: int
    dim: int
    batch: int
    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    key_bias: Tensor | None
    bias: Tensor | None
    bias_strides: tuple[int, int, int]


Lookup = tuple[Tensor, Tensor]


class Embedding(NamedTuple):
    """Operands of embed_layer_norm; a lookup is (ids, table)."""

    code: int
    rows: int
    width: int
    embeds: Tensor | None
    word: Lookup | None
    position: Lookup | None
    token_type: Lookup | None
    language: Lookup | None
    weight: Tensor
    bias: Tensor


def row_norm(
    op: str,
    backend: str,
    x: Any,
    x_bias: Any,
    residual: Any,
    weight: Any,
    bias: Any,
    names: tuple[str, str] = ("x_bias", "bias"),
) -> RowNorm:
    """`names` are what the op calls the bias before the norm and the one after it."""
    code = operand(op, "x", x, backend)
    rows, width = two_dimensional(op, "x", x)
    dtype, device = x.dtype, x.device
    weight = vector(op, "weight", weight, width, dtype, device)
    bias = vector(op, names[1], bias, width, dtype, device)
    if residual is not None:
        residual = matrix(op, "residual", residual, rows, width, dtype, device)
    if x_bias is not None:
        x_bias = vector(op, names[0], x_bias, width, dtype, device)
    return RowNorm(code, rows, width, by_rows(x), x_bias, residual, weight, bias)


def product(
    op: str,
    backend: str,
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    weight_scale: Any = None,
    factor: Any = None,
    repeated: Any = None,
) -> Product:
    """What follows residual belongs to int8_linear, whose weight has the repeated columns too."""
    code = operand(op, "x", x, backend)
    rows, inner = two_dimensional(op, "x", x)
    dtype, device = x.dtype, x.device
    if op == "int8_linear":
        if factor is not None:
            factor = vector(op, "factor", factor, inner, torch.float32, device)
        repeats = 0
        if repeated is not None:
            repeats = repeated.numel() if isinstance(repeated, Tensor) else 0
            repeated = vector(op, "repeated", repeated, repeats, torch.int32, device)
        outer = weight_rows(op, "qweight", weight, inner + repeats, torch.int8, device)
        weight_scale = vector(op, "weight_scale", weight_scale, outer, torch.float32, device)
    else:
        outer = weight_rows(op, "weight", weight, inner, dtype, device)
    if bias is not None:
        bias = vector(op, "bias", bias, outer, dtype, device)
    if residual is not None:
        residual = matrix(op, "residual", residual, rows, outer, dtype, device)
    return Product(
        code, rows, inner, outer, by_rows(x), bias, residual, weight_scale, factor, repeated
    )


def attention(
    op: str,
    backend: str,
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_bias: Any,
    bias: Any,
) -> Attention:
    """Values of the offsets are not looked at: that would wait for the device."""
    code = operand(op, "q", q, backend)
    if q.dim() != 3:
        raise ValueError(
            f"{op}: q has shape {tuple(q.shape)}, expected (total_q, num_heads, head_dim)."
        )
    total_q, heads, dim = q.shape
    dtype, device = q.dtype, q.device
    total_k = k.shape[0] if isinstance(k, Tensor) and k.dim() else 0
    q = by_heads(op, "q", q, (total_q, heads, dim), dtype, device)
    k = by_heads(op, "k", k, (total_k, heads, dim), dtype, device)
    v = by_heads(op, "v", v, (total_k, heads, dim), dtype, device)
    batch = max(cu_seqlens_q.numel() - 1, 0) if isinstance(cu_seqlens_q, Tensor) else 0
    cu_seqlens_q = vector(op, "cu_seqlens_q", cu_seqlens_q, batch + 1, torch.int32, device)
    cu_seqlens_k = vector(op, "cu_seqlens_k", cu_seqlens_k, batch + 1, torch.int32, device)
    if key_bias is not None:
        key_bias = vector(op, "key_bias", key_bias, total_k, torch.float32, device)
    strides = (0, 0, 0)
    if bias is not None:
        bias, strides = _score_bias(op, bias, (batch, heads, max_seqlen_q, max_seqlen_k), device)
    return Attention(
        code, total_q, total_k, heads, dim, batch, q, k, v, cu_seqlens_q, cu_seqlens_k, key_bias,
        bias, strides,
    )  # fmt: skip


def embedding(
    op: str,
    backend: str,
    word: tuple[Any, Any],
    position: tuple[Any, Any],
    token_type: tuple[Any, Any],
    language: tuple[Any, Any],
    embeds: Any,
    weight: Any,
    bias: Any,
) -> Embedding:
    """Each pair is (ids, table); embeds go before the pair of words."""
    input_ids, table = word
    if embeds is not None:
        code = operand(op, "inputs_embeds", embeds, backend)
        rows, width = two_dimensional(op, "inputs_embeds", embeds)
        first, embeds, word = embeds, by_rows(embeds), (None, None)
    elif input_ids is None or table is None:
        raise ValueError(
            f"{op}: either inputs_embeds, or input_ids together with their table, must be given."
        )
    else:
        code = operand(op, "word", table, backend)
        width = two_dimensional(op, "word", table)[1]
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 1:
            raise ValueError(f"{op}: input_ids must be a tensor of one dimension, packed.")
        first, rows = table, input_ids.shape[0]
    like = (rows, width, first.dtype, first.device)
    return Embedding(
        code,
        rows,
        width,
        embeds,
        _lookup(op, "input_ids", "word", word, *like),
        _lookup(op, "position_ids", "position_table", position, *like),
        _lookup(op, "token_type_ids", "type_table", token_type, *like),
        _lookup(op, "language_ids", "language_table", language, *like),
        vector(op, "weight", weight, width, first.dtype, first.device),
        vector(op, "bias", bias, width, first.dtype, first.device),
    )


def _lookup(
    op: str,
    ids_name: str,
    table_name: str,
    pair: tuple[Any, Any],
    rows: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Lookup | None:
    ids, table = pair
    if ids is None and table is None:
        return None
    if ids is None or table is None:
        given, absent = (table_name, ids_name) if ids is None else (ids_name, table_name)
        raise ValueError(f"{op}: {given} was given without {absent}; give both or neither.")
    ids = vector(op, ids_name, ids, rows, torch.int64, device)
    entries = table.shape[0] if isinstance(table, Tensor) and table.dim() == 2 else 0
    return ids, matrix(op, table_name, table, entries, width, dtype, device)


def operand(op: str, name: str, x: Any, backend: str) -> int:
    """The code of the dtype of an op's first argument, which must be on the backend's devices."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}.")
    if x.device.type != backend:
        raise ValueError(
            f"{op}: the {backend} kernels take {backend.upper()} tensors, {name} is on {x.device}; "
            "move it, or choose another backend."
        )
    code = CODES.get(x.dtype)
    if code is None:
        names = ", ".join(map(_short, CODES))
        raise TypeError(
            f"{op}: the {backend} kernels compute {names}, {name} is {_short(x.dtype)}; convert "
            "it, or use the reference."
        )
    if x.layout is not torch.strided:
        raise _wrong_kind(op, name, x, x.dtype, x.device)
    return code


def two_dimensional(op: str, name: str, x: Tensor) -> tuple[int, int]:
    """The shape of a tensor that is known to be a matrix."""
    if x.dim() != 2:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected two dimensions; flatten the "
            "leading ones into rows."
        )
    return x.shape[0], x.shape[1]


def matrix(
    op: str, name: str, x: Any, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """x, known to be a matrix of this shape, dtype and device, by rows."""
    if not _fits(x, dtype, device):
        raise _wrong_kind(op, name, x, dtype, device)
    if x.shape != (rows, columns):
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({rows}, {columns}).")
    return by_rows(x)


def by_rows(x: Tensor) -> Tensor:
    """x itself when its columns are adjacent and its rows do not overlap, else a copy."""
    row_stride, column_stride = x.stride()
    if column_stride == 1 and row_stride >= x.shape[1]:
        return x
    return x.contiguous()


def row_stride(x: Tensor | None) -> int:
    """Elements between rows (what torch says of a single row may be anything); 0 without x."""
    return 0 if x is None else max(x.stride(0), x.shape[1])


def vector(
    op: str, name: str, x: Any, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """x, known to be a vector of this length, dtype and device, with adjacent elements."""
    if not _fits(x, dtype, device):
        raise _wrong_kind(op, name, x, dtype, device)
    if x.shape != (length,):
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({length},).")
    return x.contiguous()


def by_heads(
    op: str,
    name: str,
    x: Any,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """x, known to be a tensor (tokens, heads, dim) whose last dimension is contiguous."""
    if not _fits(x, dtype, device):
        raise _wrong_kind(op, name, x, dtype, device)
    if x.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected {tuple(shape)}.")
    return x if x.stride(2) == 1 else x.contiguous()


def weight_rows(
    op: str, name: str, weight: Any, inner: int, dtype: torch.dtype, device: torch.device
) -> int:
    """N of a weight that is known to be (N, inner)."""
    if not _fits(weight, dtype, device):
        raise _wrong_kind(op, name, weight, dtype, device)
    if weight.dim() != 2 or weight.shape[1] != inner:
        raise ValueError(
            f"{op}: {name} has shape {tuple(weight.shape)}, expected (N, {inner}) to go with the "
            f"{inner} columns of x."
        )
    return int(weight.shape[0])


def bytes_(op: str, name: str, x: Any, device: torch.device) -> Tensor:
    """x, known to be a contiguous vector of bytes."""
    if not _fits(x, torch.uint8, device):
        raise _wrong_kind(op, name, x, torch.uint8, device)
    if x.dim() != 1:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}; pass the result of {op}_prepack as it is."
        )
    return x.contiguous()


def address(x: Tensor | None) -> int:
    """Where x begins, 0 without x."""
    return 0 if x is None else x.data_ptr()


def _score_bias(
    op: str, bias: Any, shape: tuple[int, int, int, int], device: torch.device
) -> tuple[Tensor, tuple[int, int, int]]:
    """A bias of attention scores as float32 with adjacent keys, and its strides over sequences,
    heads and queries, 0 where it is broadcast."""
    batch, heads, queries, keys = shape
    if not (
        isinstance(bias, Tensor) and bias.is_floating_point() and _fits(bias, bias.dtype, device)
    ):
        raise _wrong_kind(op, "bias", bias, torch.float32, device)
    allowed = ((1, batch), (1, heads), (queries,), (keys,))
    if bias.dim() != 4 or any(n not in ok for n, ok in zip(bias.shape, allowed, strict=True)):
        raise ValueError(
            f"{op}: bias has shape {tuple(bias.shape)}, expected ({batch} or 1, {heads} or 1, "
            f"{queries}, {keys})."
        )
    bias = bias.to(torch.float32)
    if bias.stride(3) != 1:
        bias = bias.contiguous()
    strides = bias.stride()
    over_batch = 0 if bias.shape[0] == 1 else strides[0]
    over_heads = 0 if bias.shape[1] == 1 else strides[1]
    return bias, (over_batch, over_heads, strides[2])


def _fits(x: Any, dtype: torch.dtype, device: torch.device) -> bool:
    return (
        isinstance(x, Tensor)
        and x.dtype is dtype
        and x.device == device
        and x.layout is torch.strided
    )


def _wrong_kind(op: str, name: str, x: Any, dtype: torch.dtype, device: torch.device) -> Exception:
    if not isinstance(x, Tensor):
        return TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}.")
    if x.device != device:
        return ValueError(f"{op}: {name} is on {x.device}, expected {device} like the others.")
    if x.layout is not torch.strided:
        return TypeError(f"{op}: {name} is {x.layout}; pass {name}.to_dense().")
    return TypeError(
        f"{op}: {name} is {_short(x.dtype)}, expected {_short(dtype)}; convert it first."
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
