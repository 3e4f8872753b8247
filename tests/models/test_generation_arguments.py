"""What arguments, configurations and files ask generate() for is done, or refused by name.

The mechanism: settings know which of them somebody has set; those stand over the model's own, and
these over the defaults. What transformers has beside ours is a table of values that ask for
nothing.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import apertus_pair
import oracle
import pytest
import torch
import transformers

import fastbert
from fastbert.generation.elsewhere import asks, is_known
from fastbert.layers.kv_cache import StaticCache

ENDS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 50, "pad_token_id": 1}
THEIRS = transformers.GenerationConfig().to_dict().keys()
SETTINGS = {n for n in THEIRS if n != "transformers_version" and not n.startswith("_")}
OWN = {field.name for field in dataclasses.fields(fastbert.GenerationConfig)}
# What a value beside None would ask for.
ASKING: dict[str, Any] = {"cache_implementation": "static", "disable_compile": "all"}


def prompts() -> torch.Tensor:
    return torch.tensor([[5, 9, 11, 7], [1, 1, 4, 4], [30, 31, 32, 33]])


def models(name: str) -> tuple[Any, Any]:
    if name != "ApertusForCausalLM":
        return oracle.pair(name, **ENDS)
    ours, theirs = apertus_pair.pair()
    theirs.set_attn_implementation("eager")  # sdpa returns no attention weights
    return theirs, ours


@pytest.mark.parametrize("library", [fastbert, transformers])
def test_settings_stand_over_those_of_the_model(library: Any) -> None:
    """Who gives max_new_tokens does not ask for texts without end, or for padding that is read."""
    theirs, ours = oracle.pair("BertLMHeadModel", **ENDS)
    own = {**ENDS, "eos_token_id": [*range(20, 30), 9], "num_beams": 3, "max_new_tokens": 9}
    theirs.generation_config = transformers.GenerationConfig(**own)
    ours.generation_config = fastbert.GenerationConfig(**own)
    for given in ({"max_new_tokens": 5}, {"num_beams": 1}, {"num_beams": 1, "eos_token_id": 9}, {}):
        config = transformers.GenerationConfig(**given)
        wanted = theirs.generate(prompts(), generation_config=config)
        found = ours.generate(prompts(), generation_config=library.GenerationConfig(**given))
        assert torch.equal(found, wanted), given
    assert not torch.equal(ours.generate(prompts(), num_beams=1), ours.generate(prompts()))


def test_settings_know_what_was_set() -> None:
    config: Any = fastbert.GenerationConfig
    given = config(None, 5, do_sample=False, top_k=None)
    assert given.stated() == pickle.loads(pickle.dumps(given)).stated()
    assert given.stated() == {"max_new_tokens", "do_sample"}
    assert dataclasses.replace(given, num_beams=2).stated() == {"max_new_tokens", "num_beams"}
    over = given.over(config(do_sample=True, top_k=7, eos_token_id=3))
    assert (over.do_sample, over.top_k, over.eos_token_id) == (False, 7, 3)
    assert over.stated() == {"max_new_tokens", "do_sample", "top_k", "eos_token_id"}
    assert over.changed(top_k=None, eos_token_id=None).ends() == []


@pytest.mark.parametrize("written", [False, True], ids=["alone", "beside-a-file"])
@pytest.mark.parametrize(
    "said",
    [
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        {"max_length": 9, "repetition_penalty": 1.7},
        {"output_hidden_states": True},
    ],
    ids=lambda said: next(iter(said)),
)
def test_settings_of_an_old_config_are_those_of_transformers(
    said: dict[str, Any], written: bool, tmp_path: Path
) -> None:
    """generation_config.json is new: before it, config.json said how texts are written."""
    oracle.pair("BertLMHeadModel", **ENDS)[1].float().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **said}))
    (tmp_path / "generation_config.json").unlink()
    if written:
        transformers.GenerationConfig(max_new_tokens=3, **ENDS).save_pretrained(tmp_path)
    ids = prompts()[:1]
    theirs: Any = transformers.BertLMHeadModel.from_pretrained(tmp_path)
    ours: Any = fastbert.BertLMHeadModel.from_pretrained(tmp_path)
    wanted, found = theirs.generate(ids), ours.generate(ids)
    assert isinstance(found, torch.Tensor) == isinstance(wanted, torch.Tensor)
    if not isinstance(wanted, torch.Tensor):
        assert len(found.hidden_states) == len(wanted.hidden_states)
        found, wanted = found.sequences, wanted.sequences
    assert torch.equal(found, wanted)
    ours.save_pretrained(tmp_path / "again")
    again = fastbert.BertLMHeadModel.from_pretrained(tmp_path / "again")
    assert again.generation_config == ours.generation_config


def test_what_an_old_config_asks_in_vain_is_named(tmp_path: Path) -> None:
    oracle.pair("BertLMHeadModel", **ENDS)[1].save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text())
    asked = {"penalty_alpha": 0.6, "num_beam_groups": 1, "decoder_start_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps({**values, **asked}))
    with pytest.warns(UserWarning, match=r"asks for penalty_alpha, which generate\(\) does not"):
        fastbert.BertLMHeadModel.from_pretrained(tmp_path)


def test_settings_written_into_the_config_of_a_model_are_refused(tmp_path: Path) -> None:
    oracle.pair("BertLMHeadModel", **ENDS)[1].save_pretrained(tmp_path)
    ours = fastbert.BertLMHeadModel.from_pretrained(tmp_path)
    ours.config.num_beams = 2
    with pytest.raises(ValueError, match=r"config says num_beams=2, .*set model.generation_config"):
        ours.generate(prompts())
    ours.generate(prompts(), generation_config=fastbert.GenerationConfig(max_new_tokens=2))


@pytest.mark.parametrize("name", ["top_k", "top_p", "temperature", "min_p", "repetition_penalty"])
def test_none_switches_a_setting_off(name: str) -> None:
    """With 61 words, the default top_k of 50 leaves some out."""
    found = []
    for model, library in zip(models("BertLMHeadModel"), (transformers, fastbert), strict=True):
        values = {**ENDS, name: 9 if name == "top_k" else 0.4}
        model.generation_config = library.GenerationConfig(**values)
        torch.manual_seed(0)
        asked: dict[str, Any] = {"do_sample": True, "max_new_tokens": 8, name: None}
        asked |= {"output_scores": True, "return_dict_in_generate": True}
        found.append(model.generate(prompts(), **asked))
    assert torch.equal(found[0].sequences, found[1].sequences)
    for wanted, scores in zip(found[0].scores, found[1].scores, strict=True):
        torch.testing.assert_close(scores, wanted.float(), atol=1e-5, rtol=1e-5)


def test_the_least_of_the_new_tokens_stands_over_the_least_length() -> None:
    asked: dict[str, Any] = {"min_length": 9, "min_new_tokens": 2, "max_new_tokens": 8}
    asked |= {"eos_token_id": list(range(5, 50))}
    wanted, found = (m.generate(prompts(), **asked) for m in models("BertLMHeadModel"))
    assert torch.equal(found, wanted) and found.shape[1] < 9


@pytest.mark.parametrize("name", sorted(SETTINGS - OWN))
def test_what_asks_for_nothing_is_taken_and_the_rest_refused(name: str) -> None:
    ours = oracle.shared_pair("BertLMHeadModel")[1]
    defaults = transformers.GenerationConfig._get_default_generation_params()
    plain = ours.generate(prompts(), max_new_tokens=1)
    for value in (None, defaults.get(name)):
        assert torch.equal(ours.generate(prompts(), max_new_tokens=1, **{name: value}), plain)
    with pytest.raises(TypeError, match=f"no argument {name}; it takes"):
        ours.generate(prompts(), max_new_tokens=1, **{name: ASKING.get(name, 2.5)})
    assert is_known(name) and not asks(name, None)


def test_every_argument_of_transformers_is_known() -> None:
    import inspect

    theirs = inspect.signature(transformers.GenerationMixin.generate).parameters.keys()
    mine = inspect.signature(fastbert.BertLMHeadModel.generate).parameters.keys()
    assert not [n for n in theirs - mine - {"inputs", "kwargs"} if not is_known(n)]
    ours = oracle.shared_pair("BertLMHeadModel")[1]
    wanted = ours.generate(prompts(), max_new_tokens=2)
    assert torch.equal(ours.generate(inputs=prompts(), max_new_tokens=2), wanted)
    with pytest.raises(TypeError, match="another name of input_ids"):
        ours.generate(prompts(), inputs=prompts())


def same(found: Any, wanted: Any) -> None:
    """Compare what stands at the same places of nested tuples."""
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found.double(), wanted.double(), atol=1e-5, rtol=1e-5)
        return
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        same(one, other)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["BertLMHeadModel", "RemBertForCausalLM", "ApertusForCausalLM"])
def test_all_that_is_returned_is_that_of_transformers(name: str, beams: int, cached: bool) -> None:
    asked: dict[str, Any] = {"num_beams": beams, "use_cache": cached, "max_new_tokens": 5}
    asked |= {"return_dict_in_generate": True, "num_return_sequences": 2 if beams > 1 else 1}
    asked |= {f"output_{n}": True for n in ("scores", "logits", "attentions", "hidden_states")}
    ids, ends = prompts()[[0, 2]], [*range(20, 26), 30, 31]
    pair = models(name)
    mask = torch.ones_like(ids)
    wanted, found = (m.generate(ids, attention_mask=mask, eos_token_id=ends, **asked) for m in pair)
    names = ["sequences", "scores", "logits", "attentions", "hidden_states"]
    names += ["sequences_scores", "beam_indices"] if beams > 1 else []
    for one in names:
        same(getattr(found, one), getattr(wanted, one))
    assert (found.past_key_values is None) == (not cached)
    for normal in (False, True):
        chosen = [
            model.compute_transition_scores(
                output.sequences, output.scores, output.get("beam_indices"), normal
            )
            for model, output in zip(pair, (wanted, found), strict=True)
        ]
        same(chosen[1], chosen[0])


@pytest.mark.parametrize("name", ["BertLMHeadModel", "CamembertForCausalLM", "ApertusForCausalLM"])
def test_a_text_goes_on_from_its_cache(name: str) -> None:
    _, ours = models(name)
    ids = prompts()
    mask = (ids != 1).long()
    asked: dict[str, Any] = {"eos_token_id": None, "return_dict_in_generate": True}
    first = ours.generate(ids, attention_mask=mask, max_new_tokens=3, **asked)
    text = torch.cat([first.sequences, ids], dim=1)
    seen = torch.cat([torch.nn.functional.pad(mask, (0, 3), value=1), mask], dim=1)
    wanted = ours.generate(text, attention_mask=seen, max_new_tokens=4, **asked).sequences
    held, lengths = first.past_key_values.get_seq_length(), []
    handle = ours.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    asked |= {"attention_mask": seen, "past_key_values": first.past_key_values}
    found = ours.generate(text, max_new_tokens=4, **asked).sequences
    handle.remove()
    assert torch.equal(found, wanted) and lengths == [11 - held, 1, 1, 1]
    with pytest.raises(ValueError, match=r"hold 14 tokens, and input_ids has 11: give the whole"):
        ours.generate(text, **asked)
    text = torch.cat([found, ids], dim=1)
    asked["attention_mask"] = torch.ones_like(text)
    with pytest.raises(ValueError, match="one text for each prompt, but 2 are"):
        ours.generate(text, num_beams=2, **asked)
    with pytest.raises(ValueError, match="no cache is used"):
        ours.generate(text, use_cache=False, **asked)


@pytest.mark.parametrize(
    "more", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("name", ["BertLMHeadModel", "ApertusForCausalLM"])
def test_only_allowed_tokens_follow(name: str, more: dict[str, Any]) -> None:
    """A trie of answers, say: other tokens for each prompt, and for each text so far."""

    def allowed(prompt: int, ids: torch.Tensor) -> list[int]:
        return [2 + prompt, 10 + len(ids), 20 + int(ids[-1]) % 7]

    theirs, ours = models(name)
    given = {"max_new_tokens": 6, "prefix_allowed_tokens_fn": allowed, "do_sample": False, **more}
    found = ours.generate(prompts(), **given)
    assert torch.equal(found, theirs.generate(prompts(), **given))
    rows = len(found) // 3
    for row, text in enumerate(found):
        for at in range(4, len(text)):
            assert int(text[at]) in (*allowed(row // rows, text[:at]), 1)
    assert not torch.equal(found, ours.generate(prompts(), max_new_tokens=6, **more))
    for wrong in ([], [99999], [-1]):
        given["prefix_allowed_tokens_fn"] = lambda prompt, ids, wrong=wrong: wrong
        with pytest.raises(ValueError, match="prefix_allowed_tokens_fn returned"):
            ours.generate(prompts(), **given)


@pytest.mark.parametrize("beams", [1, 2])
def test_stopping_criteria_see_the_scores(beams: int) -> None:
    seen: list[list[Any]] = []
    for model in models("BertLMHeadModel"):
        heard: list[Any] = []

        def watch(ids: Any, scores: Any, heard: Any = heard, **_: Any) -> torch.Tensor:
            heard.append(None if scores is None else len(scores))
            return torch.full((ids.shape[0],), ids.shape[1] >= 6)

        asked: dict[str, Any] = {"stopping_criteria": [watch], "num_beams": beams}
        asked |= {"attention_mask": torch.ones_like(prompts()), "max_new_tokens": 5}
        model.generate(prompts(), **asked)
        model.generate(prompts(), output_scores=True, return_dict_in_generate=True, **asked)
        seen.append(heard)
    assert seen[1][-2:] == [1, 2] and seen[1][0] is None
    assert seen[0] == seen[1]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["BertLMHeadModel", "RemBertForCausalLM", "ApertusForCausalLM"])
def test_a_cache_that_returns_what_it_does_not_hold_is_refused(name: str, masked: bool) -> None:
    """transformers' StaticCache returns all its memory, which only a mask of its length hides."""
    theirs, ours = models(name)
    mask = torch.ones_like(prompts()) if masked else None
    cache = transformers.StaticCache(config=theirs.config, max_cache_len=20)
    with torch.no_grad(), pytest.raises(ValueError, match="4 tokens; use a DynamicCache"):
        ours(prompts(), attention_mask=mask, past_key_values=cache)
    asked: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None}
    wanted = ours.generate(prompts(), **asked)
    for given in (transformers.DynamicCache(), StaticCache(max_cache_len=20)):
        assert torch.equal(ours.generate(prompts(), past_key_values=given, **asked), wanted)
