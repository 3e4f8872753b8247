"""What a model sees of the cache that its caller gave: ours, transformers' or any alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastbert.layers.kv_cache import DynamicCache, EncoderDecoderCache


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
            ValueError: for a cache of another number of texts, of another model's heads, or of
                another precision.
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
        if stored.dtype != keys.dtype:
            raise ValueError(
                f"The cache holds keys of {stored.dtype}, and keys of {keys.dtype} cannot follow "
                "them: it was filled by another model, or before this one was converted; begin "
                "with a new cache."
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
            "token, or fastbert.StaticCache."
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
