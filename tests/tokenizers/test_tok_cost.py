"""The cost of a text is linear in its length, whatever it holds, and memory is what is returned.

Found by counting where that can be counted, and by a bound on CPU seconds that only a quadratic
form breaks.
"""

from __future__ import annotations

import itertools
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tok_corpus

from fastbert.tokenizers import (
    BertTokenizer,
    BertTokenizerLegacy,
    CamembertTokenizer,
    CamembertTokenizerFast,
    FlaubertTokenizer,
    RemBertTokenizerFast,
    alignment,
    moses,
)
from fastbert.tokenizers.engines import cutting, python
from fastbert.tokenizers.flaubert import MosesBpe

FAMILIES = [
    (BertTokenizer, "bert"),
    (BertTokenizerLegacy, "bert"),
    (CamembertTokenizer, "camembert"),
    (CamembertTokenizerFast, "camembert"),
    (FlaubertTokenizer, "flaubert"),
    (RemBertTokenizerFast, "rembert"),
]
BY_FAMILY = pytest.mark.parametrize(
    ("cls", "name"), FAMILIES, ids=[cls.__name__ for cls, _ in FAMILIES]
)
MARKS = "\u0301\u0316"  # not in their canonical order
LONG = {
    "marks": "e" + MARKS * 20_000,
    "marks that are letters": "\u0f73" * 20_000,
    "dots": "." * 40_000,
    "quoted dots": '."' * 20_000,
    "abbreviations": "a.b. " * 6_000,
    "one word": "é" * 40_000,
    "apostrophes": "a'" * 20_000,
    "masks": "<mask>" * 6_000,
}


@BY_FAMILY
@pytest.mark.parametrize("kind", LONG)
def test_long_texts(cls: Any, name: str, kind: str, models: Path) -> None:
    tok = cls.from_pretrained(models / name)
    tok("un", return_offsets_mapping=True)  # tables that are made once
    start = time.process_time()
    tok(LONG[kind], return_offsets_mapping=True, truncation=False, verbose=False)
    assert time.process_time() - start < 8


