"""linear_w8a16 on CUDA: int8 weights are widened in registers, rows keep their precision."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native
from fastbert.kernels.cuda._gemm import aligned_rows
from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.int8_linear import Int8LinearOperands, widened
from fastbert.ops.operands import CODES, address, by_rows, row_stride


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)


def linear_w8a16(o: Int8LinearOperands) -> Tensor:
    """See `fastbert.ops.linear_w8a16`; sums are float32 and rounded once.

    Where a sum is no finite float32, it becomes NaN: in a row with a NaN or an infinity that holds
    for all of them. `packed` is not looked at.
    """
    x, weight = aligned_rows(by_rows(widened(o.x, o.factor, o.repeated))), by_rows(o.qweight)
    out = torch.empty((o.rows, o.outer), dtype=o.x.dtype, device=x.device)
    _native.launch(
        "linear_w8a16", x,
        (x.data_ptr(), weight.data_ptr(), o.weight_scale.data_ptr(), address(o.bias),
         address(o.residual), out.data_ptr()),
        (row_stride(x), row_stride(weight), row_stride(o.residual), o.outer),
        (o.rows, o.outer, x.shape[1]), CODES[x.dtype], o.code, *o.activation,
    )  # fmt: skip
    return out
