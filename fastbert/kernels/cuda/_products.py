"""What `linear` and `int8_linear` share on CUDA: one native product with its epilogue."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels._check import address, row_stride
from fastbert.kernels.cuda import _native

_U8 = 3  # csrc/common/types.h
# The (family, tile) of the kernel: the architecture's own and the cheapest. Tests and measurements
# put others here (csrc/cuda/gemm/gemm.h).
FORM = (0, -1)
# Bulk tensor copies address rows that start on so many bytes.
_ALIGNMENT = 16


class Quantised(NamedTuple):
    """What an integer product needs to become a real one."""

    scale: Tensor  # float32 (rows,)
    zero_point: Tensor  # int32 (rows,)
    weight_scale: Tensor  # float32 (N,)
    weight_sums: Tensor  # int32 (N,), or the same as bytes


def product(
    op: str,
    operands: _check.Product,
    x: Tensor,
    weight: Tensor,
    activation: int,
    quantised: Quantised | None = None,
    requantize: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """activation(x @ weight.T, dequantised, + bias) + residual, or that requantised to bytes.

    x is what is multiplied: operands.x, or its uint8 form.
    """
    rows, inner, outer = operands.rows, x.shape[1], operands.outer
    dtype = operands.x.dtype if requantize is None else torch.uint8
    out = torch.empty((rows, outer), dtype=dtype, device=x.device)
    x, weight = aligned_rows(x), _check.by_rows(weight)
    integer = (0, 0, 0, 0) if quantised is None else tuple(map(address, quantised))
    bytes_out = (0, 0) if requantize is None else tuple(map(address, requantize))
    _native.extension().gemm(
        op, x.data_ptr(), row_stride(x), weight.data_ptr(), row_stride(weight), rows, outer, inner,
        operands.code if quantised is None else _U8, *FORM,
        address(operands.bias), address(operands.residual), row_stride(operands.residual),
        out.data_ptr(), outer, operands.code, activation, *integer, *bytes_out,
        *_native.target(x),
    )  # fmt: skip
    return out


def aligned_rows(x: Tensor) -> Tensor:
    """x, copied where its rows could start on 16 bytes and do not. Which instructions multiply, and
    so the order of the sums, then depends on K and the weight, never on how x lies in memory."""
    size = x.element_size()
    if x.shape[1] * size % _ALIGNMENT:
        return x
    if x.data_ptr() % _ALIGNMENT or row_stride(x) * size % _ALIGNMENT:
        return x.clone(memory_format=torch.contiguous_format)
    return x
