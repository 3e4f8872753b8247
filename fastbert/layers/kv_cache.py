"""Key/value caches of decoders: the keys and values of earlier tokens, which later ones attend to.

Shapes are those of transformers: keys and values are (batch, heads, tokens, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# The least number of tokens that room is made for; it doubles from there.
_LEAST_ROOM = 64


@dataclass
class _Room:
    """Memory for the keys and values of a layer, with room behind them.

    Attributes:
        keys: (batch, heads, capacity, head_dim).
        values: likewise.
        shown: the views of it that the layer last gave out.
    """

    keys: Tensor
    values: Tensor
    shown: tuple[Tensor, Tensor] | None = None

    def holds(self, keys: Tensor, values: Tensor, end: int) -> bool:
        """Return whether these very tensors are what was last given out, and `end` tokens fit.

        Others have been put in their place (a shorter text, another order of beams), and behind
        them may stand what someone else still reads.
        """
        if self.shown is None or keys is not self.shown[0] or values is not self.shown[1]:
            return False
        writable = torch.is_inference_mode_enabled() or not self.keys.is_inference()
        return writable and end <= self.keys.shape[2]


def _with_room(old: Tensor, end: int) -> Tensor:
    """Copy keys or values (batch, heads, tokens, head_dim) into memory for twice as many.

    A token's heads stand together in it, as attention reads them.
    """
    batch, heads, tokens, dim = old.shape
    memory = old.new_empty(batch, max(2 * end, _LEAST_ROOM), heads, dim).transpose(1, 2)
    memory[:, :, :tokens] = old
    return memory


def _in_place(*pairs: tuple[Tensor, Tensor]) -> bool:
    """Return whether memory may be written: where no gradient and no graph needs the old values."""
    if torch.compiler.is_compiling() or any(x.requires_grad for pair in pairs for x in pair):
        return False
    return all(
        old.dtype == new.dtype
        and old.device == new.device
        and old.shape[:2] == new.shape[:2]
        and old.shape[3] == new.shape[3]
        for old, new in pairs
    )


@dataclass
class CacheLayer:
    """The keys and values of one layer.

    Attributes:
        keys: (batch, heads, tokens, head_dim), None before the first update.
        values: of the same shape, None before the first update.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    _room: _Room | None = field(default=None, repr=False, compare=False)

    @property
    def is_initialized(self) -> bool:
        """Whether keys and values are stored."""
        return self.keys is not None

    def get_seq_length(self) -> int:
        """Return the number of tokens stored."""
        return 0 if self.keys is None else self.keys.shape[2]

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append tokens.

        Args:
            keys: (batch, heads, new tokens, head_dim).
            values: of the same shape.

        Returns:
            All keys and all values stored, the new ones last.
        """
        if self.keys is not None and self.values is not None:
            pairs = (self.keys, keys), (self.values, values)
            if _in_place(*pairs):
                keys, values = self._grown(*pairs)
            else:
                keys, values = (torch.cat(pair, dim=2) for pair in pairs)
        self.keys, self.values = keys, values
        return keys, values

    def _grown(
        self, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Append to memory that has room left; copying all of it at every token would be slow."""
        held, end = keys[0].shape[2], keys[0].shape[2] + keys[1].shape[2]
        room = self._room
        if room is None or not room.holds(keys[0], values[0], end):
            self._room = None  # its memory goes before the new one's comes
            made = [_with_room(old, end) for old, _ in (keys, values)]
            room = self._room = _Room(made[0], made[1])
        for memory, (_, new) in zip((room.keys, room.values), (keys, values), strict=True):
            memory[:, :, held:end] = new
        room.shown = room.keys[:, :, :end], room.values[:, :, :end]
        return room.shown

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the keys and the values, if there are any, by a function of each."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = function(self.keys), function(self.values)


