"""`pad` makes of rows what transformers' collators ask of it, and names rows that do not match."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fastbert.tokenizers import BertTokenizer, CamembertTokenizer

COLLATORS = {
    "padding": transformers.DataCollatorWithPadding,
    "tokens": transformers.DataCollatorForTokenClassification,
    "sequences": transformers.DataCollatorForSeq2Seq,
    "masks": transformers.DataCollatorForLanguageModeling,
}


@pytest.mark.parametrize("kind", COLLATORS)
@pytest.mark.parametrize("form", ["lists", "arrays", "tensors", "encodings"])
def test_collators(kind: str, form: str, models: Path) -> None:
    ours = BertTokenizer.from_pretrained(models / "bert")
    theirs = transformers.BertTokenizer.from_pretrained(str(models / "bert"))
    texts = ["un", "un délicieux fromage", "deux"]
    results = []
    for tok in (ours, theirs):
        rows: list[Any] = [tok(text, return_special_tokens_mask=True) for text in texts]
        if form != "encodings":
            make = {"lists": list, "arrays": np.array, "tensors": torch.tensor}[form]
            rows = [{key: make(values) for key, values in row.items()} for row in rows]
        for number, row in enumerate(rows):
            if kind == "padding":
                row["label"] = number
            elif kind != "masks":
                row["labels"] = [1] * len(row["input_ids"])
        torch.manual_seed(0)
        results.append(COLLATORS[kind](tok, pad_to_multiple_of=4)(rows))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
        assert value.dtype == results[1][key].dtype


def test_rows_that_do_not_match(models: Path) -> None:
    tok = BertTokenizer.from_pretrained(models / "bert")
    with pytest.raises(ValueError, match="row 1 input_ids"):
        tok.pad([{"input_ids": [1], "label": 0}, {"input_ids": [1, 2]}])
    with pytest.raises(TypeError, match="'text' holds 'un', which cannot stand in a tensor"):
        tok.pad([{"input_ids": [1], "text": "un"}], return_tensors="pt")
    with pytest.raises(TypeError, match="'label' holds None"):
        tok.pad([{"input_ids": [1], "label": None}], return_tensors="np")
    assert tok.pad({"input_ids": []}).data == {"input_ids": [], "attention_mask": []}


def test_names_of_the_class(models: Path, tmp_path: Path) -> None:
    """Programs ask the class and the object alike."""
    assert CamembertTokenizer.model_input_names == ["input_ids", "attention_mask"]
    tok = BertTokenizer.from_pretrained(models / "bert", model_input_names=["input_ids"])
    assert list(tok("un")) == ["input_ids"]
    assert "token_type_ids" in BertTokenizer.model_input_names
    shutil.copytree(models / "bert", tmp_path / "b")
    tok.save_pretrained(tmp_path / "b")
    assert list(BertTokenizer.from_pretrained(tmp_path / "b")("un")) == ["input_ids"]
