"""quantize_rows on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native, _rows
from fastbert.ops._op import Traits
from fastbert.ops.operands import row_stride
from fastbert.ops.quantize_rows import QuantizeOperands


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.hidden_size, traits.intermediate_size)


def quantize_rows(o: QuantizeOperands) -> tuple[Tensor, Tensor, Tensor]:
    """See `fastbert.ops.quantize_rows`."""
    x = o.x
    q = torch.empty((o.rows, o.width), dtype=torch.uint8, device=x.device)
    scale = torch.empty(o.rows, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(o.rows, dtype=torch.int32, device=x.device)
    _native.launch(
        "quantize_rows", x,
        x.data_ptr(), q.data_ptr(), scale.data_ptr(), zero_point.data_ptr(), o.rows, o.width,
        row_stride(x), o.code,
    )  # fmt: skip
    return q, scale, zero_point
