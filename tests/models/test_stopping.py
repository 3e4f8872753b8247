"""Texts end at the token that completes a stop string, and when their time is over.

The mechanism: the last tokens are decoded with and without the very last one, so that strings
across tokens, inside one, and in bytes of a character are found, and those further ahead are not.
"""

from __future__ import annotations

import itertools
import string
import time
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from apertus_pair import ids, pair
from transformers.generation.stopping_criteria import StopStringCriteria

import fastbert
from fastbert.generation.stopping import MaxTime, StopStrings

PIECES = ["st", "op", "stop", "opera", "sto", "pper", "las", "topper", "s", "pped", "at", "tion"]
PIECES += [" stop", " ", "!", "<|end|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Pieces and single bytes, as byte-level tokenizers have them; nothing is merged."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys([*letters, *(piece.replace(" ", "Ġ") for piece in PIECES)])
    model = tokenizers.models.BPE({word: at for at, word in enumerate(words)}, [])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def tokens(tokenizer: Any, pieces: list[str]) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(piece.replace(" ", "Ġ")) for piece in pieces]


TEXTS: list[tuple[list[str], bool]] = [
    (["st", "op"], True),
    (["stop"], True),
    (["st", "opera"], True),
    (["sto", "pper"], True),
    (["las", "topper"], True),
    (["s", "topper"], True),
    (["stop", "at"], False),
    (["st", "op", "at"], False),
    (["st", "opera", "tion"], False),
    (["op", "st"], False),
    (["stop", "st", "op"], True),
    ([" stop"], True),
    (["st"], False),
]


def test_where_stop_strings_end(tokenizer: Any) -> None:
    for pieces, ends in TEXTS:
        row = torch.tensor([tokens(tokenizer, pieces)])
        assert StopStrings("stop", tokenizer)(row, None).tolist() == [ends], pieces
        assert StopStrings(["zz", "stop"], tokenizer)(row, None).tolist() == [ends], pieces
        assert StopStrings("zz", tokenizer)(row, None).tolist() == [False], pieces


def test_every_sequence_of_three_ends_where_transformers_ends_it(tokenizer: Any) -> None:
    rows = torch.tensor([tokens(tokenizer, list(p)) for p in itertools.product(PIECES, repeat=3)])
    for strings in (["stop"], ["op", "!"], [" stop", "s"], ["pst"], ["stopstop at"]):
        expected = StopStringCriteria(tokenizer, strings)(rows, None)
        assert torch.equal(StopStrings(strings, tokenizer)(rows, None), expected), strings
        assert (expected.any() and not expected.all()) or strings == ["stopstop at"]


def test_bytes_of_one_character(tokenizer: Any) -> None:
    """A character of three tokens ends its text with the third; before, it is no character."""
    euro = tokenizer("a€")["input_ids"]
    assert len(euro) == 4
    stop = StopStrings("€", tokenizer)
    assert [bool(stop(torch.tensor([euro[:n]]), None)) for n in (2, 3, 4)] == [False, False, True]
    assert not stop(torch.tensor([[*euro, euro[0]]]), None)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_stops(beams: int) -> None:
    """Beside transformers, in a batch in which one text stops before the other."""
    ours, theirs = pair()
    letters = {letter: at for at, letter in enumerate(string.ascii_letters + "?")}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    made.decoder = tokenizers.decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    batch = ids(2, 6)
    given = {"attention_mask": torch.ones_like(batch), "max_new_tokens": 12, "pad_token_id": 1}
    whole = ours.generate(batch, num_beams=beams, **given)
    text = fast.decode(whole[0, 6:]).replace(" ", "")
    stop = text[2:4]
    asked = {**given, "num_beams": beams, "stop_strings": [stop], "tokenizer": fast}
    texts = [model.generate(batch, **asked) for model in (ours, theirs)]
    assert torch.equal(*texts)
    if beams == 1:
        assert texts[0][0, 6:].tolist()[:4] == whole[0, 6:10].tolist()
        assert set(texts[0][0, 10:].tolist()) <= {1}


def test_time() -> None:
    stop = MaxTime(0.02)
    assert not stop(torch.zeros(1, 1), None)
    time.sleep(0.03)
    assert stop(torch.zeros(1, 1), None)
    ours, _ = pair()
    batch = ids(1, 4)
    written = ours.generate(batch, max_new_tokens=50, max_time=1e-6)
    assert written.shape == (1, 5)


def test_what_is_no_stop() -> None:
    ours, _ = pair()
    batch = ids(1, 4)
    with pytest.raises(ValueError, match="give generate the model's tokenizer"):
        ours.generate(batch, stop_strings="a")
    with pytest.raises(ValueError, match="not empty"):
        ours.generate(batch, stop_strings=["a", ""], tokenizer=object())
    with pytest.raises(ValueError, match="above 0"):
        ours.generate(batch, max_time=0)
    assert fastbert.GenerationConfig(stop_strings="a").stop_strings == "a"
