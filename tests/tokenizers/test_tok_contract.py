"""The call contract: against transformers 5 live, and the Python engine against the Rust one."""

from __future__ import annotations

import inspect
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tok_corpus
import torch
import transformers

from fastbert.tokenizers import BatchEncoding, BertTokenizer, BertTokenizerLegacy

LONG = "the quick brown fox jumps over the lazy dog and runs far away into the dark wood again"
BATCH = ["Hello world!", LONG, "", "Ça va, très bien ? 日本 x\u0301"]
OTHER = ["One more text.", "b", LONG + " and again", "fin"]

ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"padding": True},
    {"padding": "longest", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 24, "truncation": True},
    {"padding": "max_length", "max_length": 30},
    {"padding": True, "padding_side": "left"},
    {"truncation": True, "max_length": 9},
    {"truncation": "longest_first", "max_length": 10, "stride": 2},
    {"truncation": "longest_first", "max_length": 12, "stride": 2,
     "return_overflowing_tokens": True},
    {"max_length": 8},
    {"add_special_tokens": False},
    {"add_special_tokens": False, "truncation": True, "max_length": 5},
    {"return_token_type_ids": False, "return_attention_mask": False},
    {"return_special_tokens_mask": True, "return_length": True},
    {"return_offsets_mapping": True, "padding": True},
    {"padding": True, "return_tensors": "pt"},
    {"padding": True, "return_tensors": "np", "return_offsets_mapping": True},
    {"padding": "max_length", "max_length": 12, "truncation": True, "return_tensors": "pt",
     "return_overflowing_tokens": True, "stride": 3},
    {"split_special_tokens": True},
]  # fmt: skip


def plain(encoding: Any) -> dict[str, Any]:
    """Keys and values as lists, in order; tensors are marked by their dtype and shape."""
    found: dict[str, Any] = {}
    for key, value in encoding.items():
        if isinstance(value, (torch.Tensor, np.ndarray)):
            found[key] = [type(value).__name__, str(value.dtype), value.shape, value.tolist()]
        else:
            found[key] = json.loads(json.dumps(value))  # tuples and lists of offsets alike
    return found


@pytest.fixture(scope="module")
def pair_of(minilm: Path) -> tuple[Any, Any]:
    return BertTokenizer.from_pretrained(minilm), transformers.BertTokenizer.from_pretrained(minilm)


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: "-".join(map(str, a)) or "none")
def test_calls_equal_transformers(pair_of: tuple[Any, Any], arguments: dict[str, Any]) -> None:
    ours, theirs = pair_of
    inputs: list[tuple[Any, ...]] = [(BATCH,), (BATCH[1],), (BATCH, OTHER), (BATCH[1], OTHER[0])]
    for texts in inputs:
        if texts == (BATCH[1],) and "return_tensors" in arguments:
            assert ours(*texts, **arguments)["input_ids"].ndim == 2
        assert plain(ours(*texts, **arguments)) == plain(theirs(*texts, **arguments)), texts


def test_no_argument_is_left_out() -> None:
    texts = {"text", "text_pair", "text_target", "text_pair_target", "is_split_into_words"}
    elsewhere = texts | {"verbose"}  # the tests below; verbose: test_too_long_is_said_once
    compared = {name for arguments in ARGUMENTS for name in arguments}
    asked = set(inspect.signature(BertTokenizer.__call__).parameters) - {"self"}
    assert asked == compared | elsewhere


def test_too_long_is_said_once(minilm: Path, caplog: pytest.LogCaptureFixture) -> None:
    for verbose in (False, True, True):
        tok = BertTokenizer.from_pretrained(minilm)
        tok.model_max_length = 8
        caplog.clear()
        for _ in range(2):
            tok(LONG, verbose=verbose)
        assert len(caplog.records) == int(verbose)


