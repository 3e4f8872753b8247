"""act_layer_norm: LayerNorm(activation(x + bias)), the transform of a language-model head.

One program per row, the whole row in registers, as in add_layer_norm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation, unsupported_activation
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import row_block


@triton.jit
def act_layer_norm_kernel(
    x_ptr,  # (rows, hidden)
    x_bias_ptr,  # (hidden,) or None
    weight_ptr,  # (hidden,)
    bias_ptr,  # (hidden,)
    out_ptr,  # (rows, hidden)
    hidden, eps, x_stride, out_stride,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    keep = columns < hidden
    value = tl.load(x_ptr + row * x_stride + columns, mask=keep, other=0.0).to(tl.float32)
    if x_bias_ptr is not None:
        value += tl.load(x_bias_ptr + columns, mask=keep, other=0.0).to(tl.float32)
    value = _common.activate(value, ACTIVATION)
    out = _common.layer_norm_row(value, columns, keep, weight_ptr, bias_ptr, hidden, eps)
    out = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + columns, out, mask=keep)


def act_layer_norm(
    x: torch.Tensor,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    ln_bias: torch.Tensor,
    eps: float,
    activation: str,
) -> torch.Tensor:
    """LayerNorm(activation(x + bias)).

    Shapes: x (rows, hidden) with a free row stride; bias, weight, ln_bias (hidden,); one dtype of
    float32, float16, bfloat16. Nothing between x and the result is rounded below float32. Raises
    ValueError for anything else.
    """
    op = "act_layer_norm"
    _common.check_row_op(op, x, bias=bias, weight=weight, ln_bias=ln_bias)
    rows, hidden = x.shape
    _common.check_row_width(op, hidden)
    code = kernel_activation(activation)
    out = torch.empty((rows, hidden), dtype=x.dtype, device=x.device)
    if rows == 0:
        return out
    block, warps = row_block(hidden)
    with _common.on_device(x):
        act_layer_norm_kernel[(rows,)](
            x, bias, weight, ln_bias, out, hidden, eps, x.stride(0), out.stride(0),
            ACTIVATION=code, BLOCK=block, num_warps=warps, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation) or _common.row_width_reason(traits.hidden_size)
