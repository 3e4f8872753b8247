"""A pass of Apertus as one native call gives what its modules give, alone and in any batch.

The mechanism: weights packed once and followed, tokens without padding, keys and values written in
place into a cache that has room, and the modules for whatever the engine does not compute.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from apertus_pair import close, exact_norms, ids, pair
from torch import Tensor, nn

import fastbert
from fastbert.engine.cpu_decoder import CpuDecoder
from fastbert.kernels import native
from fastbert.layers.kv_cache import DynamicCache, StaticCache

DTYPES = (torch.float32, torch.bfloat16)
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True, scope="module")
def exact() -> Iterator[None]:
    yield from exact_norms()


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Count the native passes within the block, in a list of their tokens."""
    passes: list[int] = []
    decode = CpuDecoder.decode

    def watched(self: Any, inputs: Any, *rest: Any) -> Any:
        out = decode(self, inputs, *rest)
        if out is not None:
            passes.append(inputs.total)
        return out

    CpuDecoder.decode = watched  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        CpuDecoder.decode = decode  # type: ignore[method-assign]


def by_modules(model: Any) -> Any:
    """Return a copy of a model whose passes call its modules."""
    other = copy.deepcopy(model)
    other.model.norm.register_forward_hook(lambda *_: None)
    return other


SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "equal-heads": {"num_key_value_heads": 4},
    "one-key-head": {"num_key_value_heads": 1, "attention_bias": True},
    "head-dim": {"head_dim": 16},
    "silu": {"hidden_act": "silu"},
    "tied": {"tie_word_embeddings": True},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 500.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_hidden_states(name: str, dtype: torch.dtype) -> None:
    ours, _ = pair(dtype=dtype, **SHAPES[name])
    _, theirs = pair(**SHAPES[name])  # in float64
    theirs.load_state_dict({k: v.double() for k, v in ours.state_dict().items()})
    batch = ids(2, 9)
    with counted() as passes:
        found = ours(batch)
        hidden = ours.model(batch)
    assert passes == [18, 18]
    close(found.logits, theirs(batch).logits, BOUNDS[dtype])
    close(hidden.last_hidden_state, theirs.model(batch).last_hidden_state, BOUNDS[dtype])
    other = by_modules(ours)(batch)
    for layer, others in zip(found.past_key_values, other.past_key_values, strict=True):
        for one, two in zip(layer, others, strict=True):
            close(one, two, BOUNDS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_continue_a_cache(dtype: torch.dtype) -> None:
    ours, _ = pair(dtype=dtype)
    batch = ids(2, 30)
    whole = ours(batch).logits
    for cache in (DynamicCache(), StaticCache(ours.config, max_cache_len=30)):
        parts = [
            ours(part, past_key_values=cache).logits for part in batch.split([11, 1, 1, 9, 8], 1)
        ]
        close(torch.cat(parts, dim=1), whole, BOUNDS[dtype])
        assert cache.get_seq_length() == 30 and cache.layers[1].keys.shape == (2, 2, 30, 8)
    with pytest.raises(ValueError, match="31 tokens, but it was made for 30"):
        ours(batch[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == 30


def bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", native.usable_isas())
def test_a_text_has_its_bits_in_any_batch(isa: str, dtype: torch.dtype) -> None:
    """Texts of different lengths, padded on the left, prefilled and continued."""
    ours, _ = pair(dtype=dtype)
    lengths = (23, 1, 9, 40)
    texts = [ids(1, length + 3, seed=length) for length in lengths]
    threads = torch.get_num_threads()
    before = native.isa()
    try:
        native.set_isa(isa)
        alone = [alone_logits(ours, text) for text in texts]
        for count in (1, 2):
            torch.set_num_threads(count)
            width = max(lengths) + 3
            grid = torch.full((4, width), 3)
            mask = torch.zeros(4, width, dtype=torch.long)
            for row, text in enumerate(texts):
                grid[row, -text.shape[1] :] = text
                mask[row, -text.shape[1] :] = 1
            first = ours(grid[:, :-3], attention_mask=mask[:, :-3])
            found = [first.logits]
            for column in range(width - 3, width):
                found.append(
                    ours(
                        grid[:, column : column + 1],
                        attention_mask=mask[:, : column + 1],
                        past_key_values=first.past_key_values,
                    ).logits
                )
            logits = torch.cat(found, dim=1)
            for row, text in enumerate(texts):
                assert bits(logits[row : row + 1, -text.shape[1] :], alone[row])
                assert not logits[row, : -text.shape[1]].any()
    finally:
        native.set_isa(before)
        torch.set_num_threads(threads)


def alone_logits(model: Any, text: Tensor) -> Tensor:
    """Prefill all but three tokens, and take those one by one."""
    first = model(text[:, :-3])
    cache, found = first.past_key_values, [first.logits]
    for column in range(-3, 0):
        part = text[:, column:] if column == -1 else text[:, column : column + 1]
        found.append(model(part, past_key_values=cache).logits)
    return torch.cat(found, dim=1)


def test_mixed_passes_and_texts_in_a_row() -> None:
    ours, _ = pair(dtype=torch.float32)
    texts = [ids(1, n, seed=n) for n in (5, 1, 8)]
    positions = torch.cat([torch.arange(t.shape[1]) for t in texts])[None]
    with counted() as passes:
        found = ours(torch.cat(texts, 1), position_ids=positions, use_cache=False).logits
    assert passes == [14]
    for part, text in zip(found.split([5, 1, 8], dim=1), texts, strict=True):
        assert bits(part, ours(text).logits)
    right = torch.ones(2, 6, dtype=torch.long)
    right[1, 4:] = 0
    batch = ids(2, 6)
    padded = ours(batch, attention_mask=right, use_cache=False).logits
    assert bits(padded[1:, :4], ours(batch[1:, :4]).logits) and not padded[1, 4:].any()


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([0, 4])], ids=str)
def test_logits_to_keep(keep: Any) -> None:
    ours, _ = pair(dtype=torch.float32)
    batch, mask = ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :4] = 0
    whole = ours(batch, attention_mask=mask).logits
    found = ours(batch, attention_mask=mask, logits_to_keep=keep).logits
    chosen = whole[:, -keep:] if isinstance(keep, int) else whole[:, keep]
    close(found, chosen, 1e-6)


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sample": {"do_sample": True, "top_k": 20},
    "no-cache": {"use_cache": False},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_texts_are_those_of_the_modules(name: str) -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = torch.cat([ids(1, 9), torch.cat([torch.full((1, 5), 3), ids(1, 4, seed=2)], 1)])
    texts = []
    for model in (ours, by_modules(ours)):
        torch.manual_seed(5)
        with counted() as passes:
            texts.append(model.generate(batch, max_new_tokens=20, **SEARCHES[name]))
        assert len(passes) == (0 if len(texts) == 2 else 20)
    assert torch.equal(*texts)


