"""linear on CUDA."""

from __future__ import annotations

from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native, _products
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation, unsupported_activation


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """See `fastbert.ops.linear`. float32 products are exact, never tf32; `packed` belongs to other
    backends. A row has the same bits whatever the other rows are and however many."""
    op = "linear"
    code = kernel_activation(activation)
    operands = _check.product(op, _native.DEVICE, x, weight, bias, residual)
    return _products.product(op, operands, operands.x, weight, code)
