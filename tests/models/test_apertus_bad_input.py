"""What a decoder cannot answer rightly is refused in words, before anything is written.

The mechanism: arguments are looked at before the pass (`layers/checked.py`, `layers/masks.py`,
`models/apertus/arrange.py`), caches as a whole before any layer is extended
(`layers/cache_checks.py`), settings of generate() before its first step (`generation/checks.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from apertus_pair import LLAMA3, SIZES, close, ids, pair
from torch import Tensor

import fastbert
from fastbert.layers.kv_cache import DynamicCache, StaticCache

BATCH = ids(2, 5)
ONES = torch.ones(2, 5)
POSITIONS = torch.arange(5)[None]

ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "mask of scores": (
        {"attention_mask": torch.tensor([[0.0, 0.0, 0.0, -1e9, -1e9], [0.0] * 5])},
        ValueError,
        "holds negative numbers or NaN, like masks that are added",
    ),
    "mask of nan": ({"attention_mask": ONES * float("nan")}, ValueError, "negative numbers or NaN"),
    "mask without dimension": ({"attention_mask": torch.tensor(1)}, ValueError, "has none"),
    "list as mask": (
        {"attention_mask": [[1] * 5] * 2},
        TypeError,
        "attention_mask must be a torch",
    ),
    "heads of a mask": (
        {"attention_mask": torch.zeros(2, 3, 5, 5)},
        ValueError,
        "for one head or for all 4, but this one is for 3",
    ),
    "floating positions": ({"position_ids": POSITIONS + 0.5}, TypeError, "must be integers"),
    "boolean positions": ({"position_ids": POSITIONS > 2}, TypeError, "must be integers"),
    "list as positions": ({"position_ids": [[0] * 5]}, TypeError, "not a list"),
    "transposed labels": ({"labels": BATCH.t()}, ValueError, r"for each of \(2, 5\).*\(5, 2\)"),
    "floating labels": ({"labels": BATCH.float()}, TypeError, "labels must be integers"),
    "labels beyond": ({"labels": BATCH + 100}, ValueError, "but there are 53 classes"),
    "labels before": ({"labels": BATCH * 0 - 5}, ValueError, "labels reach from -5"),
    "list as labels": ({"labels": BATCH.tolist()}, TypeError, "labels must be a torch tensor"),
    "column beyond": (
        {"logits_to_keep": torch.tensor([5])},
        IndexError,
        "from 5 to 5, but there are 5",
    ),
    "floating columns": ({"logits_to_keep": torch.tensor([1.0])}, TypeError, "float32 was given"),
    "columns of another batch": (
        {"logits_to_keep": torch.zeros(3, 1, dtype=torch.long)},
        ValueError,
        "for a batch of 2",
    ),
    "no number of columns": ({"logits_to_keep": 2.0}, TypeError, "float was given"),
    "marks of another shape": (
        {"logits_to_keep": torch.ones(2, 4, dtype=torch.bool)},
        ValueError,
        r"bool \(2, 4\) was given for \(2, 5\)",
    ),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str, grad: bool) -> None:
    ours, _ = pair(dtype=torch.float32)
    given, kind, message = ARGUMENTS[name]
    with torch.set_grad_enabled(grad), pytest.raises(kind, match=message):
        ours(BATCH, **given)


@pytest.mark.parametrize("grad", [False, True])
def test_inputs(grad: bool) -> None:
    ours, _ = pair(dtype=torch.float32)
    with torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match="has 31 columns, but this model's hidden size is 32"):
            ours(inputs_embeds=torch.zeros(2, 5, 31))
        with pytest.raises(TypeError, match="dense tensor"):
            ours(BATCH.to_sparse())
        expected = ours(BATCH).logits
        for dtype in (torch.uint8, torch.int16, torch.int32):
            assert torch.equal(ours(BATCH.to(dtype)).logits, expected)


COLUMNS: dict[str, Any] = {
    "slice": slice(1, 4),
    "list": [0, 3],
    "none": torch.tensor([], dtype=torch.long),
    "one": torch.tensor(2),
    "from the end": torch.tensor([-1, -3]),
    "negative number": -2,
    "all and more": 9,
    "marks": torch.tensor([True, False, True, False, True]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(dtype=dtype)
    with torch.no_grad():
        found = ours(BATCH, logits_to_keep=COLUMNS[name]).logits
        close(found, theirs(BATCH, logits_to_keep=COLUMNS[name]).logits, 1e-5)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_an_encoder(name: str) -> None:
    sizes = {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ours = fastbert.BertForMaskedLM(fastbert.BertConfig(**sizes, intermediate_size=40)).eval()
    keep = COLUMNS[name]
    with torch.no_grad():
        whole = ours(BATCH).logits
        expected = whole[:, slice(-keep, None) if isinstance(keep, int) else keep]
        close(ours(BATCH, logits_to_keep=keep).logits, expected, 1e-5)


# Caches


def filled(model: Any) -> Any:
    with torch.no_grad():
        return model(BATCH).past_key_values


def held(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("before", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("after", [torch.float32, torch.bfloat16, torch.float64])
def test_a_cache_of_another_precision(before: torch.dtype, after: torch.dtype) -> None:
    cache = filled(pair(dtype=before)[0])
    other, _ = pair(dtype=after)
    with torch.no_grad():
        if before == after:
            other(ids(2, 1), past_key_values=cache)
            assert held(cache) == [6, 6]
            return
        with pytest.raises(ValueError, match="cannot follow"):
            other(ids(2, 1), past_key_values=cache)
    assert held(cache) == [5, 5]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("theirs", [False, True])
def test_a_cache_of_another_number_of_layers(layers: int, theirs: bool) -> None:
    ours, _ = pair(dtype=torch.float32)
    other, _ = pair(dtype=torch.float32, num_hidden_layers=layers)
    cache = transformers.DynamicCache() if theirs else DynamicCache()
    with torch.no_grad():
        ours(BATCH, past_key_values=cache)
        with pytest.raises(ValueError, match=f"layers 0, 1, and the model has {layers} layers"):
            other(ids(2, 1), past_key_values=cache)
    assert held(cache) == [5, 5]


def legacy(*lengths: tuple[int, int]) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((torch.zeros(2, 2, k, 8), torch.zeros(2, 2, v, 8)) for k, v in lengths)


def test_caches_whose_layers_differ() -> None:
    ours, _ = pair(dtype=torch.float32)
    new = ids(2, 1)
    with torch.no_grad():
        with pytest.raises(ValueError, match="values of shape"):
            ours(new, past_key_values=legacy((3, 4), (3, 4)))
        with pytest.raises(ValueError, match="3 in layer 0, 5 in layer 1"):
            ours(new, past_key_values=legacy((3, 3), (5, 5)))
        with pytest.raises(ValueError, match="layers 0, and the model has 2"):
            ours(new, past_key_values=legacy((3, 3)))
        arrays = tuple((k.numpy(), v.numpy()) for k, v in legacy((3, 3), (3, 3)))
        with pytest.raises(TypeError, match="holds a ndarray"):
            ours(new, past_key_values=arrays)
        one, two = filled(ours), filled(pair(dtype=torch.float64)[0])
        one.layers[1] = two.layers[1]
        with pytest.raises(ValueError, match="different precisions"):
            ours(new, past_key_values=one)
    bert = fastbert.BertConfig(
        vocab_size=53, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, is_decoder=True
    )
    encoder = fastbert.BertModel(bert).eval()
    with torch.no_grad():
        cache = encoder(BATCH, use_cache=True).past_key_values
        bert.num_hidden_layers = 3
        with pytest.raises(ValueError, match="layers 0, 1, and the model has 3"):
            fastbert.BertModel(bert).eval()(ids(2, 1), past_key_values=cache)


def test_what_caches_refuse() -> None:
    ours, _ = pair(dtype=torch.float32)
    cache = filled(ours)
    with pytest.raises(ValueError, match="repeats must be a number from 1 on, not 0"):
        cache.batch_repeat_interleave(0)
    with pytest.raises(TypeError, match="whole number"):
        cache.crop(1.5)
    with pytest.raises(TypeError, match="whole number"):
        StaticCache(ours.config, max_cache_len=20.5)
    assert held(cache) == [5, 5]
    cache.reorder_cache([1, 0])
    with torch.no_grad():
        found = ours(ids(2, 1), past_key_values=cache).logits
        close(found, ours(torch.cat([BATCH[[1, 0]], ids(2, 1)], 1)).logits[:, -1:], 1e-5)


# generate()

SETTINGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "half a token": ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens must be a whole number"),
    "number as text": ({"max_new_tokens": "5"}, TypeError, "not '5'"),
    "no beams": ({"num_beams": 0}, ValueError, "num_beams must be a number from 1 on"),
    "half a beam": ({"num_beams": 1.5}, TypeError, "num_beams must be a whole number"),
    "no sequences": ({"num_return_sequences": 0}, ValueError, "num_return_sequences"),
    "yes as a number": (
        {"num_beams": True},
        TypeError,
        "num_beams .* not True",
    ),
    "end as text": (
        {"eos_token_id": "</s>"},
        TypeError,
        "eos_token_id, or each",
    ),
    "ends as texts": ({"eos_token_id": [2, "</s>"]}, TypeError, "eos_token_id"),
    "seed": ({"generator": 5, "do_sample": True}, TypeError, "manual_seed"),
    "short mask": ({"attention_mask": ONES[:, 1:]}, ValueError, "needs an attention_mask of the"),
    "long mask": ({"attention_mask": torch.ones(2, 6)}, ValueError, r"\(2, 5\).*\(2, 6\)"),
    "wide mask": ({"attention_mask": torch.ones(2, 1, 5, 5)}, ValueError, "attention_mask"),
    "list as mask": ({"attention_mask": [[1] * 5] * 2}, TypeError, "attention_mask must be"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_generate(name: str) -> None:
    ours, _ = pair(dtype=torch.float32)
    given, kind, message = SETTINGS[name]
    with pytest.raises(kind, match=message):
        ours.generate(BATCH, **given)


PROMPTS: dict[str, tuple[Any, type[Exception], str]] = {
    "floating": (BATCH.float(), TypeError, "must be integers"),
    "one dimension": (BATCH[0], ValueError, "has 2 dimensions"),
    "list": (BATCH.tolist(), TypeError, "not a list"),
    "batch": ({"input_ids": BATCH}, TypeError, r"generate\(\*\*inputs\)"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_generate(name: str) -> None:
    ours, _ = pair(dtype=torch.float32)
    given, kind, message = PROMPTS[name]
    with pytest.raises(kind, match=message):
        ours.generate(given, max_new_tokens=2)


@pytest.mark.parametrize("kind", [torch.tensor, tuple, list])
def test_ends_in_any_container(kind: Callable[[list[int]], Any]) -> None:
    ours, theirs = pair()
    ends = kind([2, 7, 12, 20, 31, 33])
    given = {"max_new_tokens": 12, "attention_mask": torch.ones_like(BATCH)}
    found = ours.generate(BATCH, eos_token_id=ends, **given)
    assert torch.equal(found, theirs.generate(BATCH, eos_token_id=[2, 7, 12, 20, 31, 33], **given))
    settings = fastbert.GenerationConfig(eos_token_id=ends)
    assert settings.ends() == [2, 7, 12, 20, 31, 33]


def test_padding_behind_a_prompt_is_named(recwarn: pytest.WarningsRecorder) -> None:
    ours, _ = pair(dtype=torch.float32)
    mask = torch.ones_like(BATCH)
    ours.generate(BATCH, attention_mask=mask, max_new_tokens=1)
    ours.generate(BATCH, attention_mask=mask * torch.tensor([[0], [1]]), max_new_tokens=1)
    assert not [w for w in recwarn if "Padding" in str(w.message)]
    mask[0, 3:] = 0
    padded = BATCH.clone()
    padded[0, 3:] = 3
    for given in ({"attention_mask": mask}, {}):
        with pytest.warns(UserWarning, match="Padding stands behind a prompt.*padding_side='left'"):
            ours.generate(padded, max_new_tokens=1, **given)


# Rotary positions that mean nothing

ROPES: dict[str, dict[str, Any]] = {
    "factor in rope_parameters must be a number above 0, not 0": {**LLAMA3, "factor": 0},
    "not -2.0": {"rope_type": "linear", "factor": -2.0},
    "not '2'": {"rope_type": "linear", "factor": "2"},
    "rope_theta in rope_parameters must be": {"rope_type": "default", "rope_theta": None},
    "rope_theta .* not 0": {"rope_type": "default", "rope_theta": 0},
    "not '10000'": {"rope_type": "default", "rope_theta": "10000"},
    "not inf": {"rope_type": "default", "rope_theta": float("inf")},
    "original_max_position_embeddings": {**LLAMA3, "original_max_position_embeddings": 0},
    "a dictionary for each of full_attention": {"full_attention": {"rope_type": "default"}},
}


@pytest.mark.parametrize("message", ROPES)
def test_rotations(message: str) -> None:
    given = {**SIZES, "rope_parameters": ROPES[message]}
    with pytest.raises(ValueError, match=message):
        fastbert.ApertusModel(fastbert.ApertusConfig(**given))


def test_yarn_takes_its_factor_from_the_lengths() -> None:
    given = {"rope_type": "yarn", "rope_theta": 100.0, "factor": None}
    given["original_max_position_embeddings"] = 16
    sizes = {**SIZES, "rope_parameters": given}
    ours = fastbert.ApertusModel(fastbert.ApertusConfig(**copy.deepcopy(sizes))).rotary_emb
    config = transformers.ApertusConfig(**copy.deepcopy(sizes))
    theirs = transformers.ApertusModel(config).rotary_emb
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_scaling == theirs.attention_scaling
