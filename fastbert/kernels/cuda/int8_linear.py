"""int8_linear on CUDA: rows are quantised on the way in, the rest is in the product's epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels import _check
from fastbert.kernels.cuda import _native, _products, _rows
from fastbert.kernels.cuda.quantize_rows import quantize_rows
from fastbert.ops._op import Traits
from fastbert.ops.activations import kernel_activation, unsupported_activation
from fastbert.ops.int8_linear import widened


def supports(traits: Traits) -> str | None:
    """None, or why the kernel cannot serve these traits."""
    too_wide = _rows.width_reason(traits.hidden_size, traits.intermediate_size)
    return unsupported_activation(traits.activation) or too_wide


def int8_linear_prepack(qweight: Tensor) -> Tensor:
    """The sums over K of every row of qweight, int8 (N, K): int32 (N,) as its bytes, uint8 (4 N,).

    Raises:
        ValueError, TypeError: for another kind of tensor, or K beyond 65 793, where sums of
            products could leave int32.
    """
    op = "int8_linear_prepack"
    if not isinstance(qweight, Tensor) or qweight.dtype != torch.int8 or qweight.dim() != 2:
        raise TypeError(f"{op}: qweight must be an int8 tensor (N, K).")
    if qweight.device.type != _native.DEVICE:
        raise ValueError(
            f"{op}: the cuda kernels take CUDA tensors, qweight is on {qweight.device}; move it, "
            "or choose another backend."
        )
    outer, inner = qweight.shape
    qweight = _check.by_rows(qweight)
    sums = torch.empty(outer, dtype=torch.int32, device=qweight.device)
    _native.extension().weight_sums(
        qweight.data_ptr(), sums.data_ptr(), outer, inner, _check.row_stride(qweight),
        *_native.target(qweight),
    )  # fmt: skip
    return sums.view(torch.uint8)


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
    factor: Tensor | None = None,
    repeated: Tensor | None = None,
    *,
    requantize: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See `fastbert.ops.int8_linear`.

    The integer product is exact, whatever the form of the kernel. packed: `int8_linear_prepack`'s,
    made anew when None. requantize: (scale float32 (rows,), zero_point int32 (rows,)) known
    beforehand; the result is then clamp(round(y / scale) + zero_point, 0, 255) as uint8.
    """
    op = "int8_linear"
    code = kernel_activation(activation)
    operands = _check.product(
        op, _native.DEVICE, x, qweight, bias, residual, weight_scale, factor, repeated
    )
    device, outer = operands.x.device, operands.outer
    if packed is None:
        packed = int8_linear_prepack(qweight)
    else:
        packed = _check.bytes_(op, "packed", packed, device)
        if packed.numel() != 4 * outer:
            raise ValueError(
                f"{op}: packed has {packed.numel()} bytes, expected {4 * outer}; pass the result "
                "of int8_linear_prepack(qweight) as it is."
            )
    if requantize is not None:
        rows = operands.rows
        requantize = (
            _check.vector(
                op, "the scale of requantize", requantize[0], rows, torch.float32, device
            ),
            _check.vector(
                op, "the zero_point of requantize", requantize[1], rows, torch.int32, device
            ),
        )
    q, scale, zero_point = quantize_rows(widened(operands.x, operands.factor, operands.repeated))
    assert operands.weight_scale is not None
    quantised = _products.Quantised(scale, zero_point, operands.weight_scale, packed)
    return _products.product(op, operands, q, qweight, code, quantised, requantize)
