"""xielu: the activation whose two slopes are learned, elementwise over rows.

The slopes are one element each and stay on the device: every program folds them anew, a few
instructions beside its block, so that nothing waits for their values and nothing is launched for
them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.xielu import XieluOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import column_block

_ROWS = 4
_WARPS = 4


# A batch of one, or of a multiple of 16, would be compiled for itself, seconds in service.
@triton.jit(do_not_specialize=["rows"])
def xielu_kernel(
    x_ptr,  # (rows, width)
    alpha_p_ptr,  # one element each, as beta and eps
    alpha_n_ptr, beta_ptr, eps_ptr,
    out_ptr,  # (rows, width)
    rows, width, x_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Activate one block of rows and columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    keep = (row < rows) & (column < width)[None, :]
    beta = tl.load(beta_ptr).to(tl.float32)
    eps = tl.load(eps_ptr).to(tl.float32)
    square = _common.softplus(tl.load(alpha_p_ptr).to(tl.float32))
    exponential = beta + _common.softplus(tl.load(alpha_n_ptr).to(tl.float32))
    x = tl.load(x_ptr + row * x_stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
    linear = beta * x
    above = tl.fma(square * x, x, linear)
    # Only x <= 0 takes this one.
    less = _common.expm1_below_zero(tl.minimum(tl.minimum(x, eps), 0.0))
    below = tl.fma(less - x, exponential, linear)
    value = tl.where(x > 0.0, above, below).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + column[None, :], value, mask=keep)


def xielu(o: XieluOperands) -> torch.Tensor:
    """Compute xIELU in float32, rounded once; see ``fastbert.ops.xielu``."""
    x = o.x
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    columns = column_block(o.width)
    grid = (triton.cdiv(o.rows, _ROWS), triton.cdiv(o.width, columns))
    with _common.on_device(x):
        xielu_kernel[grid](
            x, o.alpha_p, o.alpha_n, o.beta, o.eps, out, o.rows, o.width, x.stride(0),
            out.stride(0), ROWS=_ROWS, COLUMNS=columns, num_warps=_WARPS, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return None
