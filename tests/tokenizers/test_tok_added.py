"""An id is what the files say, never how many tokens were counted before it.

After a hole (in added_tokens.json, added_tokens_decoder, tokenizer.json, or left by a line that
stands twice in vocab.txt) a count is the id of another token, whose embedding would be taken.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastbert.tokenizers import (
    AutoTokenizer,
    BertTokenizer,
    BertTokenizerLegacy,
    CamembertTokenizer,
    CamembertTokenizerFast,
    FlaubertTokenizer,
    RemBertTokenizer,
    RemBertTokenizerFast,
)

FAMILIES = [
    (BertTokenizer, "bert"),
    (BertTokenizerLegacy, "bert"),
    (CamembertTokenizer, "camembert"),
    (CamembertTokenizerFast, "camembert"),
    (FlaubertTokenizer, "flaubert"),
    (RemBertTokenizer, "rembert"),
    (RemBertTokenizerFast, "rembert"),
]
BY_FAMILY = pytest.mark.parametrize(
    ("cls", "name"), FAMILIES, ids=[cls.__name__ for cls, _ in FAMILIES]
)
TEXT = "un neuf dixx <q> deux"


def write(folder: Path, added: dict[str, Any], form: str) -> None:
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps(added))
        return
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    tokens = {str(i): {"content": token, "normalized": False} for token, i in added.items()}
    settings["added_tokens_decoder"] = settings.get("added_tokens_decoder", {}) | tokens
    path.write_text(json.dumps(settings))


@BY_FAMILY
@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder"])
def test_holes(cls: Any, name: str, form: str, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / name, tmp_path, dirs_exist_ok=True)
    size = len(cls.from_pretrained(tmp_path))
    # Not in the order of the ids, as a dict may stand in a file.
    write(tmp_path, {"neuf": size + 5, "<q>": size + 2}, form)
    tok = cls.from_pretrained(tmp_path)
    before = tok.get_vocab()
    assert tok.convert_tokens_to_ids(["<q>", "neuf"]) == [size + 2, size + 5]
    fresh = cls.from_pretrained(models / name)
    assert tok.all_special_ids == fresh.all_special_ids, "added tokens moved a special one"
    assert len(tok) == size + 6, "as many rows as the largest id needs"
    assert tok.add_tokens(["dixx"]) == 1 and tok.convert_tokens_to_ids("dixx") == size + 6
    assert tok.get_vocab() == before | {"dixx": size + 6}, "no token was pushed aside"
    assert len(tok) == size + 7 and tok.get_added_vocab()["neuf"] == size + 5
    ids = tok(TEXT)["input_ids"]
    assert {size + 2, size + 5, size + 6} <= set(ids)
    assert "neuf" in tok.decode(ids) and "hole" not in tok.decode([*ids, *range(5, 9)])
    tok.save_pretrained(tmp_path / "saved")
    for again in (cls.from_pretrained(tmp_path / "saved"), pickle.loads(pickle.dumps(tok))):
        assert again.get_vocab() == tok.get_vocab() and len(again) == len(tok)
        assert again.added_tokens_decoder.keys() == tok.added_tokens_decoder.keys()
        assert again(TEXT)["input_ids"] == ids
        assert again.add_tokens(["onze"]) == 1
        assert again.convert_tokens_to_ids("onze") == size + 7


@pytest.mark.parametrize("order", ["rust", "model first"])
def test_holes_of_tokenizer_json(order: str, models: Path, tmp_path: Path) -> None:
    """The library reads the ids of this file and then counts."""
    BertTokenizer.from_pretrained(models / "bert").save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    size = len(data["model"]["vocab"])
    data["model"]["vocab"] |= {"added_tokens": size + 3}
    data["added_tokens"] += [data["added_tokens"][0] | {"id": size + 9, "content": "<q>"}]
    if order != "rust":
        data = dict(reversed(data.items()))
    path.write_text(json.dumps(data))
    for extra in ("special_tokens_map.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / extra).unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    for tok in (AutoTokenizer.from_pretrained(tmp_path), BertTokenizer.from_pretrained(tmp_path)):
        assert tok.convert_tokens_to_ids(["added_tokens", "<q>"]) == [size + 3, size + 9]
        assert tok.convert_ids_to_tokens([size, size + 4, size + 9]) == [None, None, "<q>"]
        assert (tok.vocab_size, len(tok)) == (size + 4, size + 10)
        tok.add_tokens(["dixx"])
        assert tok.convert_tokens_to_ids("dixx") == size + 10


@pytest.mark.parametrize("cls", [BertTokenizer, BertTokenizerLegacy])
def test_a_line_that_stands_twice(cls: Any, models: Path, tmp_path: Path) -> None:
    lines = (models / "bert" / "vocab.txt").read_text().splitlines()
    lines[300] = lines[400]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n")
    tok = cls.from_pretrained(tmp_path)
    assert tok.convert_tokens_to_ids(lines[-1]) == len(lines) - 1
    assert len(tok) == tok.vocab_size == len(lines)
    tok.add_tokens(["dixx"])
    assert tok.convert_tokens_to_ids("dixx") == len(lines)
    tok.save_pretrained(tmp_path / "saved", legacy_format=True)
    again = cls.from_pretrained(tmp_path / "saved")
    assert again.get_vocab() == tok.get_vocab(), "saving moved the ids behind the hole"


@pytest.mark.parametrize("cls", [BertTokenizer, BertTokenizerLegacy])
@pytest.mark.parametrize(
    ("form", "added", "sentence"),
    [
        ("added_tokens.json", {"neuf": 9}, "files do not belong together"),
        ("added_tokens_decoder", {"neuf": 9}, "files do not belong together"),
        ("added_tokens.json", {"a": 700, "b": 700}, "id 700, where the files have 'a' already"),
        ("added_tokens.json", {"neuf": -1}, "the id -1; an id is a number from 0"),
        ("added_tokens.json", {"neuf": "x"}, "an id is a number from 0"),
        ("added_tokens.json", {"neuf": 700.5}, "an id is a number from 0"),
        ("added_tokens.json", {"neuf": True}, "an id is a number from 0"),
    ],
)
def test_ids_that_contradict(
    cls: Any, form: str, added: dict[str, Any], sentence: str, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "bert", tmp_path, dirs_exist_ok=True)
    write(tmp_path, added, form)
    with pytest.raises(ValueError, match=sentence):
        cls.from_pretrained(tmp_path)


def test_two_ids_of_one_token(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "bert", tmp_path, dirs_exist_ok=True)
    decoder = {"700": {"content": "neuf"}, "701": {"content": "neuf"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(ValueError, match="have the id 700 already"):
        BertTokenizerLegacy.from_pretrained(tmp_path)


def test_a_damaged_id_takes_no_memory(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "bert", tmp_path, dirs_exist_ok=True)
    write(tmp_path, {"neuf": 2**40}, "added_tokens.json")
    with pytest.raises(ValueError, match="ids of the tokenizer's files are damaged"):
        BertTokenizer.from_pretrained(tmp_path)


def test_files_complete_one_another(models: Path, tmp_path: Path) -> None:
    """A token of added_tokens.json or special_tokens_map.json that the settings do not mention."""
    shutil.copytree(models / "bert", tmp_path, dirs_exist_ok=True)
    size = len(BertTokenizer.from_pretrained(tmp_path))
    write(tmp_path, {"neuf": size}, "added_tokens_decoder")
    write(tmp_path, {"neuf": size, "<q>": size + 1}, "added_tokens.json")
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<q>", "mask_token": null}')
    for cls in (BertTokenizer, BertTokenizerLegacy):
        tok = cls.from_pretrained(tmp_path)
        assert tok.get_added_vocab().items() >= {"neuf": size, "<q>": size + 1}.items()
        assert tok.bos_token_id == size + 1 and tok.mask_token is None
