"""Offsets and word ids of the Python engine, which transformers 4 never had."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tok_cases
import tok_corpus

from fastbert.tokenizers import (
    BertTokenizerLegacy,
    CamembertTokenizer,
    FlaubertTokenizer,
    RemBertTokenizer,
)
from fastbert.tokenizers.alignment import align, nfc

PYTHON = [
    (BertTokenizerLegacy, "bert", {}),
    (CamembertTokenizer, "camembert", {}),
    (CamembertTokenizer, "camembert-bpe", {}),
    (FlaubertTokenizer, "flaubert", {}),
    (FlaubertTokenizer, "flaubert", {"do_lowercase": True}),
    (RemBertTokenizer, "rembert", {"do_lower_case": True}),
]


@pytest.mark.parametrize(
    ("cls", "folder", "options"), PYTHON, ids=[f"{f}-{len(o)}" for _, f, o in PYTHON]
)
def test_offsets_are_sound(cls: Any, folder: str, options: Any, models: Path) -> None:
    """On every text: spans lie in it, never go backwards, words count up from 0."""
    tok = cls.from_pretrained(models / folder, **options)
    tok_cases.extend(tok)
    texts = tok_cases.strew(tok_corpus.texts()[::2])
    enc = tok(texts, return_offsets_mapping=True, add_special_tokens=False)
    for row, text in enumerate(texts):
        last = 0
        for start, end in enc["offset_mapping"][row]:
            assert last <= start + 1 and 0 <= start <= end <= len(text), (text, row)
            last = start
        words = enc.word_ids(row)
        assert words == sorted(words, key=lambda w: -1 if w is None else w)
        assert sorted(set(words)) == list(range(len(set(words)))), text


def letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFC", text) if c.isalnum())


@pytest.mark.parametrize(
    ("cls", "folder", "mark"),
    [
        (FlaubertTokenizer, "flaubert", "</w>"),
        (CamembertTokenizer, "camembert-identity", "▁"),
        (BertTokenizerLegacy, "bert-cased", "##"),
    ],
)
def test_spans_spell_their_tokens(cls: Any, folder: str, mark: str, models: Path) -> None:
    """Where the letters of a text survive normalisation, each span holds its token's letters."""
    options = {"do_lower_case": False} if cls is BertTokenizerLegacy else {}
    tok = cls.from_pretrained(models / folder, **options)
    checked = 0
    for text in tok_corpus.texts():
        enc = tok(text, return_offsets_mapping=True, add_special_tokens=False)
        tokens = [token.replace(mark, "") for token in enc.tokens()]
        if any(t in tok.added_tokens_encoder for t in enc.tokens()) or "ﾊ" in text:
            continue
        if letters("".join(tokens)) != letters(text):
            continue  # compatibility forms were rewritten, or the word was unknown as a whole
        for token, (start, end) in zip(tokens, enc["offset_mapping"], strict=True):
            # A mark that does not compose shares its letter's span.
            if letters(token):
                assert letters(token) == letters(text[start:end]), (text, token, text[start:end])
            checked += 1
    assert checked > 10_000


def test_flaubert_words(models: Path) -> None:
    tok = FlaubertTokenizer.from_pretrained(models / "flaubert")
    text = "Aujourd’hui, l'été… «\u00a0oui\u00a0» dit e\u0301lle"
    enc = tok(text, return_offsets_mapping=True, add_special_tokens=False)
    words: dict[int, list[tuple[int, int]]] = {}
    for word, span in zip(enc.word_ids(), enc["offset_mapping"], strict=True):
        words.setdefault(word, []).append(span)
    found = [text[spans[0][0] : spans[-1][1]] for spans in words.values()]
    assert found == [
        "Aujourd’", "hui", ",", "l'", "été", "…", "«\u00a0", "oui", "\u00a0»", "dit", "e\u0301lle",
    ] or [w.strip("\u00a0") for w in found] == [
        "Aujourd’", "hui", ",", "l'", "été", "…", "«", "oui", "»", "dit", "e\u0301lle",
    ]  # fmt: skip
    assert enc.char_to_word(text.index("été")) == 4
    assert tok(["L'été", "dit"], is_split_into_words=True).word_ids()[1:-1][-1] == 1


def test_nfc_spans() -> None:
    text = "e\u0301a\u0323\u0302x\u1100\u1161\u11a8y"
    composed, spans = nfc(text)
    assert composed == unicodedata.normalize("NFC", text) == "éậx각y"
    assert spans == [(0, 2), (2, 5), (5, 6), (6, 9), (9, 10)]
    assert nfc("éa") == ("éa", None)
    for text in tok_corpus.texts():
        composed, spans = nfc(text)
        assert composed == unicodedata.normalize("NFC", text)
        assert spans is None or len(spans) == len(composed)


def test_align_recovers_from_rewriting() -> None:
    source = [(char, (i, i + 1)) for i, char in enumerate("a``b--c")]
    assert align(source, ['a"b', "-", "c"]) == [
        [(0, 1), (1, 3), (3, 4)], [(4, 5)], [(6, 7)],
    ] or align(source, ['a"b', "-", "c"])[2] == [(6, 7)]  # fmt: skip
    assert align([], ["ab"]) == [[(0, 0), (0, 0)]]
    assert align(source, []) == []
    # Nothing in common: every character gets the whole.
    assert align(source[:2], ["zz"]) == [[(0, 2), (0, 2)]]
