"""Checks of tensors before their addresses are taken; each failure is a sentence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def floating_code(op: str, x: Any, codes: dict[torch.dtype, int]) -> int:
    """The code of the dtype of an op's first argument, which must be a CPU tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: a tensor was expected, got {type(x).__name__}.")
    code = codes.get(x.dtype)
    if code is None or not _fits(x, x.dtype):
        if x.device.type != "cpu":
            raise ValueError(
                f"{op}: the cpu kernels take CPU tensors, got one on {x.device}; move it, or "
                "choose another backend."
            )
        if x.layout is not torch.strided:
            raise _wrong_kind(op, "the first argument", x, x.dtype)
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in codes)
        raise TypeError(
            f"{op}: the cpu kernels compute {names}, got {str(x.dtype).removeprefix('torch.')}; "
            "convert it, or use the reference."
        )
    return code


def matrix(op: str, name: str, x: Any, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """x, known to be a CPU matrix of this shape and dtype with adjacent columns; copied if its
    layout demands it."""
    if not _fits(x, dtype):
        raise _wrong_kind(op, name, x, dtype)
    if x.shape != (rows, columns):
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({rows}, {columns}).")
    return by_rows(x)


def by_rows(x: Tensor) -> Tensor:
    """x itself when its columns are adjacent and its rows do not overlap, else a copy."""
    row_stride, column_stride = x.stride()
    if column_stride == 1 and row_stride >= x.shape[1]:
        return x
    return x.contiguous()


def row_stride(x: Tensor) -> int:
    """Elements between rows; what torch says of a single row may be anything."""
    return max(x.stride(0), x.shape[1])


def vector(op: str, name: str, x: Any, length: int, dtype: torch.dtype) -> Tensor:
    """x, known to be a CPU vector of this length and dtype with adjacent elements."""
    if not _fits(x, dtype):
        raise _wrong_kind(op, name, x, dtype)
    if x.shape != (length,):
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected ({length},).")
    return x.contiguous()


def heads(op: str, name: str, x: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """x, known to be a CPU tensor (tokens, heads, dim) of this shape and dtype whose last dimension
    is contiguous; copied if it is not."""
    if not _fits(x, dtype):
        raise _wrong_kind(op, name, x, dtype)
    if x.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, expected {tuple(shape)}.")
    return x if x.stride(2) == 1 else x.contiguous()


def score_bias(
    op: str, bias: Any, batch: int, heads: int, max_seqlen_q: int, max_seqlen_k: int
) -> tuple[Tensor, tuple[int, int, int]]:
    """A bias of attention scores as float32 with adjacent keys, and its strides over sequences,
    heads and queries, 0 where it is broadcast."""
    if not (isinstance(bias, Tensor) and bias.is_floating_point() and _fits(bias, bias.dtype)):
        raise _wrong_kind(op, "bias", bias, torch.float32)
    allowed = ((1, batch), (1, heads), (max_seqlen_q,), (max_seqlen_k,))
    if bias.dim() != 4 or any(n not in ok for n, ok in zip(bias.shape, allowed, strict=True)):
        raise ValueError(
            f"{op}: bias has shape {tuple(bias.shape)}, expected ({batch} or 1, {heads} or 1, "
            f"{max_seqlen_q}, {max_seqlen_k})."
        )
    bias = bias.to(torch.float32)
    if bias.stride(3) != 1:
        bias = bias.contiguous()
    strides = bias.stride()
    over_batch = 0 if bias.shape[0] == 1 else strides[0]
    over_heads = 0 if bias.shape[1] == 1 else strides[1]
    return bias, (over_batch, over_heads, strides[2])


def weight_rows(op: str, name: str, weight: Any, inner: int, dtype: torch.dtype) -> int:
    """N of a weight that is known to be a CPU tensor (N, inner) of this dtype."""
    if not _fits(weight, dtype):
        raise _wrong_kind(op, name, weight, dtype)
    if weight.dim() != 2 or weight.shape[1] != inner:
        raise ValueError(
            f"{op}: {name} has shape {tuple(weight.shape)}, expected (N, {inner}) to go with the "
            f"{inner} columns of x."
        )
    return weight.shape[0]


def bytes_(op: str, name: str, x: Any) -> Tensor:
    """x, known to be a contiguous CPU vector of bytes."""
    if not _fits(x, torch.uint8):
        raise _wrong_kind(op, name, x, torch.uint8)
    if x.dim() != 1:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}; pass the result of {op}_prepack as it is."
        )
    return x.contiguous()


def two_dimensional(op: str, name: str, x: Tensor) -> tuple[int, int]:
    if x.dim() != 2:
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}, expected two dimensions; flatten the "
            "leading ones into rows."
        )
    return x.shape[0], x.shape[1]


def _fits(x: Any, dtype: torch.dtype) -> bool:
    return isinstance(x, Tensor) and x.dtype is dtype and x.is_cpu and x.layout is torch.strided


def _wrong_kind(op: str, name: str, x: Any, dtype: torch.dtype) -> Exception:
    if not isinstance(x, Tensor):
        return TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}.")
    if x.device.type != "cpu":
        return ValueError(f"{op}: {name} is on {x.device}, expected the CPU like the others.")
    if x.layout is not torch.strided:
        return TypeError(f"{op}: {name} is {x.layout}; pass {name}.to_dense().")
    return TypeError(
        f"{op}: {name} is {str(x.dtype).removeprefix('torch.')}, expected "
        f"{str(dtype).removeprefix('torch.')}; convert it first."
    )
