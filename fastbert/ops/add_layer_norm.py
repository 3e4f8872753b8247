"""Bias, residual and LayerNorm in one pass over the row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor bias, float eps, Tensor? residual=None, "
    "Tensor? x_bias=None, bool return_sum=False) -> (Tensor, Tensor)"
)


def add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    x_bias: Tensor | None = None,
    return_sum: bool = False,
) -> tuple[Tensor, Tensor]:
    """LayerNorm(x + x_bias + residual), and that sum when it is asked for.

    y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias with the biased variance, per row;
    statistics are float32 or better, the variance not from E[s^2] - E[s]^2.

    Args:
        x: (rows, hidden), floating.
        weight, bias: (hidden,), x.dtype.
        eps: added to the variance.
        residual: (rows, hidden), x.dtype.
        x_bias: (hidden,), x.dtype.
        return_sum: also give s, for a residual stream that goes on un-normalised.

    Returns:
        (rows, hidden) and s rounded to x.dtype, of shape (rows, hidden), or (0,) without
        return_sum.

    Source: Ba, Kiros, Hinton 2016, "Layer normalization".
    """
    total = x
    if x_bias is not None:
        total = total + x_bias
    if residual is not None:
        total = total + residual
    out = layer_norm(total, weight, bias, eps)
    if not return_sum:
        return out, x.new_empty(0)
    return out, total.clone() if total is x else total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension; where x and weight differ in dtype, in the wider one."""
    return F.layer_norm(
        x.to(torch.promote_types(x.dtype, weight.dtype)), (x.shape[-1],), weight, bias, eps
    )
