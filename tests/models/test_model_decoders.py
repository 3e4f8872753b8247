"""Decoders: caches, cross-attention, losses of the next token, generation."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
import transformers

import fastbert
from fastbert.generation.mixin import GenerationConfig
from fastbert.layers.kv_cache import DynamicCache, EncoderDecoderCache

DECODERS = oracle.DECODERS
ENDS = {"bos_token_id": 0, "eos_token_id": 5, "pad_token_id": 1}


def encoder_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    shape = (oracle.BATCH, 5, oracle.HIDDEN)
    states = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.ones(oracle.BATCH, 5, dtype=torch.long)
    mask[0, 3:] = 0
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


@pytest.mark.parametrize("name", oracle.CROSS_ATTENDED)
@pytest.mark.parametrize("mask", [False, True])
def test_cross_attention(name: str, mask: bool) -> None:
    theirs, ours = oracle.pair(name, add_cross_attention=True, is_decoder=True)
    case: dict[str, Any] = {**encoder_inputs(), "input_ids": oracle.random_ids()}
    case["attention_mask"] = oracle.padded_mask() if mask else torch.ones(oracle.BATCH, 7)
    if name.endswith("Model") and name not in DECODERS:
        # The pooler reads column 0, which must see something for all implementations to agree.
        case["attention_mask"][2] = 1
    case.update(output_attentions=True, output_hidden_states=True)
    if name in oracle.CACHED:
        case["use_cache"] = False
    with torch.no_grad():
        expected, got = theirs(**case), ours(**case)
    oracle.compared(expected, got, case["attention_mask"], 1e-9, name)


@pytest.mark.parametrize("name", oracle.CACHED)
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_cache_gives_what_the_whole_text_gives(name: str, cross: bool, legacy: bool) -> None:
    _, ours = oracle.pair(name, add_cross_attention=cross, is_decoder=True)
    more = encoder_inputs() if cross else {}
    ids = oracle.random_ids()
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    positions = ours.base_model.positions_from_mask(mask)
    with torch.no_grad():
        whole = ours(ids, attention_mask=mask, position_ids=positions, use_cache=False, **more)
        first = ours(ids[:, :4], attention_mask=mask[:, :4], position_ids=positions[:, :4], **more)
        cache = first.past_key_values
        assert isinstance(cache, EncoderDecoderCache if cross else DynamicCache)
        assert len(cache) == oracle.LAYERS and cache.get_seq_length() == 4
        past = cache.to_legacy_cache() if legacy else cache
        rest = ours(
            ids[:, 4:],
            attention_mask=mask,
            position_ids=positions[:, 4:],
            past_key_values=past,
            **more,
        )
    assert rest.past_key_values.get_seq_length() == 7
    assert whole.past_key_values is None
    oracle.close(whole[0][:, 4:], rest[0], torch.ones(1), 1e-9, name)


@pytest.mark.parametrize("name", oracle.CACHED)
def test_caches_are_those_of_transformers(name: str) -> None:
    theirs, ours = oracle.pair(name, is_decoder=True)
    ids = oracle.random_ids()
    with torch.no_grad():
        expected, got = theirs(ids, use_cache=True), ours(ids, use_cache=True)
        assert ours(ids, use_cache=False).past_key_values is None
    assert list(got.keys()) == list(expected.keys())
    theirs_kept = getattr(
        expected.past_key_values, "self_attention_cache", expected.past_key_values
    )
    for a, b in zip(theirs_kept.layers, got.past_key_values.layers, strict=True):
        oracle.close(a.keys, b.keys, torch.ones(1), 1e-9, name)
        oracle.close(a.values, b.values, torch.ones(1), 1e-9, name)


def test_caches_of_transformers_are_taken() -> None:
    theirs, ours = oracle.shared_pair("BertLMHeadModel")
    ids = oracle.random_ids()
    with torch.no_grad():
        cache = theirs(ids[:, :4]).past_key_values
        got = ours(ids[:, 4:], past_key_values=cache)
        expected = theirs(ids).logits[:, 4:]
    oracle.close(expected, got.logits, torch.ones(1), 1e-9, "BertLMHeadModel")
    with pytest.raises(TypeError, match="past_key_values"), torch.no_grad():
        ours(ids, past_key_values="cache")


def test_cache_methods() -> None:
    cache = DynamicCache()
    keys = torch.arange(24.0).reshape(2, 1, 3, 4)
    cache.update(keys, keys + 1, 0)
    cache.update(keys, keys + 1, 1)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.layers[0].keys, keys.flip(0))
    cache.batch_repeat_interleave(2)
    assert cache.layers[1].values.shape[0] == 4
    cache.crop(-1)
    assert cache.get_seq_length() == 2
    cache.crop(1)
    assert [k.shape[2] for k, _ in cache] == [1, 1]
    both = EncoderDecoderCache(cache, DynamicCache())
    assert both.get_seq_length() == 1 and both.is_updated == {}
    both.reset()
    assert both.get_seq_length() == 0


@pytest.mark.parametrize("name", oracle.FLAUBERT_CLASSES)
def test_every_flaubert_class_fills_a_cache(name: str) -> None:
    theirs, ours = oracle.pair(name, causal=True)
    ids = oracle.random_ids()
    if name.endswith("ForMultipleChoice"):
        ids = torch.stack([ids, ids.roll(1, 0)], dim=1)
    cache = DynamicCache()
    with torch.no_grad():
        expected, got = theirs(ids), ours(ids, cache=cache)
    oracle.compared(expected, got, torch.ones(1), 2e-6, name)
    assert cache.get_seq_length() == oracle.LENGTH and len(cache) == oracle.LAYERS


def test_flaubert_cache() -> None:
    theirs, ours = oracle.pair("FlaubertModel", causal=True)
    ids = oracle.random_ids()
    cache = DynamicCache()
    with torch.no_grad():
        ours(ids[:, :4], cache=cache)
        rest = ours(ids, cache=cache)
        expected = theirs(ids).last_hidden_state[:, 4:]
    oracle.close(expected, rest.last_hidden_state, torch.ones(1), 2e-6, "FlaubertModel")
    _, plain = oracle.shared_pair("FlaubertModel")
    with pytest.raises(ValueError, match="causal=True"):
        plain(ids, cache=DynamicCache())


@pytest.mark.parametrize("name", DECODERS)
def test_losses(name: str) -> None:
    theirs, ours = oracle.shared_pair(name)
    ids = oracle.random_ids()
    labels = oracle.random_labels(oracle.VOCABULARY, ids.shape)
    for more in (
        {"labels": labels, "num_items_in_batch": 11},
        {"labels": labels, "shift_labels": labels.roll(-1, 1)},
    ):
        with torch.no_grad():
            expected, got = theirs(ids, use_cache=False, **more), ours(ids, use_cache=False, **more)
        oracle.close(expected.loss, got.loss, torch.ones(1), 1e-6, str(list(more)))


def positions_left_alone(model: Any) -> Any:
    """Undo what transformers does to CamemBERT: positions 0, 1, 2 where 2, 3, 4 are right."""
    prepare = model.prepare_inputs_for_generation

    def prepared(*args: Any, **kwargs: Any) -> Any:
        inputs = prepare(*args, **kwargs)
        positions = inputs.get("position_ids")
        if positions is not None:
            inputs["position_ids"] = positions + model.config.pad_token_id + 1
        return inputs

    model.prepare_inputs_for_generation = prepared
    model._validate_model_kwargs = lambda _: None
    return model


SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 4, "length_penalty": -1.0, "no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.3, "min_length": 12},
    {"num_beams": 2, "early_stopping": "never", "min_new_tokens": 4},
]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("use_cache", [False, True])
def test_generation(name: str, use_cache: bool) -> None:
    theirs, ours = oracle.pair(name, **ENDS)
    if name.startswith(("Camembert", "Roberta", "XLMRoberta")):
        theirs = positions_left_alone(theirs)
    ids = torch.randint(6, 60, (2, 5), generator=torch.Generator().manual_seed(2))
    for search in SEARCHES:
        expected = theirs.generate(
            ids, max_new_tokens=8, do_sample=False, use_cache=use_cache, **search
        )
        got = ours.generate(ids, max_new_tokens=8, use_cache=use_cache, **search)
        assert torch.equal(expected, got), f"{name} {search}"


@pytest.mark.parametrize("name", ["BertLMHeadModel", "RemBertForCausalLM"])
def test_generation_behind_padding(name: str) -> None:
    theirs, ours = oracle.pair(name, **ENDS)
    ids = torch.randint(6, 60, (2, 5), generator=torch.Generator().manual_seed(3))
    ids[1, :2] = 1
    mask = (ids != 1).long()
    for search in SEARCHES[1::2]:
        expected = theirs.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **search
        )
        got = ours.generate(ids, attention_mask=mask, max_new_tokens=6, **search)
        assert torch.equal(expected, got), f"{name} {search}"
        assert torch.equal(got, ours.generate(ids, max_new_tokens=6, **search))


@pytest.mark.parametrize("name", DECODERS)
def test_a_padded_prompt_goes_on_as_it_does_alone(name: str) -> None:
    _, ours = oracle.pair(name, add_cross_attention=True, **ENDS)
    ids = torch.randint(6, 60, (1, 4), generator=torch.Generator().manual_seed(4))
    padded = torch.cat([torch.full((1, 3), 1), ids], dim=1)
    more = {key: value[:1] for key, value in encoder_inputs().items()}
    for search in ({}, {"num_beams": 3}):
        alone = ours.generate(ids, max_new_tokens=6, **search, **more)
        behind = ours.generate(padded, max_new_tokens=6, **search, **more)
        assert torch.equal(alone, behind[:, 3:])


def test_sampling_follows_its_generator() -> None:
    _, ours = oracle.pair("BertLMHeadModel", **ENDS)
    ids = torch.tensor([[6, 7, 8]])
    options = {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.7, "max_new_tokens": 9}

    def run(seed: int, **more: Any) -> Any:
        return ours.generate(ids, generator=torch.Generator().manual_seed(seed), **options, **more)

    assert torch.equal(run(1), run(1))
    assert run(1, num_return_sequences=3).shape[0] == 3
    assert run(1, num_beams=3).shape[0] == 1
    with torch.no_grad():
        best = ours(ids).logits[0, -1].topk(5).indices.tolist()
    firsts = {int(run(seed)[0, 3]) for seed in range(20)}
    assert firsts <= set(best) and len(firsts) > 1


def test_what_generate_refuses() -> None:
    _, ours = oracle.pair("BertLMHeadModel", **ENDS)
    ids = torch.tensor([[6, 7, 8]])
    with pytest.raises(TypeError, match="no argument max_tokens"):
        ours.generate(ids, max_tokens=3)
    with pytest.raises(ValueError, match="leaves no room"):
        ours.generate(ids, max_length=3)
    with pytest.raises(ValueError, match="positions for 24"):
        ours.generate(ids, max_new_tokens=30)
    with pytest.raises(ValueError, match="cannot return"):
        ours.generate(ids, num_beams=2, num_return_sequences=3)
    assert ours.generate(max_new_tokens=1).tolist()[0][0] == ENDS["bos_token_id"]
    assert ours.generate(ids).shape[1] <= 23


def test_generation_config_is_saved(tmp_path: Any) -> None:
    _, ours = oracle.pair("BertLMHeadModel", **ENDS)
    ours.generation_config = GenerationConfig(max_new_tokens=4, num_beams=2, **ENDS)
    ours.save_pretrained(tmp_path)
    again = fastbert.BertLMHeadModel.from_pretrained(tmp_path)
    assert again.generation_config == ours.generation_config
    read = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (read.max_new_tokens, read.num_beams) == (4, 2)
