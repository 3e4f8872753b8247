"""Key/value caches of decoders: what earlier tokens left behind for later ones.

Shapes are those of transformers: keys and values are (batch, heads, tokens, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class CacheLayer:
    """Keys and values of one layer, None before the first update."""

    keys: Tensor | None = None
    values: Tensor | None = None

    @property
    def is_initialized(self) -> bool:
        """Whether anything is stored."""
        return self.keys is not None

    def get_seq_length(self) -> int:
        """Count the tokens stored."""
        return 0 if self.keys is None else self.keys.shape[2]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append tokens, and return all keys and values."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace keys and values by a function of them."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = function(self.keys), function(self.values)


class DynamicCache:
    """A cache that grows with every update.

    Attributes:
        layers: one CacheLayer a layer, made as they are needed.
    """

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, head_dim) to a layer, and return all its keys and values."""
        while len(self.layers) <= layer_idx:
            self.layers.append(CacheLayer())
        return self.layers[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Count the tokens that a layer holds."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the batch rows that beam search goes on with, in its order."""
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def crop(self, max_length: int) -> None:
        """Keep the first max_length tokens, or drop the last -max_length when it is negative."""
        keep = max_length if max_length >= 0 else max(self.get_seq_length() + max_length, 0)
        self._change(lambda x: x[:, :, :keep])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row, the copies next to each other."""
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given batch rows."""
        self._change(lambda x: x[indices])

    def reset(self) -> None:
        """Forget everything."""
        self.layers = []

    def to_legacy_cache(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        """Return a tuple over layers of (keys, values), as transformers 4.37 did."""
        return tuple((layer.keys, layer.values) for layer in self.layers)

    def _change(self, function: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            layer.change(function)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[tuple[Tensor | None, ...]]:
        return iter(self.to_legacy_cache())

    def __getitem__(self, index: int) -> tuple[Tensor | None, ...]:
        return self.to_legacy_cache()[index]


class EncoderDecoderCache:
    """Two caches: of the decoder's own tokens, and of the encoder's, which is written once.

    Attributes:
        self_attention_cache, cross_attention_cache: the two.
        is_updated: layer -> whether its cross-attention is stored.
    """

    def __init__(
        self,
        self_attention_cache: DynamicCache | None = None,
        cross_attention_cache: DynamicCache | None = None,
    ) -> None:
        self.self_attention_cache = self_attention_cache or DynamicCache()
        self.cross_attention_cache = cross_attention_cache or DynamicCache()
        self.is_updated = {
            index: layer.is_initialized
            for index, layer in enumerate(self.cross_attention_cache.layers)
        }

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Count the decoder tokens that a layer holds."""
        return self.self_attention_cache.get_seq_length(layer_idx)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the decoder's own tokens to a layer."""
        return self.self_attention_cache.update(key_states, value_states, layer_idx)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the batch rows that beam search goes on with, in both caches."""
        for cache in self._both():
            cache.reorder_cache(beam_idx)

    def crop(self, max_length: int) -> None:
        """Shorten the decoder's own cache; the encoder's stays whole."""
        self.self_attention_cache.crop(max_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row of both caches."""
        for cache in self._both():
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given batch rows of both caches."""
        for cache in self._both():
            cache.batch_select_indices(indices)

    def reset(self) -> None:
        """Forget everything."""
        for cache in self._both():
            cache.reset()
        self.is_updated = {}

    def to_legacy_cache(self) -> tuple[tuple[Tensor | None, ...], ...]:
        """Return a tuple over layers of (keys, values), each with cross keys and values if any."""
        own = self.self_attention_cache.to_legacy_cache()
        cross = self.cross_attention_cache.to_legacy_cache()
        return tuple(
            layer + (cross[index] if index < len(cross) else ()) for index, layer in enumerate(own)
        )

    def _both(self) -> tuple[DynamicCache, DynamicCache]:
        return self.self_attention_cache, self.cross_attention_cache

    def __len__(self) -> int:
        return len(self.self_attention_cache)

    def __iter__(self) -> Iterator[tuple[Tensor | None, ...]]:
        return iter(self.to_legacy_cache())

    def __getitem__(self, index: int) -> tuple[Tensor | None, ...]:
        return self.to_legacy_cache()[index]


class Cache:
    """What the encoder needs of a cache, over ours, transformers' or any with the same methods.

    Args:
        store: the object that the caller holds and gets back.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self._cross = getattr(store, "cross_attention_cache", None)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values, and return all of them."""
        own = getattr(self.store, "self_attention_cache", self.store)
        k, v = own.update(keys, values, layer)
        return k, v

    def cross_layer(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the cross keys and values of a layer; None before they are stored."""
        if self._cross is None or not self.store.is_updated.get(layer):
            return None
        stored = self._cross.layers[layer]
        return stored.keys, stored.values

    def store_cross(self, keys: Tensor, values: Tensor, layer: int) -> None:
        """Store the cross keys and values of a layer, where the cache has room for them."""
        if self._cross is not None:
            self._cross.update(keys, values, layer)
            self.store.is_updated[layer] = True


def as_cache(past_key_values: Any, cross: bool) -> Any:
    """Return the cache object for what a caller passed as past_key_values.

    Args:
        past_key_values: None (a new cache), a cache object (returned as it is), or tuples over
            layers of (keys, values) or (keys, values, cross keys, cross values).
        cross: whether a new cache must hold cross-attention too.

    Raises:
        TypeError: for anything else.
    """
    if past_key_values is None:
        return EncoderDecoderCache() if cross else DynamicCache()
    if hasattr(past_key_values, "update") and hasattr(past_key_values, "get_seq_length"):
        return past_key_values
    if not _is_legacy(past_key_values):
        raise TypeError(
            "past_key_values is a cache object, or one tuple a layer of (keys, values) or (keys, "
            f"values, cross keys, cross values); a {type(past_key_values).__name__} was given."
        )
    own, other = DynamicCache(), DynamicCache()
    for index, layer in enumerate(past_key_values):
        own.update(layer[0], layer[1], index)
        if len(layer) > 2:
            other.update(layer[2], layer[3], index)
    return EncoderDecoderCache(own, other) if cross or len(other) else own


def _is_legacy(value: Any) -> bool:
    return isinstance(value, Sequence) and all(
        isinstance(layer, Sequence) and len(layer) in (2, 4) for layer in value
    )
