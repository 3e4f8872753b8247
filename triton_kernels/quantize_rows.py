"""quantize_rows: every row to 8 bits by its own range, asymmetric.

One program per row. The two divisions are correctly rounded (the default division is not) and the
rounding is to nearest even, so q, scale and zero_point equal the reference's bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.quantize_rows import QuantizeOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import row_block


@triton.jit
def quantize_row(x, keep):
    """Return (q float32 in 0..255, scale, zero_point float32) of one float32 row.

    A NaN anywhere makes the scale NaN (a hardware maximum would drop it); elements that do not
    divide to a number become 0 before the zero point is added, as in the reference.
    """
    x = tl.where(keep, x, 0.0)
    invalid = tl.max((x != x).to(tl.int32), 0) > 0
    low = tl.minimum(tl.min(x, 0), 0.0)
    high = tl.maximum(tl.max(x, 0), 0.0)
    scale = tl.math.div_rn(high - low, 255.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    scale = tl.where(invalid, float("nan"), scale)
    zero_point = tl.math.div_rn(-low, scale)
    zero_point = tl.where(zero_point < float("inf"), zero_point, 0.0)
    zero_point = _common.round_to_even(zero_point)
    q = tl.math.div_rn(x, tl.broadcast_to(scale, x.shape))
    q = tl.where(tl.abs(q) < float("inf"), q, 0.0)
    q = tl.clamp(_common.round_to_even(q) + zero_point, 0.0, 255.0)
    return q, scale, zero_point


@triton.jit
def quantize_rows_kernel(
    x_ptr,  # (rows, width)
    q_ptr,  # (rows, width) uint8, or int8 when SHIFT is 128
    scale_ptr,  # (rows,) float32
    zero_point_ptr,  # (rows,) int32
    width, x_stride, q_stride,
    SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Quantise one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    keep = columns < width
    x = tl.load(x_ptr + row * x_stride + columns, mask=keep, other=0.0).to(tl.float32)
    q, scale, zero_point = quantize_row(x, keep)
    q = (q - SHIFT).to(tl.int32).to(q_ptr.dtype.element_ty)
    tl.store(q_ptr + row * q_stride + columns, q, mask=keep)
    tl.store(scale_ptr + row, scale)
    tl.store(zero_point_ptr + row, (zero_point - SHIFT).to(tl.int32))


def quantize_rows(
    o: QuantizeOperands, *, signed: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise every row by its own range; see ``fastbert.ops.quantize_rows``.

    With ``signed`` q is int8 and both it and zero_point are 128 less: what a signed int8 gemm
    wants.

    Raises:
        ValueError: for rows that do not fit in the registers of one program.
    """
    _common.check_row_width("quantize_rows", o.width)
    x = o.x
    q = torch.empty((o.rows, o.width), dtype=torch.int8 if signed else torch.uint8, device=x.device)
    scale = torch.empty(o.rows, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(o.rows, dtype=torch.int32, device=x.device)
    if o.rows == 0:
        return q, scale, zero_point
    block, warps = row_block(o.width)
    with _common.on_device(x):
        quantize_rows_kernel[(o.rows,)](
            x, q, scale, zero_point, o.width, x.stride(0), q.stride(0),
            SHIFT=128 if signed else 0, BLOCK=block, num_warps=warps, **_common.LAUNCH,
        )  # fmt: skip
    return q, scale, zero_point


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    widest = max(traits.hidden_size or 1, traits.intermediate_size or 1)
    return _common.row_width_reason(widest)
