"""The scale of each row of a weight at which rounding it to 8 bits costs least."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastbert.kernels import cpu, native


def best_scales(rows: Tensor, largest: Tensor, fractions: Sequence[float]) -> Tensor:
    """Choose, for each row, the scale with the least squared error.

    Args:
        rows: float32 (N, K).
        largest: float32 (K,), the greatest level of each column.
        fractions: the candidates, as shares of the scale at which nothing is clipped; of equal
            ones the first is chosen.

    Returns:
        float32 (N,); 1 for rows of zeros, NaN for rows with a value that is not finite.
    """
    if not rows.shape[1]:
        return torch.ones(rows.shape[0], dtype=torch.float32, device=rows.device)
    full = (rows.abs() / largest).amax(dim=1)
    finite = torch.isfinite(full)
    full = torch.where(full > 0, full, torch.ones_like(full))
    scales = full[:, None] * torch.tensor(fractions, dtype=torch.float32, device=rows.device)
    errors = clip_errors(rows, scales, largest).nan_to_num(torch.inf, torch.inf)
    best = scales.gather(1, errors.argmin(dim=1, keepdim=True)).squeeze(1)
    return torch.where(finite, best, torch.full_like(best, torch.nan))


def clip_errors(rows: Tensor, scales: Tensor, largest: Tensor) -> Tensor:
    """Return the squared error of each row rounded with each of its scales.

    Args:
        rows: float32 (N, K).
        scales: float32 (N, candidates).
        largest: float32 (K,), the greatest level of each column.

    Returns:
        float32 (N, candidates).
    """
    if rows.device.type == "cpu" and native.reason() is None:
        return cpu.clip_errors(rows, scales, largest)
    return clip_errors_reference(rows, scales, largest)


def clip_errors_reference(rows: Tensor, scales: Tensor, largest: Tensor) -> Tensor:
    """Compute `clip_errors` with torch."""
    errors = torch.empty_like(scales)
    for at, scale in enumerate(scales.t()):
        errors[:, at] = (levels(rows, scale, largest) * scale[:, None] - rows).square().sum(dim=1)
    return errors


def levels(rows: Tensor, scale: Tensor, largest: Tensor) -> Tensor:
    """Round rows (N, K) to whole multiples of their scales (N,), at most `largest` (K,) of them."""
    rounded = torch.round(rows / scale[:, None])
    return torch.minimum(torch.maximum(rounded, -largest), largest)
