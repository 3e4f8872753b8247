"""A tokenizer's pickle tells what the tokenizer is, not what it was called with.

Caches of data sets go by a hash of that pickle.
"""

from __future__ import annotations

import copy
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer, models as rust_models

from fastbert.tokenizers import (
    BertTokenizer,
    BertTokenizerLegacy,
    CamembertTokenizer,
    CamembertTokenizerFast,
    FlaubertTokenizer,
    PreTrainedTokenizerFast,
    RemBertTokenizer,
    RemBertTokenizerFast,
)

FAMILIES = [
    (BertTokenizer, "bert", {}),
    (BertTokenizer, "bert", {"never_split": ["un", "deux", "trois"]}),
    (BertTokenizerLegacy, "bert", {"never_split": ["un", "deux", "trois"]}),
    (CamembertTokenizer, "camembert", {}),
    (CamembertTokenizerFast, "camembert", {}),
    (FlaubertTokenizer, "flaubert", {}),
    (RemBertTokenizer, "rembert", {}),
    (RemBertTokenizerFast, "rembert", {}),
]


def use(tok: Any) -> None:
    """Everything that reads, with every state that calls have."""
    tok(["un", "deux " * 900], padding=True, truncation=True, max_length=5, stride=1,
        return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
    tok("un " * 2000)
    tok("un", max_length=3)
    tok("[SEP]", split_special_tokens=True)
    tok("un", "deux", padding="max_length", max_length=9, padding_side="left")
    tok.decode(tok.encode("un"))
    tok.pad([{"input_ids": [1]}, {"input_ids": [1, 2]}])
    tok.tokenize("é")
    tok.get_vocab()
    repr(tok)
    with pytest.raises(ValueError, match="only_second"):
        tok("un deux un deux", truncation="only_second", max_length=4)


@pytest.mark.parametrize(
    ("cls", "name", "options"), FAMILIES, ids=lambda v: getattr(v, "__name__", "")
)
def test_calls_leave_no_trace(cls: Any, name: str, options: Any, models: Path) -> None:
    tok = cls.from_pretrained(models / name, model_max_length=500, **options)
    tok.add_tokens(["neuf", "<x>"])
    before = pickle.dumps(tok)
    use(tok)
    assert pickle.dumps(tok) == before
    again = pickle.loads(before)
    want = tok("un neuf <x> deux", "é")
    assert dict(again("un neuf <x> deux", "é")) == dict(want)
    assert dict(copy.deepcopy(tok)("un neuf <x> deux", "é")) == dict(want)
    # The order of a set differs from one process to the next.
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(before)}
    assert not opcodes & {"EMPTY_SET", "FROZENSET"}


def test_a_file_keeps_what_it_says(tmp_path: Path) -> None:
    made = RustTokenizer(rust_models.WordLevel({"<unk>": 0, "<pad>": 1}, unk_token="<unk>"))
    made.enable_padding(direction="left", pad_id=1, pad_token="<pad>")
    made.save(str(tmp_path / "tokenizer.json"))
    tok = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    before = pickle.dumps(tok)
    tok(["a", "b"], padding=True)
    assert pickle.dumps(tok) == before
    assert pickle.loads(before).padding_side == tok.padding_side == "left"
    assert made.padding is not None, "the caller's own object is left alone"
