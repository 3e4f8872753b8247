"""quantize_rows on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native, _rows
from fastbert.ops._op import Traits


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.hidden_size, traits.intermediate_size)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastbert.ops.quantize_rows`."""
    op = "quantize_rows"
    code = _check.operand(op, "x", x, _native.DEVICE)
    rows, width = _check.two_dimensional(op, "x", x)
    x = _check.by_rows(x)
    q = torch.empty((rows, width), dtype=torch.uint8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(rows, dtype=torch.int32, device=x.device)
    _native.extension().quantize_rows(
        x.data_ptr(), q.data_ptr(), scale.data_ptr(), zero_point.data_ptr(), rows, width,
        _check.row_stride(x), code, *_native.target(x),
    )  # fmt: skip
    return q, scale, zero_point
