"""xielu on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _native
from fastbert.ops._op import Traits
from fastbert.ops.operands import row_stride
from fastbert.ops.xielu import XieluOperands


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return None


def xielu(o: XieluOperands) -> Tensor:
    """See `fastbert.ops.xielu`. The four numbers are read on the device."""
    x = o.x
    out = torch.empty((o.rows, o.width), dtype=x.dtype, device=x.device)
    numbers = [number.data_ptr() for number in (o.alpha_p, o.alpha_n, o.beta, o.eps)]
    _native.launch(
        "xielu", x,
        x.data_ptr(), numbers, out.data_ptr(), o.rows, o.width, row_stride(x), o.width, o.code,
    )  # fmt: skip
    return out
