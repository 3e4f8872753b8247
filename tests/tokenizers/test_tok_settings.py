"""A setting of any age is obeyed, known to say nothing about ids, or named as not obeyed.

The right ids are those of transformers on the same folder, where it loads it.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from fastbert.tokenizers import (
    AutoTokenizer,
    BertTokenizer,
    BertTokenizerLegacy,
    CamembertTokenizer,
    FlaubertTokenizer,
    RemBertTokenizer,
)

TEXT = "Un délicieux [MASK] fromage, Dit-elle"


@pytest.fixture(params=[False, True], ids=["vocab.txt", "tokenizer.json"])
def bert(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> Any:
    """Makes BERT folders with the settings asked for."""

    def make(special: Any = None, **settings: Any) -> Path:
        where = tmp_path / "bert"
        shutil.copytree(models / "bert", where, dirs_exist_ok=True)
        if request.param:
            BertTokenizer.from_pretrained(where).save_pretrained(where)
            for name in ("special_tokens_map.json", "tokenizer_config.json"):
                (where / name).unlink()
        (where / "config.json").write_text('{"model_type": "bert"}')
        (where / "tokenizer_config.json").write_text(json.dumps(settings))
        if special is not None:
            (where / "special_tokens_map.json").write_text(json.dumps(special))
        return where

    return make


FLAGS = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
TYPE = {"__type": "AddedToken"}


@pytest.mark.parametrize(
    ("settings", "special"),
    [
        ({"max_len": 128}, None),
        ({"model_max_length": 1e30}, None),
        ({"model_max_length": None, "bos_token": None, "mask_token": None}, None),
        ({"additional_special_tokens": None, "extra_special_tokens": None}, None),
        ({"extra_special_tokens": {"image_token": "<image>"}, "boi_token": "<boi>"}, None),
        ({"extra_special_tokens": ["<a>", "<b>"]}, None),
        ({"additional_special_tokens": ["<a>", {"content": "<b>", **FLAGS, **TYPE}]}, None),
        ({"mask_token": {"content": "[MASK]", **FLAGS, **TYPE}}, None),
        ({}, {"mask_token": {"content": "[MASK]", **FLAGS}}),
        ({"do_lower_case": False, "strip_accents": None, "never_split": None}, None),
        ({"tokenizer_class": "BertTokenizerFast", "special_tokens_map_file": None}, None),
        ({"name_or_path": "x", "tokenizer_file": "/nowhere", "use_fast": True}, None),
        ({"max_length": 5, "stride": 0, "truncation_side": "left", "padding_side": "left"}, None),
    ],
    ids=lambda value: ",".join(value) if value else "",
)
def test_as_transformers(bert: Any, settings: Any, special: Any) -> None:
    where = bert(special, **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(where)
    ours = AutoTokenizer.from_pretrained(where)
    texts = [TEXT, "<a> <b> <image> <boi>", "un [MASK]"]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert ours.model_max_length == theirs.model_max_length
    assert (ours.padding_side, ours.truncation_side) == (
        theirs.padding_side,
        theirs.truncation_side,
    )
    names = {"additional_special_tokens", "extra_special_tokens"}
    theirs_map = {k: v for k, v in theirs.special_tokens_map.items() if k not in names}
    assert {k: v for k, v in ours.special_tokens_map.items() if k not in names} == theirs_map
    assert set(ours.all_special_ids) == set(theirs.all_special_ids) and len(ours) == len(theirs)
    ours.save_pretrained(where / "saved")
    again = AutoTokenizer.from_pretrained(where / "saved")
    assert again.special_tokens_map == ours.special_tokens_map
    assert again(texts)["input_ids"] == ours(texts)["input_ids"]
    back = transformers.AutoTokenizer.from_pretrained(where / "saved")
    assert back(texts)["input_ids"] == ours(texts)["input_ids"]


def test_roles_of_one_model(bert: Any) -> None:
    tok = AutoTokenizer.from_pretrained(bert(extra_special_tokens={"image_token": "<image>"}))
    assert tok.image_token == "<image>" and tok.image_token_id == len(tok) - 1
    assert tok.decode([tok.image_token_id], skip_special_tokens=True) == ""
    with pytest.raises(AttributeError, match="no attribute 'video_token'"):
        _ = tok.video_token


def test_words_that_stay_whole(bert: Any, models: Path) -> None:
    """Only the tokenizer in Python can keep them, so that is what runs."""
    settings = {"never_split": ["dit-elle"], "tokenizer_class": "BertTokenizer"}
    want = BertTokenizerLegacy.from_pretrained(models / "bert", never_split=["dit-elle"])
    for load in (AutoTokenizer.from_pretrained, BertTokenizer.from_pretrained):
        tok = load(bert(**settings))
        assert tok(TEXT)["input_ids"] == want(TEXT)["input_ids"]
        assert "dit-elle" in tok.tokenize(TEXT) or tok.unk_token in tok.tokenize("dit-elle")
    want = BertTokenizerLegacy.from_pretrained(models / "bert", do_basic_tokenize=False)
    tok = AutoTokenizer.from_pretrained(bert(do_basic_tokenize=False))
    assert tok("un, Un")["input_ids"] == want("un, Un")["input_ids"]
    tok.save_pretrained(bert(do_basic_tokenize=False) / "saved")
    again = AutoTokenizer.from_pretrained(bert() / "saved")
    assert again("un, Un")["input_ids"] == want("un, Un")["input_ids"]


def test_length_limits(bert: Any) -> None:
    assert BertTokenizer.from_pretrained(bert(model_max_length="512")).model_max_length == 512
    assert BertTokenizer.from_pretrained(bert(max_len=9), max_len=7).model_max_length == 7
    assert BertTokenizer.from_pretrained(bert(max_len=9), model_max_length=7).model_max_length == 7
    for value in ("many", 0, True, [5]):
        with pytest.raises(ValueError, match="must be a number of tokens"):
            BertTokenizer.from_pretrained(bert(model_max_length=value))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"do_lower_case": "false"}, "do_lower_case is 'false'; it must be true or false"),
        ({"model_input_names": "input_ids"}, "must be a list of names"),
        ({"cls_token": {"content": "[CLS]", "lstrip": "no"}}, "flags of a token"),
        ({"cls_token": {"content": "[CLS]", "colour": True}}, "has flags that tokens do not have"),
        ({"cls_token": 5}, "A token must be a str"),
    ],
)
def test_settings_of_another_type(bert: Any, settings: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        BertTokenizer.from_pretrained(bert(**settings))


def test_unknown_settings_are_named(bert: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        AutoTokenizer.from_pretrained(bert(auto_map={}, chat_template="x", processor_class="Y"))
        assert not caplog.records
        AutoTokenizer.from_pretrained(bert(split_on_case=True, do_lower_case=True))
    assert "does not know and does not obey: split_on_case." in caplog.text


def test_keywords_of_transformers(bert: Any, caplog: pytest.LogCaptureFixture) -> None:
    where = bert()
    ignored: dict[str, Any] = {
        "trust_remote_code": True, "code_revision": "main", "proxies": None, "revision": None,
        "resume_download": None, "use_auth_token": None, "device_map": "auto", "legacy": False,
        "torch_dtype": "auto", "cache_dir": None, "use_fast": True, "tokenizer_type": "bert",
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        tok = AutoTokenizer.from_pretrained(where, **ignored)
        assert tok(TEXT) == AutoTokenizer.from_pretrained(where)(TEXT) and not caplog.records
        AutoTokenizer.from_pretrained(where, max_length=5, truncation=True)
    assert "does not use max_length, truncation" in caplog.text
    with pytest.raises(ValueError, match="GGUF"):
        AutoTokenizer.from_pretrained(where, gguf_file="x.gguf")
    with pytest.raises(TypeError, match="does not know nonsense"):
        AutoTokenizer.from_pretrained(where, nonsense=1)
    assert AutoTokenizer.from_pretrained(where, from_slow=True)(TEXT) == tok(TEXT)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (CamembertTokenizer, "camembert"),
        (RemBertTokenizer, "rembert"),
        (FlaubertTokenizer, "flaubert"),
    ],
)
def test_roles_without_a_token(cls: Any, name: str, models: Path, tmp_path: Path) -> None:
    """null: no such token, except where a text cannot be laid out without it."""
    shutil.copytree(models / name, tmp_path, dirs_exist_ok=True)
    nothing = dict.fromkeys(["cls_token", "sep_token", "unk_token", "pad_token", "mask_token"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(nothing))
    tok, fresh = cls.from_pretrained(tmp_path), cls.from_pretrained(models / name)
    assert tok("un")["input_ids"] == fresh("un")["input_ids"]
    assert tok.mask_token is None and tok.pad_token is None
    tok.save_pretrained(tmp_path / "saved")
    again = cls.from_pretrained(tmp_path / "saved")
    assert again.mask_token is None and again("un")["input_ids"] == tok("un")["input_ids"]


@pytest.mark.parametrize("role", ["cls_token", "sep_token", "unk_token"])
def test_tokens_that_tokenizer_json_does_not_use_are_named(
    role: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un"]
    vocab = {token: index for index, token in enumerate(tokens)}
    BertTokenizer(vocab).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    ids = BertTokenizer.from_pretrained(tmp_path)("un zz")["input_ids"]
    assert ids == [2, 5, 1, 3] and not caplog.text
    file.write_text(json.dumps(config | {role: "[MASK]"}))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer("un zz")["input_ids"] == ids
    assert f"does not obey: {role}." in caplog.text
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"cannot be told {role}"):
        BertTokenizer.from_pretrained(tmp_path, **{role: "[MASK]"})
