"""Key/value caches of decoders: the keys and values of earlier tokens, which later ones attend to.

Shapes are those of transformers: keys and values are (batch, heads, tokens, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastbert.layers.cache_layer import CacheLayer
from fastbert.layers.checked import whole


class DynamicCache:
    """A cache that grows with every update.

    Args:
        ddp_cache_data: keys and values to begin with, (keys, values) for every layer.
        config: accepted as in transformers; sizes are those of the first tokens that come.
        offloading: False: keys and values stay where they are.
        offload_only_non_sliding: accepted without effect.

    Raises:
        TypeError: for data that are no keys and values.
        ValueError: for offloading.

    Attributes:
        layers: one CacheLayer for every layer of the model, made with its first update.
        skipped: bool (batch, tokens), where padding stood whose keys were not computed; None where
            there is none.
        reserved: the number of tokens that room is made for at once.
    """

    def __init__(
        self,
        ddp_cache_data: Iterable[Sequence[Tensor]] | None = None,
        config: Any = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = False,
    ) -> None:
        if offloading:
            raise ValueError("A cache's keys and values stay where they are: offloading=False.")
        self.layers: list[CacheLayer] = []
        self.skipped: Tensor | None = None
        self.reserved = 0
        if ddp_cache_data is None:
            return
        if not isinstance(ddp_cache_data, Sequence | Iterator | DynamicCache):
            raise TypeError(
                "A cache begins with pairs of keys and values, one for every layer, not with a "
                f"{type(ddp_cache_data).__name__}; a configuration is given as config=..."
            )
        for index, (keys, values, *_) in enumerate(ddp_cache_data):
            self.update(keys, values, index)

    @staticmethod
    def from_legacy_cache(
        past_key_values: Iterable[Sequence[Tensor]] | None = None,
    ) -> DynamicCache:
        """Make a cache of a tuple over layers of (keys, values); see to_legacy_cache."""
        return DynamicCache(past_key_values)

    def reserve(self, tokens: int) -> None:
        """Have room made for so many tokens at once, rather than little by little."""
        self.reserved = tokens
        for layer in self.layers:
            layer.reserved = tokens

    def grow(self, count: int) -> None:
        """Make layers up to this number, empty ones."""
        while len(self.layers) < count:
            self.layers.append(CacheLayer(reserved=self.reserved))

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

    def reorder_cache(self, beam_idx: Tensor | Sequence[int]) -> None:
        """Select the sequences that beam search continues with, in its order (int64 indices).

        Raises:
            IndexError: for a sequence that is not there.
        """
        rows = beam_idx.tolist() if isinstance(beam_idx, Tensor) else list(beam_idx)
        count = self.batch_size
        if count == 0 or rows == list(range(count)):
            return
        if not all(0 <= row < count for row in rows):
            raise IndexError(f"The cache holds sequences 0 to {count - 1}; {rows} were asked for.")
        for layer in self.layers:
            layer.select(rows)
        if self.skipped is not None:
            self.skipped = self.skipped[rows]

    def crop(self, max_length: int) -> None:
        """Keep the first max_length tokens, or drop the last -max_length when it is negative.

        Raises:
            TypeError: for what is no whole number.
        """
        max_length = whole("max_length", max_length)
        keep = max_length if max_length >= 0 else max(self.get_seq_length() + max_length, 0)
        for layer in self.layers:
            layer.crop(keep)
        if self.skipped is not None:
            self.skipped = self.skipped[:, :keep]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence, the copies next to each other.

        Raises:
            ValueError: for no repetition at all.
        """
        repeats = whole("repeats", repeats, least=1)
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor | Sequence[int]) -> None:
        """Keep the sequences of the given numbers, or where a mask is True, with their room.

        Raises:
            IndexError: for a sequence that is not there.
        """
        given = indices.tolist() if isinstance(indices, Tensor) else list(indices)
        count = self.batch_size
        if given and all(isinstance(one, bool) for one in given):
            if len(given) != count:
                raise IndexError(f"The cache holds {count} sequences, and the mask {len(given)}.")
            given = [row for row, kept in enumerate(given) if kept]
        self.reorder_cache([row + count if row < 0 else row for row in given])

    def attention_mask(self, new: int = 1) -> Tensor:
        """Return the mask of a pass that adds `new` tokens to every sequence.

        Returns:
            int64 (batch, tokens + new), zero where padding stands whose keys were not computed.
        """
        held = self.get_seq_length()
        mask = torch.ones(self.batch_size, held + new, dtype=torch.int64, device="cpu")
        if self.skipped is not None:
            mask[:, : self.skipped.shape[1]] = ~self.skipped[:, :held].cpu()
        keys = self.layers[0].keys if self.layers else None
        return mask if keys is None else mask.to(keys.device)

    def reset(self) -> None:
        """Forget everything."""
        self.layers = []
        self.skipped = None

    def to_legacy_cache(self) -> tuple[tuple[Tensor | None, Tensor | None], ...]:
        """Return a tuple over layers of (keys, values), the form of transformers 4.37."""
        return tuple((layer.keys, layer.values) for layer in self.layers)

    @property
    def is_initialized(self) -> bool:
        """Whether keys and values are stored."""
        return bool(self.layers) and all(layer.is_initialized for layer in self.layers)

    def get_max_cache_shape(self) -> int:
        """Return the number of tokens that there is room for; -1, since it grows."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return how many keys a pass of so many tokens sees, and where they begin."""
        return self.get_seq_length(layer_idx) + query_length, 0

    @property
    def batch_size(self) -> int:
        """The number of sequences; 0 while nothing is stored."""
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
        offloading: False: keys and values stay where they are.
        **_: accepted as in transformers: max_batch_size, device and dtype follow the first tokens.

    Raises:
        TypeError: for what is no whole number.
        ValueError: for a number that is not positive.
    """

    def __init__(
        self, config: Any = None, max_cache_len: int = 0, offloading: bool = False, **_: Any
    ) -> None:
        super().__init__(offloading=offloading)
        max_cache_len = whole("max_cache_len", max_cache_len)
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

    def reserve(self, tokens: int) -> None:
        """Make sure that so many tokens fit; all room is made at once.

        Raises:
            ValueError: for more tokens than there is room for.
        """
        self.check_room(tokens)
        super().reserve(self.max_cache_len)

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
