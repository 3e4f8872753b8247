"""What the ops over whole rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native
from fastbert.ops.add_layer_norm import RowNormOperands
from fastbert.ops.operands import address, row_stride

# Elements of a row that fit in the registers of one block (csrc/cuda/launch.h).
ROW_LIMIT = 16384


def width_reason(*widths: int | None) -> str | None:
    """Return why rows of these widths (None: not known) have no kernel, or None."""
    for width in widths:
        if width is not None and not 0 < width <= ROW_LIMIT:
            return f"rows have {width} elements, the CUDA kernel holds 1 to {ROW_LIMIT}"
    return None


def normalise(op: str, o: RowNormOperands) -> tuple[Tensor, Tensor]:
    """Compute LayerNorm(activation(x + x_bias) + residual), and the sum before it where wanted."""
    x, residual = o.x, o.residual
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if o.return_sum else x.new_empty(0)
    _native.launch(
        "row_norm", x,
        op, x.data_ptr(), address(o.x_bias), address(residual), o.weight.data_ptr(),
        o.bias.data_ptr(), out.data_ptr(), total.data_ptr() if o.return_sum else 0,
        o.rows, o.width, row_stride(x), row_stride(residual), o.width, o.code, *o.activation,
        o.eps,
    )  # fmt: skip
    return out, total
