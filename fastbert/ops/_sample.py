"""Seeded sample data for the cases of the ops."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """Random tensors that depend only on the seed and the order of the calls.

    Values are drawn in float32 and rounded to `dtype`, so that every dtype sees the same sample.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        """Draw normal values of the sampler's dtype."""
        return self.normal32(*shape, std=std, mean=mean).to(self.dtype)

    def normal32(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        """Draw normal values in float32."""
        return torch.randn(shape, generator=self._generator) * std + mean

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Draw evenly between low and high."""
        return (torch.rand(shape, generator=self._generator) * (high - low) + low).to(self.dtype)

    def around_one(self, *shape: int) -> Tensor:
        """Draw LayerNorm gains: near 1, but none of them 1."""
        return self.normal(*shape, std=0.25, mean=1.0)

    def ids(self, count: int, entries: int) -> Tensor:
        """Draw int64 indices below `entries`."""
        return torch.randint(entries, (count,), generator=self._generator)

    def int8(self, *shape: int) -> Tensor:
        """Draw int8 values from -127 to 127."""
        return torch.randint(-127, 128, shape, generator=self._generator).to(torch.int8)


def offsets(lengths: list[int]) -> Tensor:
    """Return the cu_seqlens of these lengths."""
    out = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    out[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
    return out
