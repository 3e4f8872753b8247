"""bias_act on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation, unsupported_activation


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)


def bias_act(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """See `fastbert.ops.bias_act`."""
    op = "bias_act"
    code = _check.operand(op, "x", x, _native.DEVICE)
    rows, width = _check.two_dimensional(op, "x", x)
    x = _check.by_rows(x)
    if bias is not None:
        bias = _check.vector(op, "bias", bias, width, x.dtype, x.device)
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    _native.extension().bias_act(
        x.data_ptr(), _check.address(bias), out.data_ptr(), rows, width, _check.row_stride(x),
        width, code, kernel_activation(activation), *_native.target(x),
    )  # fmt: skip
    return out
