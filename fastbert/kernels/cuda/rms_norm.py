"""rms_norm on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native, _rows
from fastbert.ops._op import Traits
from fastbert.ops.operands import address, row_stride
from fastbert.ops.rms_norm import RmsNormOperands


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.hidden_size)


def rms_norm(o: RmsNormOperands) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.rms_norm`. What is normalised is the float32 sum, before rounding."""
    x = o.x
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if o.return_sum else x.new_empty(0)
    _native.launch(
        "rms_norm", x,
        x.data_ptr(), address(o.residual), o.weight.data_ptr(), out.data_ptr(),
        total.data_ptr() if o.return_sum else 0, o.rows, o.width, row_stride(x),
        row_stride(o.residual), o.width, o.code, o.eps,
    )  # fmt: skip
    return out, total
