"""Matrix product of 8-bit weights and rows quantised on the way in (W8A8)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.ops.activations import activate
from fastbert.ops.quantize_rows import quantize_rows

SCHEMA = (
    "(Tensor x, Tensor qweight, Tensor weight_scale, Tensor? bias=None, str activation='none', "
    "Tensor? residual=None, Tensor? packed=None) -> Tensor"
)


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """activation(scale * weight_scale * ((q - zero_point) @ qweight.T) + bias) + residual.

    q, scale and zero_point are `quantize_rows(x)`. The integer product is exact: no partial sum
    exceeds K * 255 * 128, which int32 holds up to K = 65 793. Everything after it is float32 or
    better and rounded once to x.dtype.

    Args:
        x: (rows, K), floating.
        qweight: int8 (N, K).
        weight_scale: float32 (N,).
        bias: (N,), x.dtype, or None.
        activation: as for `bias_act`.
        residual: (rows, N), x.dtype, or None.
        packed: uint8, qweight in a kernel's own order; the reference does not look at it.

    Returns:
        (rows, N), x.dtype. Rounding has no derivative: the gradient with respect to x and
        weight_scale is that of the product without it (straight through).
    """
    quantised, scale, zero_point = quantize_rows(x)
    compute = torch.promote_types(x.dtype, torch.float32)
    # float64 holds these integers and their sums exactly, and has a fast matrix product.
    centred = quantised.to(torch.float64) - zero_point.to(torch.float64)[:, None]
    product = centred @ qweight.to(torch.float64).t()
    scales = scale.to(compute)[:, None] * weight_scale.detach().to(compute)
    out = product.to(compute) * scales
    if torch.is_grad_enabled() and (x.requires_grad or weight_scale.requires_grad):
        smooth = x.to(compute) @ (qweight.to(compute) * weight_scale.to(compute)[:, None]).t()
        out = out + (smooth - smooth.detach())
    if bias is not None:
        out = out + bias.to(compute)
    out = activate(out, activation)
    if residual is not None:
        out = out + residual.to(compute)
    return out.to(x.dtype)
