"""Saving, loading, pickling; folders of transformers 4 and 5; AutoTokenizer; known faults of 5."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import tok_cases
import tok_corpus
import transformers
from tokenizers import AddedToken

import fastbert.tokenizers
from fastbert.checkpoints.storage import write_text
from fastbert.tokenizers import (
    AutoTokenizer,
    BertTokenizer,
    BertTokenizerLegacy,
    CamembertTokenizer,
    CamembertTokenizerFast,
    FlaubertTokenizer,
    RemBertTokenizer,
    RemBertTokenizerFast,
    files,
)
from fastbert.tokenizers.engines.rust import RustEngine

TEXTS = [*tok_corpus.texts()[7:17], "un <mask> [MASK] <special1> neuf <ent>  x", " <sp>Tok le "]
CLASSES = [
    (BertTokenizer, "bert"),
    (BertTokenizerLegacy, "bert-cased"),
    (CamembertTokenizer, "camembert"),
    (CamembertTokenizerFast, "camembert-bpe"),
    (FlaubertTokenizer, "flaubert"),
    (RemBertTokenizer, "rembert"),
    (RemBertTokenizerFast, "rembert"),
]
BY_CLASS = pytest.mark.parametrize(
    ("cls", "folder"), CLASSES, ids=[cls.__name__ for cls, _ in CLASSES]
)


def same(one: Any, two: Any, offsets: bool = True) -> None:
    options: dict[str, Any] = {"return_offsets_mapping": True} if offsets else {}
    first, second = one(TEXTS, **options), two(TEXTS, **options)
    for key in first:
        assert [list(row) for row in first[key]] == [list(row) for row in second[key]], key
    assert one.get_vocab() == two.get_vocab() and len(one) == len(two)
    assert one.all_special_tokens == two.all_special_tokens
    assert one.all_special_ids == two.all_special_ids


@BY_CLASS
@pytest.mark.parametrize("extended", [False, True], ids=["plain", "extended"])
def test_save_and_reload(
    cls: Any, folder: str, extended: bool, models: Path, tmp_path: Path
) -> None:
    tok = cls.from_pretrained(
        models / folder, model_max_length=77, padding_side="left", truncation_side="left"
    )
    if extended:
        tok_cases.extend(tok)
        tok.add_special_tokens({"mask_token": AddedToken("<ent>", lstrip=True, rstrip=True)})
    written = tok.save_pretrained(tmp_path / "saved")
    assert all(Path(path).is_file() for path in written)
    assert {Path(path).name for path in written} == {p.name for p in (tmp_path / "saved").iterdir()}
    again = cls.from_pretrained(tmp_path / "saved")
    same(tok, again)
    assert again.model_max_length == 77 and again.padding_side == again.truncation_side == "left"
    assert again.added_tokens_decoder.keys() == tok.added_tokens_decoder.keys()
    same(again, pickle.loads(pickle.dumps(again)))
    # Saving what was loaded writes the same settings again.
    again.save_pretrained(tmp_path / "twice")
    for name in (files.CONFIG_FILE, files.SPECIAL_FILE):
        first, second = (tmp_path / where / name for where in ("saved", "twice"))
        assert json.loads(first.read_text()) == json.loads(second.read_text())


@BY_CLASS
def test_saving_over_itself(cls: Any, folder: str, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / folder, tmp_path / "here")
    tok = cls.from_pretrained(tmp_path / "here")
    tok.save_pretrained(tmp_path / "here")
    same(tok, cls.from_pretrained(tmp_path / "here"))
    tok.save_pretrained(tmp_path / "here", filename_prefix="mine")
    assert (tmp_path / "here" / "mine-tokenizer_config.json").is_file()


def test_formats(models: Path, tmp_path: Path) -> None:
    tok = CamembertTokenizerFast.from_pretrained(models / "camembert")
    tok.save_pretrained(tmp_path / "json", legacy_format=False)
    assert not (tmp_path / "json" / "sentencepiece.bpe.model").exists()
    same(tok, CamembertTokenizerFast.from_pretrained(tmp_path / "json"))
    tok.save_pretrained(tmp_path / "old", legacy_format=True)
    assert not (tmp_path / "old" / "tokenizer.json").exists()
    slow = CamembertTokenizer.from_pretrained(models / "camembert")
    with pytest.raises(ValueError, match=r"writes tokenizer.json, which CamembertTokenizer"):
        slow.save_pretrained(tmp_path / "no", legacy_format=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="needs a folder"):
        tok.save_pretrained(tmp_path / "file")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["vocab.txt"]


@pytest.mark.parametrize(
    ("cls", "folder", "theirs"),
    [
        (BertTokenizer, "bert", "BertTokenizer"),
        (CamembertTokenizerFast, "camembert", "CamembertTokenizer"),
        (RemBertTokenizerFast, "rembert", "RemBertTokenizer"),
        (FlaubertTokenizer, "flaubert", "FlaubertTokenizer"),
    ],
)
def test_transformers_5_reads_ours_and_we_read_theirs(
    cls: Any, folder: str, theirs: str, models: Path, tmp_path: Path
) -> None:
    ours = cls.from_pretrained(models / folder)
    ours.save_pretrained(tmp_path / "ours")
    read = getattr(transformers, theirs).from_pretrained(tmp_path / "ours")
    texts = TEXTS[:10]
    assert read(texts)["input_ids"] == ours(texts)["input_ids"]
    read.save_pretrained(tmp_path / "theirs")
    name = theirs if hasattr(fastbert.tokenizers, theirs) else theirs + "Fast"
    back = getattr(fastbert.tokenizers, name).from_pretrained(tmp_path / "theirs")
    assert back(texts)["input_ids"] == ours(texts)["input_ids"]
    assert len(back) == len(read)
    auto = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert auto(texts)["input_ids"] == ours(texts)["input_ids"]
    # transformers 5 lost the token types of RemBERT and FlauBERT; a folder it saved has them here.
    assert ("token_type_ids" in back(texts)) == (folder != "camembert")


def test_rembert_pairs_keep_their_second_segment(models: Path, tmp_path: Path) -> None:
    tok = RemBertTokenizer.from_pretrained(models / "rembert")
    enc = tok("un", "deux")
    assert enc["token_type_ids"] == [0] * (tok("un")["input_ids"].__len__()) + [1] * (
        len(enc["input_ids"]) - len(tok("un")["input_ids"])
    )
    assert enc["input_ids"][0] == tok.cls_token_id and enc["input_ids"][-1] == tok.sep_token_id
    out = RemBertTokenizer.from_pretrained(
        models / "rembert", model_input_names=["input_ids", "attention_mask"]
    )
    assert list(out("un")) == ["input_ids", "attention_mask"]
    out.save_pretrained(tmp_path)
    assert list(RemBertTokenizer.from_pretrained(tmp_path)("un")) == ["input_ids", "attention_mask"]


def test_flaubert_returns_token_types(models: Path) -> None:
    tok = FlaubertTokenizer.from_pretrained(models / "flaubert")
    assert list(tok("un")) == ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" not in tok("un", return_token_type_ids=False)


def test_rembert_json_alone(models: Path, tmp_path: Path) -> None:
    """A tokenizer.json without settings runs as it is: no token is added to its vocabulary."""
    fast = RemBertTokenizerFast.from_pretrained(models / "rembert-plain")
    fast.save_pretrained(tmp_path, legacy_format=False)
    for name in (files.CONFIG_FILE, files.SPECIAL_FILE):
        (tmp_path / name).unlink()
    for cls in (RemBertTokenizer, RemBertTokenizerFast):
        tok = cls.from_pretrained(tmp_path)
        assert len(tok) == len(fast) and isinstance(tok.engine, RustEngine)
        assert tok(TEXTS)["input_ids"] == fast(TEXTS)["input_ids"]
        assert tok.unk_token in fast.get_vocab() and tok.pad_token in fast.get_vocab()


def test_camembert_reads_the_file_it_is_given(models: Path) -> None:
    """transformers 5 ignores vocab_file and makes everything unknown."""
    path = models / "camembert" / "sentencepiece.bpe.model"
    for cls in (CamembertTokenizer, CamembertTokenizerFast):
        tok = cls(str(path))
        ids = tok("un délicieux fromage")["input_ids"]
        assert tok.unk_token_id not in ids and len(tok) > 100
        assert (tok.pad_token_id, tok.unk_token_id, tok.cls_token_id, tok.sep_token_id) == (
            1, 3, 5, 6,
        )  # fmt: skip
        assert tok.mask_token_id == len(tok) - 1


def test_camembert_without_bos_in_the_model(models: Path) -> None:
    """Special tokens that the model lacks are added, and are the ones put around texts."""
    path = models / "camembert-bytes" / "sentencepiece.bpe.model"
    for cls in (CamembertTokenizer, CamembertTokenizerFast):
        tok = cls(str(path))
        assert tok.convert_ids_to_tokens(tok("un")["input_ids"])[0] == "<s>"
        assert tok.convert_ids_to_tokens(tok("un")["input_ids"])[-1] == "</s>"


def test_sampling(models: Path) -> None:
    path = models / "camembert" / "sentencepiece.bpe.model"
    tok = CamembertTokenizer(
        path, sp_model_kwargs={"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    )
    text = "Aujourd'hui les retrouvailles"
    found = {tuple(tok.tokenize(text)) for _ in range(30)}
    assert len(found) > 1
    assert {tok.sp_model.DecodePieces(list(tokens)) for tokens in found} == {text}
    with pytest.raises(ValueError, match="need sentencepiece itself"):
        CamembertTokenizerFast(path, sp_model_kwargs={"enable_sampling": True})
    with pytest.raises(TypeError, match="are not what SentencePieceProcessor takes"):
        CamembertTokenizer(path, sp_model_kwargs={"nonsense": 1})


@pytest.mark.parametrize(
    ("folder", "model_type", "slow", "fast"),
    [
        ("bert", "bert", BertTokenizer, BertTokenizer),
        ("bert", "align", BertTokenizer, BertTokenizer),
        ("camembert", "camembert", CamembertTokenizer, CamembertTokenizerFast),
        ("flaubert", "flaubert", FlaubertTokenizer, FlaubertTokenizer),
        ("rembert", "rembert", RemBertTokenizer, RemBertTokenizer),
    ],
)
def test_auto_tokenizer(
    folder: str, model_type: str, slow: Any, fast: Any, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is fast
    assert type(AutoTokenizer.from_pretrained(tmp_path, use_fast=False)) is slow
    tok = AutoTokenizer.from_pretrained(tmp_path, model_max_length=9)
    assert tok.model_max_length == 9 and tok.name_or_path == str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other"}))
    settings = {"tokenizer_class": slow.__name__}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is fast


def test_auto_tokenizer_of_the_real_files(minilm: Path) -> None:
    tok = AutoTokenizer.from_pretrained(minilm)
    assert isinstance(tok, BertTokenizer) and tok.model_max_length == 512


def test_old_added_tokens_files(models: Path, tmp_path: Path) -> None:
    """Folders of early transformers 4: added_tokens.json and special_tokens_map.json only."""
    shutil.copytree(models / "bert", tmp_path, dirs_exist_ok=True)
    size = len(BertTokenizer.from_pretrained(tmp_path))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"neuf": size, "<ent>": size + 1}))
    special = {"cls_token": "[CLS]", "additional_special_tokens": ["<ent>"], "pad_token": "<ent>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    for cls in (BertTokenizer, BertTokenizerLegacy):
        tok = cls.from_pretrained(tmp_path)
        assert tok.convert_tokens_to_ids(["neuf", "<ent>"]) == [size, size + 1]
        assert tok.pad_token_id == size + 1 and tok.additional_special_tokens == ["<ent>"]
        assert len(tok) == size + 2
    (tmp_path / "added_tokens.json").write_text(json.dumps({"neuf": 7}))
    for cls in (BertTokenizer, BertTokenizerLegacy):
        with pytest.raises(ValueError, match="files do not belong together"):
            cls.from_pretrained(tmp_path)


def test_unknown_settings_survive(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "bert", tmp_path / "in")
    settings = {"do_lower_case": False, "their_own": [1], "tokenizer_class": "BertTokenizer"}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(settings))
    tok = BertTokenizer.from_pretrained(tmp_path / "in")
    assert tok.do_lower_case is False
    tok.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["their_own"] == [1]


def test_settings_override_tokenizer_json(minilm: Path) -> None:
    tok = BertTokenizer.from_pretrained(minilm, do_lower_case=False)
    assert tok.tokenize("Hello") != ["hello"]
    assert BertTokenizer.from_pretrained(minilm).tokenize("Hello") == ["hello"]


def test_special_token_attributes(minilm: Path) -> None:
    tok = BertTokenizer.from_pretrained(minilm)
    assert tok.bos_token is None and tok.bos_token_id is None
    assert tok.add_special_tokens({"bos_token": "<bos>"}) == 1
    assert tok.bos_token_id == 30522 == len(tok) - 1
    tok.pad_token_id = 100
    assert tok.pad_token == "[UNK]"
    assert tok.add_tokens("newtok") == 1 and tok.tokenize("a newtok") == ["a", "newtok"]
    assert tok.decode(tok("a newtok <bos>")["input_ids"], skip_special_tokens=True) == "a newtok"
    assert tok.get_added_vocab()["newtok"] == 30523
    assert tok.convert_ids_to_tokens(30523) == "newtok"
    with pytest.raises(ValueError, match="no token has that id"):
        tok.cls_token_id = 10**9