class DynamicCache:
    """A cache that grows with every update.

    Attributes:
        layers: one CacheLayer for every layer of the model, made with its first update.
    """

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens to a layer.

        Args:
            key_states: (batch, heads, new tokens, head_dim).
            value_states: of the same shape.
            layer_idx: number of the layer.
            *_: ignored; callers of transformers pass further arguments.

        Returns:
            All keys and all values of the layer, the new ones last.
        """
        while len(self.layers) <= layer_idx:
            self.layers.append(CacheLayer())
        return self.layers[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that a layer holds."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the sequences that beam search continues with, in its order (int64 indices)."""
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def crop(self, max_length: int) -> None:
        """Keep the first max_length tokens, or drop the last -max_length when it is negative."""
        keep = max_length if max_length >= 0 else max(self.get_seq_length() + max_length, 0)
        self._change(lambda x: x[:, :, :keep])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence, the copies next to each other."""
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of the given numbers."""
        self._change(lambda x: x[indices])

    def reset(self) -> None:
        """Forget everything."""
        self.layers = []

    def to_legacy_cache(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        """Return a tuple over layers of (keys, values), the form of transformers 4.37."""
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
    """A cache of the decoder's own tokens, and one of the encoder's tokens, which is written once.

    Attributes:
        self_attention_cache: keys and values of the decoder's tokens.
        cross_attention_cache: keys and values of the encoder's tokens.
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
        """Return the number of decoder tokens that a layer holds."""
        return self.self_attention_cache.get_seq_length(layer_idx)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the decoder's own tokens to a layer; see DynamicCache.update."""
        return self.self_attention_cache.update(key_states, value_states, layer_idx)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the sequences that beam search continues with, in both caches."""
        for cache in self._both():
            cache.reorder_cache(beam_idx)

    def crop(self, max_length: int) -> None:
        """Shorten the decoder's own cache; the encoder's stays whole."""
        self.self_attention_cache.crop(max_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of both caches, the copies next to each other."""
        for cache in self._both():
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of the given numbers in both caches."""
        for cache in self._both():
            cache.batch_select_indices(indices)

    def reset(self) -> None:
        """Forget everything."""
        for cache in self._both():
            cache.reset()
        self.is_updated = {}

    def to_legacy_cache(self) -> tuple[tuple[Tensor | None, ...], ...]:
        """Return a tuple over layers.

        Each layer is (keys, values), or (keys, values, cross keys, cross values) where
        cross-attention is stored.
        """
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
    """The encoder's view of a cache object: ours, transformers' or any with the same methods.

    Args:
        store: the cache object, which the caller holds and gets back.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self._cross = getattr(store, "cross_attention_cache", None)

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append keys and values of self-attention to a layer, and return all of it."""
        own = getattr(self.store, "self_attention_cache", self.store)
        k, v = own.update(keys, values, layer)
        return k, v

    def check(self, keys: Tensor, layer: int) -> None:
        """Refuse new keys (batch, heads, tokens, head_dim) that cannot stand behind the stored.

        Raises:
            ValueError: for a cache of another number of texts, or of another model's heads.
        """
        own = getattr(self.store, "self_attention_cache", self.store)
        layers = getattr(own, "layers", ())
        stored = getattr(layers[layer], "keys", None) if layer < len(layers) else None
        if stored is None or not stored.numel():
            return
        if (*stored.shape[:2], stored.shape[3]) != (*keys.shape[:2], keys.shape[3]):
            raise ValueError(
                f"The cache holds keys of shape {tuple(stored.shape)} (batch, heads, tokens, "
                f"head_dim), and keys of shape {tuple(keys.shape)} cannot follow them; it belongs "
                "to other texts or another model."
            )

    def cross_layer(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return the keys and values of a layer's cross-attention, None before they are stored."""
        if self._cross is None or not self.store.is_updated.get(layer):
            return None
        stored = self._cross.layers[layer]
        return stored.keys, stored.values

    def store_cross(self, keys: Tensor, values: Tensor, layer: int) -> None:
        """Store the keys and values of a layer's cross-attention, if the cache takes them."""
        if self._cross is not None:
            self._cross.update(keys, values, layer)
            self.store.is_updated[layer] = True


def as_cache(past_key_values: Any, cross: bool) -> Any:
    """Turn what a caller passed as past_key_values into a cache object.

    Args:
        past_key_values: None for a new cache; a cache object; or a tuple over layers of (keys,
            values) or (keys, values, cross keys, cross values).
        cross: whether a new cache must hold cross-attention too.

    Returns:
        The caller's own cache object, or a new one that holds what was given.

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