def test_a_cache_stays_what_others_make_of_it() -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(3, 20)
    cache = ours(batch).past_key_values
    former = cache.layers[0].keys
    kept = former.clone()
    cache.crop(12)
    close(ours(batch[:, 12:], past_key_values=cache).logits, ours(batch).logits[:, 12:], 2e-5)
    other = ids(3, 8, seed=9)
    cache.crop(12)
    ours(other, past_key_values=cache)
    assert torch.equal(former, kept)  # who held the keys of the first texts still has them
    cache.crop(12)
    cache.reorder_cache(torch.tensor([2, 0, 2]))
    order = batch[[2, 0, 2]]
    close(ours(order[:, 12:], past_key_values=cache).logits, ours(order).logits[:, 12:], 2e-5)
    cache.batch_select_indices(torch.tensor([1]))
    more = torch.cat([order[1:2], ids(1, 2)], 1)
    close(ours(more[:, 20:], past_key_values=cache).logits, ours(more).logits[:, 20:], 2e-5)
    # The modules continue it, and the engine continues theirs.
    again = by_modules(ours)
    longer = torch.cat([more, ids(1, 4, seed=3)], 1)
    close(
        again(longer[:, 22:24], past_key_values=cache).logits, ours(longer).logits[:, 22:24], 2e-5
    )
    close(ours(longer[:, 24:], past_key_values=cache).logits, ours(longer).logits[:, 24:], 2e-5)


def test_padding_that_was_not_computed_stays_hidden() -> None:
    ours, _ = pair(dtype=torch.float32)
    batch, mask = ids(2, 6), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    cache = ours(batch, attention_mask=mask[:, :6]).past_key_values
    assert not cache.layers[0].keys[1, :, :3].any()
    for shown in (None, torch.ones(2, 7), torch.ones(2, 1, 1, 7, dtype=torch.bool)):
        with pytest.raises(ValueError, match="behind padding, which was not computed"):
            ours(ids(2, 1), attention_mask=shown, past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="behind padding"):
        ours(ids(2, 1), attention_mask=mask, past_key_values=cache)
    found = ours(ids(2, 1), attention_mask=mask[[1, 1]], past_key_values=cache).logits
    text = torch.cat([batch[1:, 3:], ids(2, 1)[:1]], dim=1)
    close(found[:1], ours(text).logits[:, -1:], 2e-5)


