"""Key/value caches of decoders: the keys and values of earlier tokens, which later ones attend to.

Shapes are those of transformers: keys and values are (batch, heads, tokens, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastbert.layers.cache_room import LEAST_ROOM, Room, with_room, with_rows


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
        room: the memory that they stand in, where more tokens can be added to it.
        reserved: the number of tokens that room is made for at least.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    room: Room | None = field(default=None, repr=False, compare=False)
    reserved: int = field(default=0, repr=False, compare=False)

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
        room = self.room
        if room is None or not room.holds(keys[0], values[0], end):
            self.room = None  # its memory goes before the new one's comes
            made = [with_room(old, self.capacity(end)) for old, _ in (keys, values)]
            room = self.room = Room(made[0], made[1])
        for memory, (_, new) in zip((room.keys, room.values), (keys, values), strict=True):
            memory[:, :, held:end] = new
        return room.show(end)

    def capacity(self, end: int) -> int:
        """Return how many tokens room is made for where `end` must fit."""
        return self.reserved if end <= self.reserved else max(2 * end, LEAST_ROOM)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these sequences, in this order, with the room that there was behind them."""
        keys, values, room = self.keys, self.values, self.room
        if keys is None or values is None:
            return
        if room is None or not room.holds(keys, values, keys.shape[2]):
            order = torch.tensor(rows, dtype=torch.int64, device=keys.device)
            self.change(lambda x: x.index_select(0, order))
            return
        capacity = room.keys.shape[2]
        self.room = Room(with_rows(keys, rows, capacity), with_rows(values, rows, capacity))
        self.keys, self.values = self.room.show(keys.shape[2])

    def crop(self, tokens: int) -> None:
        """Keep the first tokens, and the room behind them where nobody else can read it."""
        keys, values, room = self.keys, self.values, self.room
        if keys is None or values is None or tokens >= keys.shape[2]:
            return
        if room is None or not room.holds(keys, values, keys.shape[2]):
            self.change(lambda x: x[:, :, :tokens])
            return
        del keys, values  # or they would count as somebody else's
        self.keys, self.values = room.show(tokens)
        if not room.alone():
            self.room = None

    def change(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace the keys and the values, if there are any, by a function of each."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = function(self.keys), function(self.values)


class DynamicCache:
    """A cache that grows with every update.

    Attributes:
        layers: one CacheLayer for every layer of the model, made with its first update.
        skipped: bool (batch, tokens), where padding stood whose keys were not computed; None where
            there is none.
    """

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []
        self.skipped: Tensor | None = None
        self._reserved = 0

    def reserve(self, tokens: int) -> None:
        """Have room made for so many tokens at once, rather than little by little."""
        self._reserved = tokens
        for layer in self.layers:
            layer.reserved = tokens

    def grow(self, count: int) -> None:
        """Make layers up to this number, empty ones."""
        while len(self.layers) < count:
            self.layers.append(CacheLayer(reserved=self._reserved))

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
        self.grow(layer_idx + 1)
        return self.layers[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that a layer holds."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the sequences that beam search continues with, in its order (int64 indices).

        Raises:
            IndexError: for a sequence that is not there.
        """
        rows, count = beam_idx.tolist(), self._sequences()
        if count == 0 or rows == list(range(count)):
            return
        if not all(0 <= row < count for row in rows):
            raise IndexError(f"The cache holds sequences 0 to {count - 1}; {rows} were asked for.")
        for layer in self.layers:
            layer.select(rows)
        if self.skipped is not None:
            self.skipped = self.skipped[rows]

    def crop(self, max_length: int) -> None:
        """Keep the first max_length tokens, or drop the last -max_length when it is negative."""
        keep = max_length if max_length >= 0 else max(self.get_seq_length() + max_length, 0)
        for layer in self.layers:
            layer.crop(keep)
        if self.skipped is not None:
            self.skipped = self.skipped[:, :keep]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence, the copies next to each other."""
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of the given numbers."""
        self._change(lambda x: x[indices])

    def reset(self) -> None:
        """Forget everything."""
        self.layers = []
        self.skipped = None

    def to_legacy_cache(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        """Return a tuple over layers of (keys, values), the form of transformers 4.37."""
        return tuple((layer.keys, layer.values) for layer in self.layers)

    def _sequences(self) -> int:
        stored = [layer.keys for layer in self.layers if layer.keys is not None]
        return stored[0].shape[0] if stored else 0

    def _change(self, function: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            layer.change(function)
        if self.skipped is not None:
            self.skipped = function(self.skipped[:, None, :, None])[:, 0, :, 0]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[tuple[Tensor | None, ...]]:
        return iter(self.to_legacy_cache())

    def __getitem__(self, index: int) -> tuple[Tensor | None, ...]:
        return self.to_legacy_cache()[index]


class StaticCache(DynamicCache):
    """A cache with memory for a number of tokens that is known ahead, and for no more.

    Other than in transformers, `layers[i].keys` shows the tokens that are stored, and no others.

    Args:
        config: accepted as in transformers; sizes are those of the first tokens that come.
        max_cache_len: the number of tokens that there is room for.

    Raises:
        ValueError: for a number that is not positive.
    """

    def __init__(self, config: Any = None, max_cache_len: int = 0) -> None:
        super().__init__()
        if max_cache_len < 1:
            raise ValueError(
                f"A StaticCache needs room for at least one token; max_cache_len={max_cache_len} "
                "was given."
            )
        self.max_cache_len = max_cache_len
        self.reserve(max_cache_len)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens to a layer; see DynamicCache.update.

        Raises:
            ValueError: for more tokens than there is room for.
        """
        self.check_room(self.get_seq_length(layer_idx) + key_states.shape[2])
        return super().update(key_states, value_states, layer_idx, *rest)

    def check_room(self, tokens: int) -> None:
        """Refuse more tokens than there is room for.

        Raises:
            ValueError: saying how many fit.
        """
        if tokens > self.max_cache_len:
            raise ValueError(
                f"The cache would hold {tokens} tokens, but it was made for {self.max_cache_len}; "
                "make it with a larger max_cache_len."
            )

    def get_max_cache_shape(self) -> int:
        """Return the number of tokens that there is room for."""
        return self.max_cache_len


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

    def stored(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return what a layer holds for self-attention; None where there is nothing."""
        own = getattr(self.store, "self_attention_cache", self.store)
        layers = getattr(own, "layers", ())
        held = layers[layer] if layer < len(layers) else None
        if held is None or getattr(held, "keys", None) is None or not held.keys.numel():
            return None
        return held.keys, held.values

    def check(self, keys: Tensor, layer: int) -> None:
        """Refuse new keys (batch, heads, tokens, head_dim) that cannot stand behind the stored.

        Raises:
            ValueError: for a cache of another number of texts, or of another model's heads.
        """
        held = self.stored(layer)
        if held is None:
            return
        stored = held[0]
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


def check_grown(keys: Tensor, tokens: int) -> None:
    """Refuse what a cache returned, keys (batch, heads, tokens, head_dim), if it is not all tokens.

    Raises:
        ValueError: for a cache that returns more than it holds, such as transformers' StaticCache.
    """
    if keys.shape[2] != tokens:
        raise ValueError(
            f"The cache returned keys of shape {tuple(keys.shape)} (batch, heads, tokens, "
            f"head_dim) where it holds {tokens} tokens; use a DynamicCache, which grows with every "
            "token."
        )


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
