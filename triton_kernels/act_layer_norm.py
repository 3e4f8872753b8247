"""act_layer_norm: LayerNorm(activation(x + bias)), the transform of a language-model head.

One program per row, the whole row in registers, as in add_layer_norm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.add_layer_norm import RowNormOperands
from fastbert.triton_kernels import _common
from fastbert.triton_kernels.configs import row_block


@triton.jit
def act_layer_norm_kernel(
    x_ptr,  # (rows, hidden)
    x_bias_ptr,  # (hidden,) or None
    weight_ptr,  # (hidden,)
    bias_ptr,  # (hidden,)
    out_ptr,  # (rows, hidden)
    hidden, eps, act_a, act_b, x_stride, out_stride,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise the activation of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    keep = columns < hidden
    value = tl.load(x_ptr + row * x_stride + columns, mask=keep, other=0.0).to(tl.float32)
    if x_bias_ptr is not None:
        value += tl.load(x_bias_ptr + columns, mask=keep, other=0.0).to(tl.float32)
    value = _common.activate(value, ACTIVATION, act_a, act_b)
    out = _common.layer_norm_row(value, columns, keep, weight_ptr, bias_ptr, hidden, eps)
    out = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * out_stride + columns, out, mask=keep)


def act_layer_norm(o: RowNormOperands) -> torch.Tensor:
    """Compute LayerNorm(activation(x + bias)); see ``fastbert.ops.act_layer_norm``.

    Nothing between x and the result is rounded below float32.

    Raises:
        ValueError: for rows that do not fit in the registers of one program.
    """
    _common.check_row_width("act_layer_norm", o.width)
    out = torch.empty((o.rows, o.width), dtype=o.x.dtype, device=o.x.device)
    if o.rows == 0:
        return out
    code, a, b = o.activation
    block, warps = row_block(o.width)
    with _common.on_device(o.x):
        act_layer_norm_kernel[(o.rows,)](
            o.x, o.x_bias, o.weight, o.bias, out, o.width, o.eps, a, b, o.x.stride(0),
            out.stride(0), ACTIVATION=code, BLOCK=block, num_warps=warps, **_common.LAUNCH,
        )  # fmt: skip
    return out


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    return unsupported_activation(traits.activation) or _common.row_width_reason(traits.hidden_size)