@pytest.mark.parametrize(
    "text", [LONG["marks"], "o\u0302\u0323" * 9_000, "\u1100\u1161\u11a8" * 9_000]
)
def test_alignment_normalises_every_character_a_few_times(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    class Counting:
        combining = staticmethod(alignment.unicodedata.combining)

        @staticmethod
        def normalize(
            form: Any, part: str, normalize: Any = alignment.unicodedata.normalize
        ) -> str:
            nonlocal seen
            seen += len(part)
            descents = 0
            for before, after in itertools.pairwise(map(alignment.unicodedata.combining, part)):
                descents = descents + (after < before) if after else 0
                assert descents <= 64, "the library's own ordering is quadratic"
            return str(normalize(form, part))

    monkeypatch.setattr(alignment, "unicodedata", Counting)
    alignment.nfc(text)
    assert seen < 12 * len(text)


def test_normal_is_the_library_s_form() -> None:
    dice = tok_corpus.Dice(5)
    pool = "aeo\u0301\u0316\u0323\u0f73\u0f71\u0f72\u0344\u1100\u1161\u11a8"
    pool += "\u09c7\u09be\u0dd9\u0dcf\u0dca é"
    for length in (1, 7, 300):
        for _ in range(60):
            text = "".join(dice.pick(list(pool)) for _ in range(length))
            text += "\u0301\u0316" * 50 * (length > 7)
            want = unicodedata.normalize("NFC", text)
            assert alignment.normal("NFC", text) == want
            found, spans = alignment.nfc(text)
            assert found == want
            if spans is not None:
                assert len(spans) == len(want) and spans[0][0] == 0 and spans[-1][1] == len(text)
                for (_, before), (after, _) in itertools.pairwise(spans):
                    assert after <= before <= len(text)


def test_moses_answers_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules that are replaced give what the package's own give."""
    import sacremoses

    theirs = sacremoses.MosesPunctNormalizer(lang="fr"), sacremoses.MosesTokenizer(lang="fr")
    dice = tok_corpus.Dice(8)
    texts = [*tok_corpus.texts()[::9], "...", 'a..."b', '."."."x', '.."..  "< ."<b', "U.S. M. 3. a"]
    texts += ["".join(dice.pick(list('..".a <M ')) for _ in range(30)) for _ in range(300)]
    ours = [moses.words(text, False) for text in texts]
    monkeypatch.setattr(moses, "_moses", lambda: theirs)
    assert ours == [moses.words(text, False) for text in texts]


@BY_FAMILY
def test_what_is_cut_off_is_not_made(
    cls: Any, name: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two long texts, the overflow is every part of one with every part of the other."""
    tok = cls.from_pretrained(models / name)
    rows = 0

    def counted(*arguments: Any) -> Any:
        nonlocal rows
        rows += 1
        return made(*arguments)

    made = python.assemble
    monkeypatch.setattr(python, "assemble", counted)
    monkeypatch.setattr(cutting, "assemble", counted)
    words = "un deux trois " * 700
    for texts in ([words], [words, words]):
        found = tok(*texts, truncation=True, max_length=12)
        assert len(found["input_ids"]) == 12
        assert not found.encodings[0].overflowing
    assert rows == 2
    assert (
        len(tok(words, truncation=True, max_length=300, return_overflowing_tokens=True)[0].ids)
        == 300
    )


@pytest.mark.parametrize(
    ("cls", "name"), [family for family in FAMILIES if "Legacy" not in family[0].__name__]
)
def test_long_texts_are_cut_as_short_ones(
    cls: Any, name: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that are made without their overflow are those that the library makes with it."""
    tok = cls.from_pretrained(models / name)
    texts = [text * 2 for text in tok_corpus.texts()[3:90:6]]
    dice = tok_corpus.Dice(2)
    for number, text in enumerate(texts):
        tok.truncation_side = ("right", "left")[number % 2]
        options: dict[str, Any] = {
            "truncation": dice.pick(["longest_first", "only_first", "only_second"]),
            "max_length": 4 + number % 9,
            "add_special_tokens": number % 3 > 0,
            "padding": number % 4 > 1,
            "padding_side": ("left", "right")[number % 5 > 2],
            "return_special_tokens_mask": True,
            "return_offsets_mapping": True,
            "return_token_type_ids": True,
        }
        pairs = [None, [texts[number - 1], "un"]][number % 2]
        found: list[Any] = []
        for characters in (10**9, 0):
            monkeypatch.setattr(cutting, "CHARACTERS_A_TOKEN", characters)
            try:
                rows = tok([text, "deux"], pairs, **options)
            except ValueError as error:
                found.append(str(error))
                continue
            maps = [(e.tokens, e.word_ids, e.sequence_ids, e.n_sequences) for e in rows.encodings]
            found.append((dict(rows), maps))
        assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["marks", "abbreviations", "apostrophes"])
@pytest.mark.parametrize(("cls", "name"), [FAMILIES[1], FAMILIES[2], FAMILIES[4]])
def test_every_character_can_be_asked_about(cls: Any, name: str, kind: str, models: Path) -> None:
    tok = cls.from_pretrained(models / name)
    found = tok(LONG[kind][:20_000], verbose=False)
    start = time.process_time()
    tokens = {found.char_to_token(char) for char in range(20_000)}
    words = {found.token_to_word(token) for token in tokens - {None}}
    spans = [found.word_to_chars(word) for word in words]
    assert spans and all(span is not None for span in spans)
    assert [found.token_to_chars(token) for token in tokens - {None}]
    assert time.process_time() - start < 8


def test_long_words_are_not_kept(models: Path) -> None:
    tok = FlaubertTokenizer.from_pretrained(models / "flaubert")
    model = tok.engine.model  # type: ignore[attr-defined]
    assert isinstance(model, MosesBpe)
    before = tok("un " + "é" * 5_000)["input_ids"]
    assert max(map(len, model._cache)) < 100
    assert tok("un " + "é" * 5_000)["input_ids"] == before
