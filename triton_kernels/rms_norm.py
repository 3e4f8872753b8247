"""rms_norm: residual and root-mean-square normalisation in one read of the row.

One program per row, the whole row in registers, as in add_layer_norm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.rms_norm import RmsNormOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import row_block


@triton.jit
def rms_norm_kernel(
    x_ptr,  # (rows, hidden)
    residual_ptr,  # (rows, hidden) or None
    weight_ptr,  # (hidden,)
    out_ptr,  # (rows, hidden)
    sum_ptr,  # (rows, hidden) or None
    hidden, eps, x_stride, residual_stride, out_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up and normalise one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    keep = columns < hidden
    total = tl.load(x_ptr + row * x_stride + columns, mask=keep, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual_row = residual_ptr + row * residual_stride
        total += tl.load(residual_row + columns, mask=keep, other=0.0).to(tl.float32)
    if sum_ptr is not None:
        rounded = total.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * out_stride + columns, rounded, mask=keep)
    scale = _common.rms_scale(tl.sum(total * total, 0), hidden, eps)
    weight = tl.load(weight_ptr + columns, mask=keep, other=0.0).to(tl.float32)
    out = (total * scale * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + columns, out, mask=keep)


def rms_norm(o: RmsNormOperands) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute s / sqrt(mean(s^2) + eps) * weight for s = x + residual, and s.

    See ``fastbert.ops.rms_norm``. What is normalised is the float32 sum, before rounding.

    Raises:
        ValueError: for rows that do not fit in the registers of one program.
    """
    _common.check_row_width("rms_norm", o.width)
    x, residual = o.x, o.residual
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if o.return_sum else x.new_empty(0)
    if o.rows == 0:
        return out, total
    block, warps = row_block(o.width)
    with _common.on_device(x):
        rms_norm_kernel[(o.rows,)](
            x, residual, o.weight, out, total if o.return_sum else None,
            o.width, o.eps, x.stride(0), 0 if residual is None else residual.stride(0),
            out.stride(0), BLOCK=block, num_warps=warps, **_common.LAUNCH,
        )  # fmt: skip
    return out, total


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return _common.row_width_reason(traits.hidden_size)
