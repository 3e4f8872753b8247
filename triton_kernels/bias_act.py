"""bias_act: activation(x + bias), elementwise over rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.bias_act import BiasActOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import column_block

# 4 rows a program keep four 16-byte loads in flight a thread, and read the bias once for them.
_ROWS = 4
_WARPS = 4


# A batch of one, or of a multiple of 16, would be compiled for itself, seconds in service.
@triton.jit(do_not_specialize=["rows"])
def bias_act_kernel(
    x_ptr,  # (rows, width)
    bias_ptr,  # (width,) or None
    out_ptr,  # (rows, width)
    rows, width, act_a, act_b, x_stride, out_stride,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Activate one block of rows and columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    keep = (row < rows) & (column < width)[None, :]
    value = tl.load(x_ptr + row * x_stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, mask=column < width, other=0.0).to(tl.float32)
        value += bias[None, :]
    value = _common.activate(value, ACTIVATION, act_a, act_b).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + column[None, :], value, mask=keep)


def bias_act(o: BiasActOperands) -> torch.Tensor:
    """Compute activation(x + bias) in float32, rounded once; see ``fastbert.ops.bias_act``."""
    x = o.x
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    code, a, b = o.activation
    columns = column_block(o.width)
    grid = (triton.cdiv(o.rows, _ROWS), triton.cdiv(o.width, columns))
    with _common.on_device(x):
        bias_act_kernel[grid](
            x, o.bias, out, o.rows, o.width, a, b, x.stride(0), out.stride(0),
            ACTIVATION=code, ROWS=_ROWS, COLUMNS=columns, num_warps=_WARPS, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)
