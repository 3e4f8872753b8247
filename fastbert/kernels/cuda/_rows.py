"""What the ops over whole rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels._check import address, row_stride
from fastbert.kernels.cuda import _native

# Elements of a row that fit in the registers of one block (csrc/cuda/launch.h).
ROW_LIMIT = 16384


def width_reason(*widths: int | None) -> str | None:
    """Why rows of these widths (None: not known) have no kernel, or None."""
    for width in widths:
        if width is not None and not 0 < width <= ROW_LIMIT:
            return f"rows have {width} elements, the CUDA kernel holds 1 to {ROW_LIMIT}"
    return None


def normalise(
    op: str, operands: _check.RowNorm, eps: float, activation: int, return_sum: bool
) -> tuple[Tensor, Tensor]:
    """LayerNorm(activation(x + x_bias) + residual), and the sum before it where it is wanted."""
    x, residual = operands.x, operands.residual
    out = torch.empty((operands.rows, operands.width), dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if return_sum else x.new_empty(0)
    _native.extension().row_norm(
        op, x.data_ptr(), address(operands.x_bias), address(residual), operands.weight.data_ptr(),
        operands.bias.data_ptr(), out.data_ptr(), total.data_ptr() if return_sum else 0,
        operands.rows, operands.width, row_stride(x), row_stride(residual), operands.width,
        operands.code, activation, eps, *_native.target(x),
    )  # fmt: skip
    return out, total
