"""Ids and tokens in the place of texts: as transformers 4 took them, in every class."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fastbert.tokenizers as tokenizers

CLASSES = [
    ("BertTokenizer", "bert"),
    ("BertTokenizerLegacy", "bert-cased"),
    ("CamembertTokenizer", "camembert"),
    ("CamembertTokenizerFast", "camembert"),
    ("FlaubertTokenizer", "flaubert"),
    ("RemBertTokenizer", "rembert"),
    ("RemBertTokenizerFast", "rembert"),
]
ONE, TWO = "le petit chat dort ici", "quel beau jour"
OPTIONS: list[dict[str, Any]] = [
    {},
    {"add_special_tokens": False},
    {"padding": "max_length", "max_length": 40, "padding_side": "left"},
    {"truncation": True, "max_length": 9, "return_special_tokens_mask": True},
    {"truncation": "only_first", "max_length": 25, "padding": "max_length"},
    {"return_length": True, "return_token_type_ids": True, "return_attention_mask": False},
    {"pad_to_multiple_of": 8, "padding": True, "return_tensors": "pt"},
]


@pytest.fixture(params=CLASSES, ids=lambda pair: pair[0])
def tok(request: pytest.FixtureRequest, models: Path) -> Any:
    name, folder = request.param
    return getattr(tokenizers, name).from_pretrained(models / folder)


def plain(encoding: Any) -> dict[str, Any]:
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in encoding.items()}


def ids_of(tok: Any, text: str) -> list[int]:
    return tok.convert_tokens_to_ids(tok.tokenize(text))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ids_give_what_their_text_gives(tok: Any, options: dict[str, Any]) -> None:
    one, two = ids_of(tok, ONE), ids_of(tok, TWO)
    before = [*one], [*two]
    for texts, ids in (((ONE,), (one,)), ((ONE, TWO), (one, two))):
        if len(texts) == 2 and options.get("max_length") == 9:
            # Where the rest is odd, the engines cut the two texts differently.
            options = options | {"max_length": 9 + (sum(map(len, ids)) + 9) % 2}
        if len(texts) == 1 and options.get("truncation") == "only_first":
            continue
        wanted = plain(tok(*texts, **options))
        if not options.get("add_special_tokens", True) and "token_type_ids" in wanted:
            # The Rust classes give the second text its type even so.
            wanted["token_type_ids"] = [0] * len(wanted["input_ids"])
        batch_of_one = "return_tensors" in options
        got = tok.prepare_for_model(*ids, prepend_batch_axis=batch_of_one, **options)
        row = {k: v if k != "length" else [v] for k, v in plain(got).items()}
        assert row == wanted
        assert plain(tok.encode_plus(*ids, **options)) == plain(got)
        ids_wanted = got["input_ids"]
        assert plain({"a": tok.encode(*ids, **options)}) == plain({"a": ids_wanted})
        tokens = [tok.tokenize(text) for text in texts]
        assert plain({"a": tok.encode(*tokens, **options)}) == plain({"a": ids_wanted})
    assert (one, two) == before, "the caller's lists were changed"


@pytest.mark.parametrize("options", [OPTIONS[i] for i in (0, 2, 3, 6)], ids=str)
def test_batches_of_ids(tok: Any, options: dict[str, Any]) -> None:
    texts = [ONE, TWO, "oui"]
    rows = [ids_of(tok, text) for text in texts]
    assert plain(tok.batch_encode_plus(rows, **options)) == plain(tok(texts, **options))
    options = {key: value for key, value in options.items() if key != "truncation"}
    if options.get("max_length") == 9:
        options["max_length"] = 60
        options["padding"] = "max_length"
    pairs = [(rows[0], rows[1]), (rows[1], rows[2])]
    wanted = tok(texts[:2], texts[1:], **options)
    assert plain(tok.batch_encode_plus(pairs, **options)) == plain(wanted)


def test_batches_of_pairs(tok: Any) -> None:
    """As cross-encoders are fed: [(query, text), ...], tuples or lists."""
    wanted = plain(tok([ONE, TWO], [TWO, ONE], padding=True))
    for kind in (tuple, list):
        pairs = [kind((ONE, TWO)), kind((TWO, ONE))]
        assert plain(tok(pairs, padding=True)) == wanted
        assert plain(tok.batch_encode_plus(pairs, padding=True)) == wanted
    assert plain(tok((ONE, TWO))) == plain(tok([ONE, TWO]))
    with pytest.raises(TypeError, match=r"text\[1\] is list"):
        tok([ONE, [TWO]])
    with pytest.raises(TypeError, match=r"text\[0\] is int.*prepare_for_model"):
        tok([5, 6])


def test_what_is_cut_off(tok: Any) -> None:
    one, two = ids_of(tok, ONE), ids_of(tok, TWO)
    specials = tok.num_special_tokens_to_add(pair=True)
    limit = len(one) + len(two) + specials - 2
    cut = tok.prepare_for_model(
        one, two, truncation="only_first", max_length=limit, stride=1,
        return_overflowing_tokens=True,
    )  # fmt: skip
    assert cut["overflowing_tokens"] == one[-3:] and cut["num_truncated_tokens"] == 2
    assert cut["input_ids"] == tok.build_inputs_with_special_tokens(one[:-2], two)
    whole = tok.prepare_for_model(
        one, truncation=True, max_length=70, return_overflowing_tokens=True
    )
    room = len(one) + tok.num_special_tokens_to_add() - 70
    assert (whole["overflowing_tokens"], whole["num_truncated_tokens"]) == ([], room)
    with pytest.raises(ValueError, match="no single overflow"):
        tok.prepare_for_model(
            one, two, truncation=True, max_length=7, return_overflowing_tokens=True
        )
    with pytest.raises(ValueError, match="Ids do not tell where"):
        tok.prepare_for_model(one, return_offsets_mapping=True)
    with pytest.raises(TypeError, match="a list of tokens or a list of ids"):
        tok.encode([one])
    with pytest.raises(TypeError, match="unexpected keyword"):
        tok.prepare_for_model(one, paddding=True)


def test_targets_are_tokenised_like_inputs(tok: Any) -> None:
    with tok.as_target_tokenizer() as target:
        assert plain(target(TWO)) == plain(tok(TWO))
    assert tok(ONE, text_target=TWO)["labels"] == tok(TWO)["input_ids"]


def test_the_rust_tokenizer_is_at_hand(models: Path) -> None:
    fast = tokenizers.BertTokenizer.from_pretrained(models / "bert")
    assert fast.backend_tokenizer.encode(ONE).ids == fast(ONE)["input_ids"]
    slow = tokenizers.FlaubertTokenizer.from_pretrained(models / "flaubert")
    with pytest.raises(AttributeError, match="does not run in Rust"):
        _ = slow.backend_tokenizer


def test_as_transformers_prepares_them(models: Path) -> None:
    ours = tokenizers.FlaubertTokenizer.from_pretrained(models / "flaubert")
    theirs = transformers.FlaubertTokenizer.from_pretrained(models / "flaubert")
    one, two = ids_of(ours, ONE), ids_of(ours, TWO)
    for options in (
        {"truncation": "only_second", "max_length": 20, "stride": 2},
        {"truncation": "only_first", "max_length": 20, "padding": "max_length"},
        {"truncation": True, "max_length": 7, "return_special_tokens_mask": True},
        {"padding": "max_length", "max_length": 30, "return_length": True},
    ):
        more = {
            **options,
            "return_overflowing_tokens": str(options.get("truncation")).startswith("only"),
        }
        wanted = dict(theirs.prepare_for_model(one, two, **more))
        got = dict(ours.prepare_for_model(one, two, **more, return_token_type_ids=False))
        wanted.pop("token_type_ids", None)
        assert json.dumps(got, sort_keys=True) == json.dumps(wanted, sort_keys=True), options


class _Rows(torch.utils.data.Dataset[Any]):
    """Texts, tokenised one by one where the DataLoader's workers are."""

    def __init__(self, tok: Any, texts: list[str]) -> None:
        self.tok, self.texts = tok, texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Any:
        return self.tok(self.texts[index])


def test_workers_of_a_data_loader(tok: Any) -> None:
    """Tokenizers and their encodings cross process borders; pad() is the collate function."""
    texts = [ONE, TWO, "oui", f"{TWO} {ONE}"]
    wanted = tok(texts, padding=True, return_tensors="pt")
    loader = torch.utils.data.DataLoader(
        _Rows(tok, texts),
        batch_size=4,
        num_workers=2,
        collate_fn=functools.partial(tok.pad, return_tensors="pt"),
        multiprocessing_context="fork",
    )
    (batch,) = loader
    assert plain(batch) == plain(wanted)
    collate = transformers.DataCollatorWithPadding(tok)
    assert plain(collate([tok(text) for text in texts])) == plain(wanted)
    for same in (pickle.loads(pickle.dumps(tok)), copy.deepcopy(tok)):
        assert plain(same(texts, padding=True, return_tensors="pt")) == plain(wanted)