CHANGES: dict[str, Any] = {
    "projection": lambda m: m.model.layers[1].mlp.down_proj.weight.mul_(1.5),
    "norm": lambda m: m.model.layers[0].self_attn.k_norm.weight.add_(0.5),
    "epsilon": lambda m: setattr(m.model.norm, "variance_epsilon", 0.5),
    "slope": lambda m: m.model.layers[0].mlp.act_fn.alpha_p.add_(1.0),
    "beta": lambda m: m.model.layers[0].mlp.act_fn.beta.add_(1.0),
    "head": lambda m: m.lm_head.weight.mul_(2.0),
    "new head": lambda m: setattr(m, "lm_head", copy.deepcopy(m.lm_head).requires_grad_(False)),
    "words": lambda m: m.model.embed_tokens.weight.mul_(2.0),
    "scale": lambda m: setattr(m.model.layers[0].self_attn, "scaling", 1.0),
    "angles": lambda m: m.model.rotary_emb.inv_freq.mul_(2.0),
    "fewer layers": lambda m: setattr(m.config, "num_hidden_layers", 1),
    "other layers": lambda m: setattr(m.model, "layers", m.model.layers[:1]),
    "swapped layers": lambda m: setattr(
        m.model, "layers", nn.ModuleList([m.model.layers[1], m.model.layers[0]])
    ),
    "hook": lambda m: m.model.layers[0].mlp.register_forward_hook(lambda *a: a[2] * 2),
    "hook on the head": lambda m: m.lm_head.register_forward_hook(lambda *a: a[2] * 2),
    "plain part": lambda m: setattr(m.model.layers[0].mlp, "act_fn", nn.ReLU()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_followed(name: str) -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(2, 5)
    before = ours(batch, use_cache=False).logits
    CHANGES[name](ours)
    found = ours(batch, use_cache=False).logits
    if name == "new head":
        ours.lm_head.weight.mul_(2.0)
        found = ours(batch, use_cache=False).logits
    assert not torch.allclose(found, before)
    close(found, by_modules(ours)(batch, use_cache=False).logits, 2e-5)


def test_classes_that_were_patched_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(2, 5)
    before = ours(batch).logits
    kind = type(ours.model.norm)
    former = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: former(self, x) * 2)
    with counted() as passes:
        assert not torch.allclose(ours(batch).logits, before)
    assert passes == []
    monkeypatch.undo()
    assert bits(ours(batch).logits, before)


def test_training_between_passes() -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(2, 5)
    ours(batch)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        ours.train()(batch, labels=batch).loss.backward()
    optimizer.step()
    ours.eval()
    close(ours(batch).logits, by_modules(ours)(batch).logits, 2e-5)
    ours.zero_grad()
    close(ours(batch).logits, by_modules(ours)(batch).logits, 2e-5)


@pytest.mark.parametrize("given", ["attentions", "states", "mask", "cache", "training"])
def test_what_is_left_to_the_modules(given: str) -> None:
    import transformers

    ours, _ = pair(dtype=torch.float32)
    batch = ids(2, 5)
    whole = ours(batch).logits
    options: dict[str, dict[str, Any]] = {
        "attentions": {"output_attentions": True},
        "states": {"output_hidden_states": True},
        "mask": {"attention_mask": torch.ones(2, 1, 5, 5).tril() != 0},
        "cache": {"past_key_values": transformers.DynamicCache()},
        "training": {},
    }
    ours.train(given == "training")
    with counted() as passes:
        close(ours(batch, **options[given]).logits, whole, 2e-5)
    assert passes == []


def test_bad_input_is_refused_in_words() -> None:
    ours, _ = pair(dtype=torch.float32)
    with pytest.raises(IndexError, match="reach from 4 to 53, but the vocabulary has 53"):
        ours(torch.tensor([[4, 53]]))
    cache = ours(ids(2, 5)).past_key_values
    with pytest.raises(IndexError, match="reach from -1"):
        ours(torch.tensor([[-1], [4]]), past_key_values=cache)
    assert cache.get_seq_length() == 5
    with pytest.raises(ValueError, match="other texts or another model"):
        ours(ids(3, 1), past_key_values=cache)
    wide, _ = pair(dtype=torch.float32, head_dim=16)
    with pytest.raises(ValueError, match="other texts or another model"):
        wide(ids(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="at least one token"):
        StaticCache(ours.config)
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        ours(ids(2, 1), attention_mask=torch.ones(2, 3), past_key_values=cache)


def test_embeddings_in_place_of_ids() -> None:
    ours, _ = pair(dtype=torch.bfloat16)
    batch = ids(2, 5)
    embeds = ours.model.embed_tokens(batch)
    with counted() as passes:
        assert bits(ours(inputs_embeds=embeds).logits, ours(batch).logits)
    assert passes == [10, 10]


def test_a_reserved_cache_is_never_copied() -> None:
    ours, _ = pair(dtype=torch.float32)
    cache = StaticCache(ours.config, max_cache_len=100)
    ours(ids(1, 4), past_key_values=cache)
    address = cache.layers[0].keys.data_ptr()
    for _ in range(96):
        ours(ids(1, 1), past_key_values=cache)
    assert cache.layers[0].keys.data_ptr() == address


def test_copies_of_a_model_stand_alone() -> None:
    ours, _ = pair(dtype=torch.float32)
    batch = ids(1, 4)
    before = ours(batch).logits
    other = copy.deepcopy(ours)
    other.lm_head.weight.mul_(2.0)
    close(other(batch).logits, before * 2, 1e-6)
    assert bits(ours(batch).logits, before)


def test_explain_says_how_passes_run() -> None:
    ours, _ = pair(dtype=torch.float32)
    assert "one native call" in fastbert.explain(ours)
    ours.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert "modules, one by one: a part was hooked" in fastbert.explain(ours)
