"""Sequences that join a running batch: one cache of several.

What a server does between two steps: texts that have ended leave by `batch_select_indices`, and new
ones, read into caches of their own, join here. The bits of no text depend on its neighbours, so
neither do those of one that joins or stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastbert.layers.cache_checks import check_layers
from fastbert.layers.cache_layer import CacheLayer
from fastbert.layers.cache_places import skipped_columns
from fastbert.layers.cache_room import Room
from fastbert.layers.kv_cache import DynamicCache
from fastbert.runtime.pages import lasting


@torch.no_grad()
def join_caches(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Make one cache of the texts of several, in their order.

    Texts end in the same column, behind padding where they are shorter than the longest, and no
    column is left that is padding in all of them. `attention_mask` of the result says where texts
    stand. The caches given are left as they are; room is reserved as in the one that reserved most.

    Args:
        caches: at least one, each filled by passes without gradients of the same model; padding
            only before the texts.

    Raises:
        TypeError: for caches of other classes.
        ValueError: for no cache, an empty one, or caches of different models.
    """
    _check(caches)
    texts = [text for cache in caches for text in _texts(cache)]
    longest = max(cache.get_seq_length() - first for cache, _, first in texts)
    joined = DynamicCache()
    joined.reserve(max(cache.reserved for cache in caches))
    joined.grow(len(caches[0].layers))
    for index, layer in enumerate(joined.layers):
        _fill(layer, [_of_text(cache, index, row, first) for cache, row, first in texts], longest)
    skipped = torch.zeros(len(texts), longest, dtype=torch.bool, device="cpu")
    for row, (cache, _, first) in enumerate(texts):
        skipped[row, : longest - (cache.get_seq_length() - first)] = True
    joined.skipped = skipped if bool(skipped.any()) else None
    return joined


def _texts(cache: DynamicCache) -> list[tuple[DynamicCache, int, int]]:
    """List the texts of a cache: itself, their row, and the column where they begin."""
    skipped = skipped_columns(cache, cache.batch_size, cache.get_seq_length())
    return [(cache, row, int(count)) for row, count in enumerate(skipped.sum(dim=1))]


def _of_text(cache: DynamicCache, index: int, row: int, first: int) -> tuple[Tensor, Tensor]:
    layer = cache.layers[index]
    assert layer.keys is not None and layer.values is not None
    return layer.keys[row, :, first:], layer.values[row, :, first:]


def _fill(layer: CacheLayer, texts: Sequence[tuple[Tensor, Tensor]], longest: int) -> None:
    """Put keys and values (heads, tokens, head_dim) into a layer, each behind zeros."""
    keys = texts[0][0]
    heads, _, dim = keys.shape
    shape = (len(texts), layer.capacity(longest), heads, dim)
    memory = [lasting(shape, keys.dtype, keys.device).transpose(1, 2) for _ in range(2)]
    for row, text in enumerate(texts):
        for place, held in zip(memory, text, strict=True):
            place[row, :, : longest - held.shape[1]] = 0
            place[row, :, longest - held.shape[1] : longest] = held
    layer.room = Room(memory[0], memory[1])
    layer.keys, layer.values = layer.room.show(longest)


def _check(caches: Sequence[DynamicCache]) -> None:
    if not caches:
        raise ValueError("There is no cache to join; give at least one.")
    kinds: set[tuple[object, ...]] = set()
    for cache in caches:
        if not isinstance(cache, DynamicCache):
            raise TypeError(
                f"Caches that join are fastbert.DynamicCache or StaticCache, not "
                f"{type(cache).__module__}.{type(cache).__name__}."
            )
        check_layers(cache, len(cache.layers))
        keys = cache.layers[0].keys if cache.layers else None
        if keys is None or not keys.numel():
            raise ValueError("A cache that joins others holds a text; one of these is empty.")
        kinds.add((len(cache.layers), keys.shape[1], keys.shape[3], keys.dtype, keys.device))
    if len(kinds) > 1:
        listed = "; ".join(", ".join(map(str, kind)) for kind in kinds)
        raise ValueError(
            "Caches that join belong to one model, but these differ in layers, heads, head_dim, "
            f"precision or device: {listed}."
        )
