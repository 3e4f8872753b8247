"""int8_linear on CUDA: rows are quantised on the way in, the rest is in the gemm's epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.kernels.cuda import _gemm, _native, _rows
from fastbert.kernels.cuda.quantize_rows import quantize_rows
from fastbert.ops._op import Traits
from fastbert.ops.activations import unsupported_activation
from fastbert.ops.int8_linear import Int8LinearOperands, widened
from fastbert.ops.operands import CODES, by_rows, bytes_, row_stride, vector
from fastbert.ops.quantize_rows import QuantizeOperands


def supports(traits: Traits) -> str | None:
    """Return None, or why the kernel cannot serve these traits."""
    too_wide = _rows.width_reason(traits.hidden_size, traits.intermediate_size)
    return unsupported_activation(traits.activation) or too_wide


def int8_linear_prepack(qweight: Tensor) -> Tensor:
    """Return the sums over K of every row of qweight, int8 (N, K): int32 (N,) as 4 N bytes, uint8.

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
    qweight = by_rows(qweight)
    sums = torch.empty(outer, dtype=torch.int32, device=qweight.device)
    _native.launch(
        "weight_sums", qweight,
        qweight.data_ptr(), sums.data_ptr(), outer, inner, row_stride(qweight),
    )  # fmt: skip
    return sums.view(torch.uint8)


def int8_linear(
    o: Int8LinearOperands, *, requantize: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """See `fastbert.ops.int8_linear`; the integer product is exact, whatever the kernel's form.

    Args:
        o: operands, whose `packed` is `int8_linear_prepack`'s, made anew when None.
        requantize: (scale float32 (rows,), zero_point int32 (rows,)) known beforehand; the result
            is then clamp(round(y / scale) + zero_point, 0, 255) as uint8.
    """
    op = "int8_linear"
    device, packed = o.x.device, o.packed
    if packed is None:
        packed = int8_linear_prepack(o.qweight)
    else:
        packed = bytes_(op, "packed", packed, device)
        if packed.numel() != 4 * o.outer:
            raise ValueError(
                f"{op}: packed has {packed.numel()} bytes, expected {4 * o.outer}; pass the result "
                "of int8_linear_prepack(qweight) as it is."
            )
    if requantize is not None:
        scale, zero_point = requantize
        requantize = (
            vector(op, "the scale of requantize", scale, o.rows, torch.float32, device),
            vector(op, "the zero_point of requantize", zero_point, o.rows, torch.int32, device),
        )
    wide = widened(o.x, o.factor, o.repeated)
    operands = QuantizeOperands(CODES[wide.dtype], o.rows, wide.shape[1], wide)
    q, scale, zero_point = quantize_rows(operands)
    quantised = _gemm.Quantised(scale, zero_point, o.weight_scale, packed)
    return _gemm.gemm(op, o, q, o.qweight, quantised, requantize)
