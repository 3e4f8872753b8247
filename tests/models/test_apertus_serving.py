"""Texts join a running batch and leave it, and each is written as if it were alone.

The mechanism: `join_caches` puts caches of different lengths into one, ending in the same column;
the engine computes each row by itself, from the column where it begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from apertus_pair import close, ids, pair
from torch import Tensor

import fastbert
from fastbert.layers.kv_cache import DynamicCache, StaticCache
from fastbert.modeling.quantization import quantize


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def decoder(kind: str) -> Any:
    ours, _ = pair(dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32)
    if kind == "modules":
        ours.model.norm.register_forward_hook(lambda *_: None)
    return quantize(ours) if kind == "int8" else ours


def alone(model: Any, prompt: Tensor, steps: int) -> list[Tensor]:
    """Return the scores of every step of a text."""
    cache = DynamicCache()
    scores = [model(prompt, past_key_values=cache, logits_to_keep=1).logits[0, -1]]
    for _ in range(steps - 1):
        token = scores[-1].argmax()[None, None]
        scores.append(model(token, past_key_values=cache).logits[0, -1])
    return scores


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "modules"])
def test_texts_that_join_and_leave_are_written_as_alone(kind: str) -> None:
    model, rng = decoder(kind), random.Random(kind)
    jobs = [(ids(1, rng.randint(1, 30), seed=n), rng.randint(1, 15)) for n in range(12)]
    written: list[list[Tensor]] = [[] for _ in jobs]
    waiting, running, cache = list(range(len(jobs))), [], None
    tokens = torch.empty(0, dtype=torch.long)
    sizes = set()
    while waiting or running:
        for _ in range(rng.randint(0, 3)):
            if waiting:
                job = waiting.pop(0)
                out = model(jobs[job][0], use_cache=True, logits_to_keep=1)
                written[job].append(out.logits[0, -1])
                cache = fastbert.join_caches([*([] if cache is None else [cache]), out[1]])
                tokens = torch.cat([tokens, out.logits[:, -1].argmax(-1)])
                running.append(job)
        going = torch.tensor([len(written[job]) < jobs[job][1] for job in running]).bool()
        running = [job for job, on in zip(running, going.tolist(), strict=True) if on]
        tokens = tokens[going]
        if not running:
            cache = None
            continue
        assert cache is not None
        cache.batch_select_indices(going)
        sizes.add(len(running))
        mask = cache.attention_mask()
        logits = model(tokens[:, None], attention_mask=mask, past_key_values=cache).logits[:, -1]
        tokens = logits.argmax(-1)
        for job, row in zip(running, logits, strict=True):
            written[job].append(row)
    assert len(sizes) > 3
    for (prompt, steps), found in zip(jobs, written, strict=True):
        expected = alone(model, prompt, steps)
        assert len(found) == steps
        if kind == "modules":
            close(torch.stack(found), torch.stack(expected), 1e-5)
        else:
            assert torch.equal(torch.stack(found), torch.stack(expected))


def test_padding_that_all_have_goes_and_room_stays() -> None:
    model = decoder("float32")
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :5], mask[1, :2] = 0, 0
    cache = StaticCache(model.config, max_cache_len=40)
    batch = ids(3, 9)
    model(batch, attention_mask=mask, past_key_values=cache)
    cache.batch_select_indices(torch.tensor([0, 1]))
    joined = fastbert.join_caches([cache])
    assert type(joined) is DynamicCache and joined.get_seq_length() == 7
    assert joined.attention_mask(2).tolist() == [[0] * 3 + [1] * 6, [1] * 9]
    assert cache.get_seq_length() == 9 and cache.batch_size == 2
    assert cache.attention_mask(0).tolist() == mask[:2].tolist()
    placed = joined.layers[0].keys.data_ptr()  # type: ignore[union-attr]
    new = ids(2, 33, seed=4)
    found = model(new, attention_mask=joined.attention_mask(33), past_key_values=joined).logits
    assert joined.layers[0].keys.data_ptr() == placed  # type: ignore[union-attr]
    for row, first in ((0, 5), (1, 2)):
        text = torch.cat([batch[row : row + 1, first:], new[row : row + 1]], 1)
        close(found[row], model(text).logits[0, -33:], 1e-5)
    with pytest.raises(ValueError, match="behind padding"):
        model(ids(2, 1), past_key_values=joined)


@pytest.mark.parametrize("chosen", [[2, 0], [-1], [False, True, True], [1, 1, 1, 0]])
def test_selecting_keeps_the_room(chosen: list[Any]) -> None:
    model, batch = decoder("float32"), ids(3, 8)
    cache = DynamicCache()
    cache.reserve(40)
    model(batch, past_key_values=cache)
    cache.batch_select_indices(torch.tensor(chosen))
    placed = cache.layers[0].keys.data_ptr()  # type: ignore[union-attr]
    kept = batch[torch.tensor(chosen)]
    new = ids(len(kept), 2, seed=3)
    close(
        model(new, past_key_values=cache).logits,
        model(torch.cat([kept, new], 1)).logits[:, -2:],
        1e-5,
    )
    assert cache.layers[0].keys.data_ptr() == placed  # type: ignore[union-attr]


def test_what_cannot_join() -> None:
    model = decoder("float32")
    one = model(ids(1, 3)).past_key_values
    with pytest.raises(ValueError, match="no cache to join"):
        fastbert.join_caches([])
    with pytest.raises(ValueError, match="one of these is empty"):
        fastbert.join_caches([one, DynamicCache()])
    with pytest.raises(TypeError, match="not transformers"):
        fastbert.join_caches([one, transformers.DynamicCache()])
    other, _ = pair(dtype=torch.float32, num_key_value_heads=1)
    with pytest.raises(ValueError, match="belong to one model"):
        fastbert.join_caches([one, other(ids(1, 3)).past_key_values])
    with pytest.raises(IndexError, match="holds sequences 0 to 0"):
        one.batch_select_indices(torch.tensor([1]))
