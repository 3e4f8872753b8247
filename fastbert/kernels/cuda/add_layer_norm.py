"""add_layer_norm on CUDA."""

from __future__ import annotations

from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native, _rows
from fastbert.ops._op import Traits


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.hidden_size)


def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    x_bias: Tensor | None = None,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `fastbert.ops.add_layer_norm`."""
    op = "add_layer_norm"
    operands = _check.row_norm(op, _native.DEVICE, x, x_bias, residual, weight, bias)
    return _rows.normalise(op, operands, eps, 0, return_sum)
