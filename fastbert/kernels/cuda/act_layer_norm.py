"""act_layer_norm on CUDA."""

from __future__ import annotations

from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native, _rows
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation, unsupported_activation


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    return _rows.width_reason(traits.hidden_size) or unsupported_activation(traits.activation)


def act_layer_norm(
    x: Tensor, bias: Tensor | None, weight: Tensor, ln_bias: Tensor, eps: float, activation: str
) -> Tensor:
    """See `fastbert.ops.act_layer_norm`."""
    op = "act_layer_norm"
    code = kernel_activation(activation)
    operands = _check.row_norm(
        op, _native.DEVICE, x, bias, None, weight, ln_bias, ("bias", "ln_bias")
    )
    return _rows.normalise(op, operands, eps, code, False)[0]
