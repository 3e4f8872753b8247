"""Long texts cost no memory but their cache, which is copied only where its rows change.

The mechanism: a pass works in memory that the decoder keeps and writes to a cache reserved ahead;
another order of beams is copied once, into memory with the same room, and not at all where every
beam stays in its place.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from apertus_pair import ids, pair

from fastbert.layers.kv_cache import DynamicCache, StaticCache

PAGE = 4096


def resident() -> int:
    """Return the bytes of memory that this process holds at the moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def addresses(cache: DynamicCache) -> list[int]:
    return [x.data_ptr() for layer in cache.layers for x in (layer.keys, layer.values)]  # type: ignore[union-attr]


@torch.inference_mode()
def test_ten_thousand_tokens_take_no_memory() -> None:
    ours, _ = pair(dtype=torch.float32)
    cache = StaticCache(ours.config, max_cache_len=520)
    token, prompt = ids(1, 1), ids(1, 8)
    held, arenas = [], []
    for step in range(10_000):
        if step % 512 == 0:  # the next text
            cache.reset()
            ours(prompt, past_key_values=cache)
        ours(token, past_key_values=cache)
        if step in (2_000, 9_999):
            held.append(resident())
            arenas.append(ours.model.decoder_cache._entry.encoder.arena_bytes)
    assert held[1] - held[0] < 1 << 20
    assert arenas[0] == arenas[1]


def test_a_reserved_cache_is_filled_by_generating() -> None:
    """It is refused before the first step where it is too short, and keeps its memory else."""
    ours, _ = pair(dtype=torch.float32)
    prompt = ids(2, 6)
    short = StaticCache(ours.config, max_cache_len=8)
    with pytest.raises(ValueError, match="hold 9 tokens, but it was made for 8"):
        ours.generate(prompt, past_key_values=short, max_new_tokens=4)
    assert short.get_seq_length() == 0
    for length in (9, 100):
        cache = StaticCache(ours.config, max_cache_len=length)
        found = ours.generate(prompt, past_key_values=cache, max_new_tokens=4)
        assert torch.equal(found, ours.generate(prompt, max_new_tokens=4))
        assert cache.layers[0].room.keys.shape[2] == length  # type: ignore[union-attr]
    placed = addresses(cache)
    ours.generate(found, past_key_values=cache, max_new_tokens=50)
    assert addresses(cache) == placed


@torch.inference_mode()
def test_a_growing_cache_takes_what_it_holds() -> None:
    ours, _ = pair(dtype=torch.float32)
    cache, token = DynamicCache(), ids(1, 1)
    ours(ids(1, 8), past_key_values=cache)
    for _ in range(1_000):
        ours(token, past_key_values=cache)
    for layer in cache.layers:
        assert layer.room is not None and layer.room.keys.shape[2] < 2 * 1_009 + 64


@pytest.mark.parametrize("rows", [[1, 0, 1], [2, 2, 2], [0, 0], [0, 1, 2, 2]])
@torch.inference_mode()
def test_another_order_keeps_the_room(rows: list[int]) -> None:
    ours, _ = pair(dtype=torch.float32)
    cache = DynamicCache()
    cache.reserve(40)
    ours(ids(3, 8), past_key_values=cache)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]  # type: ignore[union-attr]
    given_out = cache.layers[0].keys
    cache.reorder_cache(torch.tensor(rows))
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys[rows])  # type: ignore[arg-type]
        assert torch.equal(layer.values, values[rows])  # type: ignore[arg-type]
    assert torch.equal(given_out, before[0][0])  # type: ignore[arg-type]
    placed = addresses(cache)
    ours(ids(len(rows), 1), past_key_values=cache)
    assert addresses(cache) == placed
    assert cache.layers[0].room.keys.shape[2] == 40  # type: ignore[union-attr]


@torch.inference_mode()
def test_the_same_order_copies_nothing() -> None:
    ours, _ = pair(dtype=torch.float32)
    cache = DynamicCache()
    cache.reserve(40)
    ours(ids(3, 8), past_key_values=cache)
    placed = addresses(cache)
    cache.reorder_cache(torch.tensor([0, 1, 2]))
    assert addresses(cache) == placed


@pytest.mark.parametrize("rows", [[0, 1, 3], [-1, 0, 1]])
@torch.inference_mode()
def test_sequences_that_are_not_there_are_refused(rows: list[int]) -> None:
    ours, _ = pair(dtype=torch.float32)
    cache = DynamicCache()
    ours(ids(3, 8), past_key_values=cache)
    with pytest.raises(IndexError, match="holds sequences 0 to 2"):
        cache.reorder_cache(torch.tensor(rows))
