"""Asymmetric 8-bit quantisation of every row by its own range."""

from __future__ import annotations

import torch
from torch import Tensor

SCHEMA = "(Tensor x) -> (Tensor, Tensor, Tensor)"
LEVELS = 255


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q with x ~ scale * (q - zero_point), per row; all in float32.

    lo = min(0, min(x)), hi = max(0, max(x)), scale = (hi - lo) / 255 (1 where that is 0),
    zero_point = round(-lo / scale), q = clamp(round(x / scale) + zero_point, 0, 255), rounding to
    nearest even. Zero is always represented exactly. A row with a NaN gets scale NaN, so that
    whatever is computed from it is NaN too.

    Args:
        x: (rows, K), floating.

    Returns:
        q uint8 (rows, K), scale float32 (rows,), zero_point int32 (rows,).
    """
    values = x.detach().to(torch.float32)
    zero = values.new_zeros(values.shape[0], 1)
    bounded = torch.cat([values, zero], dim=1)
    low, high = bounded.amin(dim=1), bounded.amax(dim=1)
    scale = (high - low) / LEVELS
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / scale).nan_to_num(0.0, 0.0, 0.0)
    quantised = torch.round(values / scale[:, None]).nan_to_num(0.0, 0.0, 0.0)
    quantised = (quantised + zero_point[:, None]).clamp(0, LEVELS)
    return quantised.to(torch.uint8), scale, zero_point.to(torch.int32)