@pytest.mark.parametrize("strategy", ["only_first", "only_second"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stride", [0, 3])
def test_overflow_of_pairs(pair_of: tuple[Any, Any], strategy: str, side: str, stride: int) -> None:
    ours, theirs = pair_of
    ours.truncation_side = theirs.truncation_side = side
    try:
        options: dict[str, Any] = {
            "truncation": strategy,
            "max_length": 26,
            "stride": stride,
            "return_overflowing_tokens": True,
            "return_offsets_mapping": True,
            "padding": True,
        }
        pairs = (
            [LONG + " " + LONG, "short", LONG], ["a question", "b", "x y z"]
        )  # fmt: skip
        if strategy == "only_second":
            pairs = (pairs[1], pairs[0])
        assert plain(ours(*pairs, **options)) == plain(theirs(*pairs, **options))
    finally:
        ours.truncation_side = theirs.truncation_side = "right"


def test_words_and_characters(pair_of: tuple[Any, Any]) -> None:
    ours, theirs = pair_of
    words = [["Hello", "unaffable", "wörld!"], ["a"], ["", "x y"]]
    for texts, options in (
        ((words,), {"is_split_into_words": True}),
        ((words, words[::-1]), {"is_split_into_words": True}),
        ((["Hello unaffable wörld!", "été"],), {}),
        ((["Hello unaffable", "b"], ["wörld!", "un a"]), {}),
    ):
        one, two = (
            tok(*texts, padding=True, return_offsets_mapping=True, **options)
            for tok in (ours, theirs)
        )
        assert plain(one) == plain(two)
        assert one.n_sequences == two.n_sequences and one.is_fast
        for row in range(len(one["input_ids"])):
            assert one.tokens(row) == two.tokens(row)
            assert one.word_ids(row) == two.word_ids(row) == one.words(row)
            assert one.sequence_ids(row) == two.sequence_ids(row)
            for i in range(len(one["input_ids"][row])):
                for name in ("token_to_sequence", "token_to_word", "token_to_chars"):
                    assert getattr(one, name)(row, i) == getattr(two, name)(row, i)
            for i, sequence in itertools.product(range(25), range(one.n_sequences or 1)):
                for name in ("char_to_token", "char_to_word", "word_to_tokens", "word_to_chars"):
                    mine = getattr(one, name)(row, i, sequence_index=sequence)
                    try:
                        other = getattr(two, name)(row, i, sequence_index=sequence)
                    except TypeError:  # theirs unpacks None where there is no such word
                        other = None
                    assert mine == other, (name, i)
    # A negative index counts from the end (theirs fails there).
    assert one.token_to_word(-2) == one.token_to_word(len(one["input_ids"][0]) - 2)


def test_3000_texts_on_the_real_vocabulary(pair_of: tuple[Any, Any]) -> None:
    ours, theirs = pair_of
    texts = tok_corpus.texts()
    options: dict[str, Any] = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    one, two = ours(texts, **options), theirs(texts, **options)
    assert plain(one) == plain(two)
    for row, text in enumerate(texts):
        assert one.tokens(row) == two.tokens(row), text
        assert one.word_ids(row) == two.word_ids(row), text
    assert ours.batch_decode(one["input_ids"]) == theirs.batch_decode(two["input_ids"])
    assert ours.batch_decode(one["input_ids"], skip_special_tokens=True) == theirs.batch_decode(
        two["input_ids"], skip_special_tokens=True
    )


def test_targets_become_labels(pair_of: tuple[Any, Any]) -> None:
    ours, theirs = pair_of
    assert plain(ours(BATCH, text_target=OTHER)) == plain(theirs(BATCH, text_target=OTHER))
    assert plain(ours(text_target=BATCH)) == plain(theirs(text_target=BATCH))
    pairs = {"text_target": OTHER, "text_pair_target": BATCH}
    assert plain(ours(BATCH, OTHER, **pairs)) == plain(theirs(BATCH, OTHER, **pairs))
    assert plain(ours(**pairs)) == plain(theirs(**pairs))


def test_methods_on_ids(pair_of: tuple[Any, Any]) -> None:
    ours, theirs = pair_of
    a, b = [7592, 2088], [2178]
    assert ours.build_inputs_with_special_tokens(a, b) == [101, 7592, 2088, 102, 2178, 102]
    assert ours.create_token_type_ids_from_sequences(a, b) == [0, 0, 0, 0, 1, 1]
    assert ours.get_special_tokens_mask(a, b) == [1, 0, 0, 1, 0, 1]
    assert ours.get_special_tokens_mask([101, 7592, 102], already_has_special_tokens=True) == [
        1, 0, 1,
    ]  # fmt: skip
    assert ours.max_len_single_sentence == 510 and ours.max_len_sentences_pair == 509
    assert ours.convert_tokens_to_ids(["hello", "[SEP]", "nosuchtoken"]) == [7592, 102, 100]
    assert ours.convert_ids_to_tokens([7592, 102], skip_special_tokens=True) == ["hello"]
    assert ours.convert_tokens_to_string(["un", "##aff"]) == "unaff"
    assert ours.tokenize("Hello unaffable") == theirs.tokenize("Hello unaffable")
    assert ours.encode("a", "b") == theirs.encode("a", "b")
    assert ours.encode("a", return_tensors="pt").shape == (1, 3)
    for ids in (torch.tensor(a), np.array(a), a, 7592, torch.tensor([a, a])):
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.all_special_ids == theirs.all_special_ids
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    assert (
        ours.batch_encode_plus([("a", "b"), ("c", "d e")])["input_ids"]
        == ours(["a", "c"], ["b", "d e"])["input_ids"]
    )


def test_truncate_sequences(minilm: Path) -> None:
    tok = BertTokenizerLegacy.from_pretrained(minilm)
    ids, pair = list(range(10)), list(range(10, 14))
    assert tok.truncate_sequences(ids, num_tokens_to_remove=3, stride=2) == (
        list(range(7)), None, list(range(5, 10)),
    )  # fmt: skip
    first, second, overflow = tok.truncate_sequences(ids, pair, num_tokens_to_remove=9)
    assert (len(first), len(second or []), overflow) == (3, 2, [])
    tok.truncation_side = "left"
    assert tok.truncate_sequences(ids, pair, 2, "only_second", 1) == (ids, [12, 13], [10, 11, 12])
    with pytest.raises(ValueError, match="second text has 4"):
        tok.truncate_sequences(ids, pair, 4, "only_second")


def test_pad(pair_of: tuple[Any, Any]) -> None:
    ours, theirs = pair_of
    rows = [ours(text, return_special_tokens_mask=True) for text in BATCH]
    before = [dict(row) for row in rows]
    for options in (
        {},
        {"padding": "max_length", "max_length": 40},
        {"pad_to_multiple_of": 8, "padding_side": "left"},
        {"return_tensors": "pt"},
        {"padding": False},
        {"return_attention_mask": False},
    ):
        assert plain(ours.pad(rows, **options)) == plain(
            theirs.pad([dict(row) for row in rows], **options)
        ), options
    assert [dict(row) for row in rows] == before, "pad() changed its input"
    single = ours.pad({"input_ids": [101, 102]}, padding="max_length", max_length=4)
    assert single["input_ids"] == [101, 102, 0, 0] and single["attention_mask"] == [1, 1, 0, 0]
    tensors = ours.pad({"input_ids": [torch.tensor([5, 6]), torch.tensor([7])]})
    assert tensors["input_ids"].tolist() == [[5, 6], [7, 0]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {"truncation": True, "max_length": 11},
        {"truncation": True, "max_length": 9, "stride": 2},
        {"truncation": "only_first", "max_length": 12},
        {"truncation": "only_second", "max_length": 22, "stride": 1},
        {"padding": True, "truncation": True, "max_length": 15, "pad_to_multiple_of": 5},
        {"add_special_tokens": False, "truncation": True, "max_length": 4},
        {"is_split_into_words": True, "padding": "max_length", "max_length": 40},
    ],
    ids=str,
)
def test_both_engines_agree(minilm: Path, side: str, options: dict[str, Any]) -> None:
    """On ASCII text the Python and the Rust tokenizer cut alike, so every row must be alike.

    (Where longest_first leaves a pair an odd number of tokens, transformers' two engines give the
    odd one to different texts, and so do ours: the lengths here leave even numbers.)
    """
    options = options | {"return_special_tokens_mask": True, "return_offsets_mapping": True}
    engines = [cls.from_pretrained(minilm) for cls in (BertTokenizerLegacy, BertTokenizer)]
    first = ["unaffable people run, far away from here", "a b c d e f g h i j", "one two"]
    second = ["one", "a b c d e f g h i j k l m n o p", "unaffable people"]
    calls: list[tuple[list[Any], ...]] = [(first,), (first, second)]
    if options.get("is_split_into_words"):
        calls = [tuple([text.split() for text in texts] for texts in call) for call in calls]
    for call in calls:
        strategy = options.get("truncation")
        if len(call) == 1 and strategy == "only_second":
            continue
        if strategy in ("only_first", "only_second"):
            # The named text must be the longer one.
            call = tuple(texts[1:2] if i else texts[:1] for i, texts in enumerate(call))
            call = call if strategy == "only_first" or len(call) == 1 else (call[0], second[1:2])
            if strategy == "only_first" and len(call) == 2:
                call = (second[1:2], ["one"])
        results = []
        for tok in engines:
            tok.truncation_side = tok.padding_side = side
            results.append(tok(*call, return_overflowing_tokens=True, **options))
        python, rust = results
        if not options.get("add_special_tokens", True):
            # There the Python classes of transformers 4 give both texts the type 0.
            assert not any(map(any, python.pop("token_type_ids")))
            rust.pop("token_type_ids")
        assert plain(python) == plain(rust)
        for row in range(len(rust["input_ids"])):
            assert python.tokens(row) == rust.tokens(row)
            assert python.word_ids(row) == rust.word_ids(row)
            assert python.sequence_ids(row) == rust.sequence_ids(row)
            for i in range(12):
                for name in ("char_to_token", "char_to_word", "word_to_tokens", "word_to_chars"):
                    assert getattr(python, name)(row, i) == getattr(rust, name)(row, i)


def test_batch_encoding(minilm: Path) -> None:
    tok = BertTokenizer.from_pretrained(minilm)
    enc = tok(["a b", "c"], padding=True)
    assert enc.input_ids is enc["input_ids"] and set(enc.keys()) == set(dict(**enc))
    assert enc[1].tokens == ["[CLS]", "c", "[SEP]", "[PAD]"]
    assert enc[0:1]["input_ids"] == enc["input_ids"][:1]
    assert enc.to("cpu") is enc
    with pytest.raises(AttributeError, match="no 'labels'; it holds input_ids"):
        _ = enc.labels
    moved = tok(["a"], return_tensors="pt").to(torch.device("meta"))
    assert moved["input_ids"].device.type == "meta"
    bare = BatchEncoding({"input_ids": [[1, 2]]}, tensor_type="pt")
    assert bare["input_ids"].shape == (1, 2) and not bare.is_fast
    with pytest.raises(ValueError, match="holds only values"):
        bare.tokens()
    assert BatchEncoding({"input_ids": [1]}, tensor_type="np", prepend_batch_axis=True)[
        "input_ids"
    ].tolist() == [[1]]


def test_threads_share_a_tokenizer(minilm: Path) -> None:
    """Truncation and padding are state of the Rust tokenizer: calls must not mix theirs up."""
    tok = BertTokenizer.from_pretrained(minilm)
    options: list[dict[str, Any]] = [
        {"padding": "max_length", "max_length": 20, "truncation": True},
        {"padding": True},
        {"truncation": True, "max_length": 5},
        {},
    ]
    wanted = [plain(tok(BATCH, **one)) for one in options]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(i % 4, pool.submit(tok, BATCH, **options[i % 4])) for i in range(200)]
        assert all(plain(job.result()) == wanted[i] for i, job in jobs)
