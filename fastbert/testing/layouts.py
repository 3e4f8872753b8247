"""Tensors with the same values in awkward places of memory."""

from __future__ import annotations

import torch
from torch import Tensor


def misaligned(x: Tensor, elements: int = 1) -> Tensor:
    """Make a contiguous copy whose data starts `elements` past an aligned address."""
    room = torch.empty(x.numel() + elements, dtype=x.dtype, device=x.device)
    return room[elements:].view(x.shape).copy_(x)


def strided(x: Tensor, gap: int = 3) -> Tensor:
    """Make a copy whose last dimension is contiguous, with `gap` elements between its rows."""
    room = torch.empty(*x.shape[:-1], x.shape[-1] + gap, dtype=x.dtype, device=x.device)
    return room[..., : x.shape[-1]].copy_(x)
