"""Positions as sines and cosines."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoids(positions: int, width: int) -> Tensor:
    """Return sines and cosines of positions (Vaswani et al. 2017, section 3.5).

    Returns:
        float32 (positions, width): sines in even columns, cosines in odd ones.
    """
    column = torch.arange(width, dtype=torch.float64)
    rates = 10000.0 ** (2 * torch.div(column, 2, rounding_mode="floor") / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / rates
    return torch.where(column % 2 == 0, angles.sin(), angles.cos()).float()
