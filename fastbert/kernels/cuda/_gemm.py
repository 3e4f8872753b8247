"""What `linear` and `int8_linear` share on CUDA: one native gemm with its epilogue."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native
from fastbert.ops.int8_linear import Int8LinearOperands
from fastbert.ops.linear import LinearOperands
from fastbert.ops.operands import address, by_rows, row_stride

_U8 = 3  # csrc/common/types.h
# The (family, tile) of the kernel: the architecture's own and the cheapest. Tests and measurements
# put others here (csrc/cuda/gemm/gemm.h).
FORM = (0, -1)
# Bulk tensor copies address rows that start on so many bytes.
_ALIGNMENT = 16


class Quantised(NamedTuple):
    """Scales and sums that make a real product of an integer one."""

    scale: Tensor  # float32 (rows,)
    zero_point: Tensor  # int32 (rows,)
    weight_scale: Tensor  # float32 (N,)
    weight_sums: Tensor  # int32 (N,), or the same as bytes


def gemm(
    op: str,
    o: LinearOperands | Int8LinearOperands,
    x: Tensor,
    weight: Tensor,
    quantised: Quantised | None = None,
    requantize: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute activation(x @ weight.T, dequantised, + bias) + residual, perhaps requantised.

    x is what is multiplied: o.x, or its uint8 form.
    """
    rows, inner, outer = o.rows, x.shape[1], o.outer
    dtype = o.x.dtype if requantize is None else torch.uint8
    out = torch.empty((rows, outer), dtype=dtype, device=x.device)
    x, weight = aligned_rows(x), by_rows(weight)
    integer = (0, 0, 0, 0) if quantised is None else tuple(map(address, quantised))
    bytes_out = (0, 0) if requantize is None else tuple(map(address, requantize))
    _native.launch(
        "gemm", x,
        op, x.data_ptr(), row_stride(x), weight.data_ptr(), row_stride(weight), rows, outer, inner,
        o.code if quantised is None else _U8, *FORM, address(o.bias), address(o.residual),
        row_stride(o.residual), out.data_ptr(), outer, o.code, *o.activation, *integer, *bytes_out,
    )  # fmt: skip
    return out


def aligned_rows(x: Tensor) -> Tensor:
    """Return x, copied where its rows could start on 16 bytes and do not.

    Which instructions multiply, and so the order of the sums, then depends on K and the weight,
    never on how x lies in memory.
    """
    size = x.element_size()
    if x.shape[1] * size % _ALIGNMENT:
        return x
    if x.data_ptr() % _ALIGNMENT or row_stride(x) * size % _ALIGNMENT:
        return x.clone(memory_format=torch.contiguous_format)
    return x
