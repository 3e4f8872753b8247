"""A cache under layers that are computed a second time in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastbert.layers.cache_view import Cache


class RecomputedCache(Cache):
    """What a layer of one pass finds in a cache, the same however often it is computed.

    The first time, its keys and values are stored; after that they are put behind those that the
    layer found at first.

    Args:
        cache: the cache of the pass.
    """

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache.store)
        self._found: dict[int, tuple[Tensor, Tensor] | None] = {}
        self._crossed: dict[int, tuple[Tensor, Tensor] | None] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append keys and values of self-attention to a layer, and return all of it."""
        if layer not in self._found:
            self._found[layer] = self.stored(layer)
            return super().update(keys, values, layer)
        found = self._found[layer]
        if found is None:
            return keys, values
        return torch.cat((found[0], keys), dim=2), torch.cat((found[1], values), dim=2)

    def cross_layer(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the keys and values of cross-attention that the layer found at first."""
        if layer not in self._crossed:
            self._crossed[layer] = super().cross_layer(layer)
        return self._crossed[layer]

    def store_cross(self, keys: Tensor, values: Tensor, layer: int) -> None:
        """Store the keys and values of a layer's cross-attention, the first time."""
        if super().cross_layer(layer) is None:
            super().store_cross(keys, values, layer)
