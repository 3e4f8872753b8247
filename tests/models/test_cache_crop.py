"""Cropping a cache: nothing is copied, unless somebody else could see what is written then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastbert
from fastbert.layers import cache_room

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
HELD: dict[str, Callable[[torch.Tensor], Any]] = {
    "the tensor": lambda keys: keys,
    "a view": lambda keys: keys[:, :, 70:],
    "an array": lambda keys: keys.numpy(),
    "DLPack": lambda keys: torch.from_dlpack(keys),
}

NEW = torch.full((1, 1, 2, 1), -1.0)


def filled(tokens: int) -> fastbert.DynamicCache:
    """Return a cache of these tokens, the last ones added one by one."""
    cache = fastbert.DynamicCache()
    first = torch.arange(8.0).reshape(1, 1, 8, 1)
    cache.update(first, first, 0)
    for token in range(8, tokens):
        new = torch.full((1, 1, 1, 1), float(token))
        cache.update(new, new, 0)
    return cache


def told(x: torch.Tensor | None) -> list[float]:
    assert x is not None
    return x.flatten().tolist()


@pytest.mark.parametrize("mode", MODES)
def test_alone_it_stays_in_place(mode: str) -> None:
    with MODES[mode]():
        cache = filled(100)
        layer = cache.layers[0]
        assert layer.keys is not None and layer.values is not None
        places = layer.keys.data_ptr(), layer.values.data_ptr()
        new = torch.full((1, 1, 2, 1), -1.0)
        for keep in (99, 60, 59, -1, 0):
            cache.crop(keep)
            held = layer.keys.shape[2]
            keys, values = cache.update(new, -new, 0)
            assert (keys.data_ptr(), values.data_ptr()) == places
            assert told(keys)[held:] == [-1, -1] and told(values)[held:] == [1, 1]
            del keys, values  # or the next crop would find them held
        assert told(layer.keys) == [-1, -1]


@pytest.mark.parametrize("side", ["keys", "values"])
@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize("mode", MODES)
def test_what_others_hold_stays(mode: str, how: str, side: str) -> None:
    with MODES[mode]():
        cache = filled(100)
        held = HELD[how](getattr(cache.layers[0], side))
        before = torch.as_tensor(held).clone()
        cache.crop(80)
        keys, values = cache.update(NEW, NEW, 0)
        assert told(keys) == told(values) == [*range(80), -1, -1]
        assert torch.equal(torch.as_tensor(held), before)


def test_a_graph_that_saved_it_stays() -> None:
    with torch.no_grad():
        cache = filled(100)
    weight = torch.ones(1, requires_grad=True)
    keys = cache.layers[0].keys
    assert keys is not None
    product = weight * keys  # keeps the keys for its backward pass
    del keys
    with torch.no_grad():
        cache.crop(80)
        cache.update(NEW, NEW, 0)
    product.sum().backward()
    assert weight.grad is not None and weight.grad.item() == sum(range(100))


def test_where_torch_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    with torch.no_grad():
        cache = filled(100)
        cache.crop(80)
        assert cache.layers[0].room is None
        keys, _ = cache.update(NEW, NEW, 0)
        assert told(keys) == [*range(80), -1, -1]


def test_a_loop_of_proposals_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tries tokens and takes some back, as speculative decoding does, at every step."""
    config = fastbert.ApertusConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = fastbert.ApertusForCausalLM(config).eval()
    text = torch.randint(4, 100, (1, 40))
    with torch.inference_mode():
        cache = model(text[:, :20]).past_key_values
        model(text[:, 20:21], past_key_values=cache)
        copies: list[int] = []
        inner = cache_room.with_room

        def counted(old: torch.Tensor, capacity: int) -> torch.Tensor:
            copies.append(capacity)
            return inner(old, capacity)

        monkeypatch.setattr("fastbert.layers.cache_layer.with_room", counted)
        monkeypatch.setattr("fastbert.layers.cache_places.with_room", counted)
        for at in range(21, 38):
            tried = torch.cat([text[:, at : at + 1], torch.full((1, 3), 7)], dim=1)
            model(tried, past_key_values=cache)
            cache.crop(at + 1)
        assert not copies
        found = model(text[:, 38:], past_key_values=cache).logits
        expected = model(text).logits[:, 38:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
