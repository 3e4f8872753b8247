"""Where native code writes a pass's keys and values in a cache, and how they are shown then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.layers.cache_layer import CacheLayer
from fastbert.layers.cache_room import Room, with_room
from fastbert.layers.kv_cache import DynamicCache, StaticCache
from fastbert.ops.operands import obstacle
from fastbert.runtime.pages import lasting


@dataclass(frozen=True)
class CacheSizes:
    """What a pass needs of a cache.

    Attributes:
        layers: number of layers.
        batch, heads, dim: of keys and values (batch, heads, tokens, dim).
        dtype: of both.
        end: tokens that the cache holds when the pass is over.
    """

    layers: int
    batch: int
    heads: int
    dim: int
    dtype: torch.dtype
    end: int


@dataclass(frozen=True)
class CacheTable:
    """The memory of all layers of a cache: rows of (heads, dim), `capacity` for every sequence.

    Attributes:
        addresses: int64 (layers, 2), of every layer's keys and values.
        capacity: rows of a sequence.
        rows: rows of a layer's memory.
        row_stride, head_stride: elements between rows and between the heads of a row.
    """

    addresses: Tensor
    capacity: int
    rows: int
    row_stride: int
    head_stride: int


def unwritable(cache: Any, sizes: CacheSizes) -> str | None:
    """Return None where native code may write to a cache, else the reason, as a clause."""
    if type(cache) not in (DynamicCache, StaticCache):
        return f"the cache is a {type(cache).__module__}.{type(cache).__name__}"
    if any(type(layer) is not CacheLayer for layer in cache.layers):
        return "a layer of the cache is not as fastbert made it"
    if len(cache.layers) > sizes.layers:
        return "the cache has more layers than the model"
    stored = [layer.keys is not None for layer in cache.layers]
    if any(stored) and not (all(stored) and len(stored) == sizes.layers):
        return "some layers of the cache are empty"
    length = cache.get_seq_length()
    for layer in cache.layers:
        for held in (layer.keys, layer.values):
            if held is None:
                continue
            if held.shape != (sizes.batch, sizes.heads, length, sizes.dim):
                return "the cache holds keys of another shape"
            if held.dtype != sizes.dtype or held.device.type != "cpu" or held.requires_grad:
                return "the cache holds keys of another precision or device, or with gradients"
            if obstacle(held) is not None:
                return "the cache holds tensors that native code cannot read"
    return None


def opened(cache: DynamicCache, sizes: CacheSizes) -> CacheTable:
    """Return the memory of a cache, made or enlarged so that all tokens fit.

    Args:
        cache: one that `unwritable` has nothing against.
        sizes: what the pass needs.

    Raises:
        ValueError: for more tokens than a StaticCache has room for.
    """
    if isinstance(cache, StaticCache):
        cache.check_room(sizes.end)
    cache.grow(sizes.layers)
    rooms = [_room_of(layer, sizes, layer.capacity(sizes.end)) for layer in cache.layers]
    most = max(room.keys.shape[2] for room in rooms)
    # Layers that were filled one by one may have room for different numbers of tokens.
    rooms = [
        room if room.keys.shape[2] == most else _room_of(layer, sizes, most, at_least=most)
        for room, layer in zip(rooms, cache.layers, strict=True)
    ]
    return _table(rooms)


def show(cache: DynamicCache, past: int, end: int, first: Tensor | None) -> None:
    """Show what a pass has written: every layer holds `end` tokens.

    Args:
        cache: the cache.
        past: columns that it held before.
        end: columns that it holds now.
        first: int64 (batch,), the column of each sequence's first token; None for column 0. Padding
            before it that is new was not computed, and holds zeros.
    """
    for layer in cache.layers:
        assert layer.room is not None
        layer.keys, layer.values = layer.room.show(end)
    skipped = None
    if first is not None:
        skipped = torch.arange(past, end, device="cpu") < first[:, None]
        for row in torch.nonzero(skipped.any(dim=1)).flatten().tolist():
            for layer in cache.layers:
                assert layer.keys is not None and layer.values is not None
                layer.keys[row, :, past : int(first[row])] = 0
                layer.values[row, :, past : int(first[row])] = 0
    if cache.skipped is None and (skipped is None or not bool(skipped.any())):
        return
    if skipped is None:
        assert layer.keys is not None
        skipped = torch.zeros(layer.keys.shape[0], end - past, dtype=torch.bool, device="cpu")
    cache.skipped = torch.cat([skipped_columns(cache, skipped.shape[0], past), skipped], dim=1)


def skipped_columns(cache: Any, batch: int, past: int) -> Tensor:
    """Return bool (batch, past), where a cache holds no keys since padding stood there."""
    known = getattr(cache, "skipped", None)
    if known is None:
        return torch.zeros(batch, past, dtype=torch.bool, device="cpu")
    return F.pad(known[:, :past], (0, max(past - known.shape[1], 0)))


def check_skipped(cache: Any, mask: Tensor | None) -> None:
    """Refuse a mask that shows columns whose keys were never computed.

    Args:
        cache: the cache of the pass, None without one.
        mask: the mask of the pass.

    Raises:
        ValueError: for such a mask.
    """
    skipped = getattr(cache, "skipped", None)
    if not isinstance(skipped, Tensor) or not bool(skipped.any()):
        return
    hidden = None
    if mask is not None and mask.dim() == 2 and mask.shape[0] in (1, skipped.shape[0]):
        hidden = mask[:, : skipped.shape[1]].to(skipped.device) == 0
    if hidden is None or bool((skipped[:, : hidden.shape[1]] & ~hidden).any()):
        raise ValueError(
            "The cache holds texts behind padding, which was not computed; pass the attention_mask "
            "(batch, cached + new tokens) that hides the same padding."
        )


def _room_of(layer: CacheLayer, sizes: CacheSizes, capacity: int, at_least: int = 0) -> Room:
    """Return the memory of a layer, a new one of this capacity where its own is too small."""
    keys, values, room = layer.keys, layer.values, layer.room
    needed = max(sizes.end, at_least)
    if keys is None or values is None:
        shape = (sizes.batch, capacity, sizes.heads, sizes.dim)
        if room is not None and room.keys.dtype == sizes.dtype and room.shown is None:
            batch, heads, held, dim = room.keys.shape
            if (batch, heads, dim) == (shape[0], *shape[2:]) and held >= needed:
                return room
        layer.room = None  # its memory goes before the new one's comes
        made = [lasting(shape, sizes.dtype, torch.device("cpu")) for _ in range(2)]
        layer.room = Room(made[0].transpose(1, 2), made[1].transpose(1, 2))
        return layer.room
    if room is not None and room.holds(keys, values, needed):
        return room
    layer.room = room = None
    layer.room = Room(with_room(keys, capacity), with_room(values, capacity))
    layer.keys, layer.values = layer.room.show(keys.shape[2])
    return layer.room


def _table(rooms: Sequence[Room]) -> CacheTable:
    found = [(room.keys, room.values) for room in rooms]
    batch, _, capacity, _ = found[0][0].shape
    row, head = found[0][0].stride(2), found[0][0].stride(1)
    addresses = torch.tensor([[k.data_ptr(), v.data_ptr()] for k, v in found], device="cpu")
    return CacheTable(addresses, capacity, batch * capacity, row, head)
