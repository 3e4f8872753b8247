"""Bad input gets a sentence that says what was wrong and what to do."""

from __future__ import annotations

import builtins
import logging
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
    moses,
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


@pytest.fixture(params=FAMILIES, ids=lambda family: family[0].__name__)
def tok(request: pytest.FixtureRequest, models: Path) -> Any:
    cls, folder = request.param
    return cls.from_pretrained(models / folder)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        ((None,), {}, ValueError, "nothing to encode"),
        ((3,), {}, TypeError, "text is int; it must be a str"),
        ((["a", 3],), {}, TypeError, r"text\[1\] is int; it must be a str"),
        (([["a"]],), {}, TypeError, "is_split_into_words=True"),
        (("a b",), {"is_split_into_words": True}, TypeError, "must be a list of words"),
        (([["a", None]],), {"is_split_into_words": True}, TypeError, "a word must be a str"),
        (([("a", "b"), ("c",)],), {}, TypeError, "A pair of texts is a tuple of two"),
        ((["a"], "b"), {}, TypeError, "must be a batch of as many"),
        ((["a"], ["b", "c"]), {}, ValueError, "holds 1 texts and text_pair 2"),
        (("a",), {"padding": "long"}, ValueError, "padding is 'long'; it must be"),
        (("a",), {"truncation": "first"}, ValueError, "truncation is 'first'; it must be"),
        (("a",), {"return_tensors": "tf"}, ValueError, "return_tensors is 'tf'"),
        (("a",), {"padding_side": "up"}, ValueError, "padding_side is 'up'"),
        (("a",), {"max_length": "9"}, TypeError, "max_length is '9'; it must be an integer"),
        (("a",), {"stride": -1}, ValueError, "stride is -1"),
        (("a",), {"truncation": True, "max_length": 1}, ValueError, "special tokens alone"),
        (("a b c d e",), {"truncation": True, "max_length": 6, "stride": 4,
          "return_overflowing_tokens": True}, ValueError, "stride must be smaller"),
        (("a",), {"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 8},
         ValueError, "contradict each other"),
        (("a b c d e f",), {"truncation": "only_second", "max_length": 4}, ValueError,
         "needs a second text"),
        (("a b", "c d e f g"), {"truncation": "only_first", "max_length": 5}, ValueError,
         "use 'longest_first'"),
        ((["a", "b c d e f"],), {"return_tensors": "pt"}, ValueError, "pass padding=True"),
        (("a",), {"truncation_strategy": "x"}, TypeError, "truncation_strategy"),
    ],
)  # fmt: skip
def test_bad_calls(
    tok: Any, arguments: tuple[Any, ...], options: dict[str, Any], error: Any, sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        tok(*arguments, **options)


def test_no_pad_token(tok: Any) -> None:
    tok.pad_token = None
    with pytest.raises(ValueError, match=r"no pad token; set tokenizer\.pad_token"):
        tok(["a", "b c"], padding=True)


def test_bad_tokens(tok: Any) -> None:
    with pytest.raises(TypeError, match="A token must be a str"):
        tok.add_tokens([3])
    with pytest.raises(ValueError, match="'pad' is no special token"):
        tok.add_special_tokens({"pad": "x"})
    with pytest.raises(TypeError, match="cls_token must be a str"):
        tok.cls_token = 3
    with pytest.raises(TypeError, match="does not take nonsense"):
        tok.decode([1], nonsense=True)
    with pytest.raises(ValueError, match="pad\\(\\) needs the key 'input_ids'"):
        tok.pad({"ids": [1]})


@pytest.mark.parametrize(("cls", "folder"), FAMILIES, ids=lambda v: getattr(v, "__name__", ""))
def test_bad_folders(cls: Any, folder: str, models: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        cls.from_pretrained(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no vocabulary for"):
        cls.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="is a file"):
        cls.from_pretrained(next((models / folder).iterdir()))
    with pytest.raises(TypeError, match="does not know nonsense"):
        cls.from_pretrained(models / folder, nonsense=1)
    with pytest.raises(FileNotFoundError, match=r"\bgiven\b|\bneeds\b"):
        cls()
    with pytest.raises(ValueError, match="padding_side is 'up'"):
        cls.from_pretrained(models / folder, padding_side="up")


def test_broken_json(models: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes((models / "bert" / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": tr')
    with pytest.raises(ValueError, match="not valid JSON"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer.json"):
        BertTokenizer.from_pretrained(tmp_path)


def test_bad_bert_vocabularies(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        BertTokenizer(path)
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"lacks \[UNK\], \[CLS\], \[SEP\]"):
        BertTokenizer(path)
    with pytest.raises(ValueError, match=r"lacks \[UNK\]"):
        BertTokenizerLegacy(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match="UTF-8"):
        BertTokenizer(path)
    with pytest.raises(ValueError, match="same id"):
        BertTokenizer({"[UNK]": 0, "[CLS]": 0})


@pytest.mark.parametrize("cls", [CamembertTokenizer, CamembertTokenizerFast])
def test_broken_sentencepiece_models(cls: Any, models: Path, tmp_path: Path) -> None:
    data = (models / "camembert" / "sentencepiece.bpe.model").read_bytes()
    path = tmp_path / "sentencepiece.bpe.model"
    for content in (b"", data[:1000], data[:-3], b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a sentencepiece model"):
            cls(path)


def test_bad_flaubert_files(models: Path, tmp_path: Path) -> None:
    merges = tmp_path / "merges.txt"
    vocab = models / "flaubert" / "vocab.json"
    with pytest.raises(FileNotFoundError, match=r"merges file \(merges.txt\)"):
        FlaubertTokenizer(vocab, merges)
    merges.write_text("a b 3\nc\n")
    with pytest.raises(ValueError, match="line 2 is 'c'"):
        FlaubertTokenizer(vocab, merges)
    merges.write_text("a b 3\n")
    bad = tmp_path / "vocab.json"
    bad.write_text("[1]")
    with pytest.raises(ValueError, match="must be a JSON object"):
        FlaubertTokenizer(bad, merges)
    with pytest.raises(ValueError, match="lang2id names 1"):
        FlaubertTokenizer(vocab, merges, lang2id={"fr": 0}, id2lang={0: "fr", 1: "en"})


def test_flaubert_without_sacremoses(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **options: Any) -> Any:
        if name == "sacremoses":
            raise ImportError(name)
        return real(name, *rest, **options)

    moses._moses.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install fastbert-kernels\[flaubert\]"):
        FlaubertTokenizer.from_pretrained(models / "flaubert")
    kept = FlaubertTokenizer.from_pretrained(models / "flaubert", bypass_tokenizer=True)
    assert kept.tokenize("été") == ["été</w>"] or kept.tokenize("été")[-1].endswith("</w>")
    monkeypatch.undo()
    moses._moses.cache_clear()


def test_flaubert_warns_about_the_ignored_setting(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        FlaubertTokenizer.from_pretrained(models / "flaubert", do_lowercase_and_remove_accent=True)
    assert "does nothing in FlaubertTokenizer" in caplog.text


def test_ids_outside_the_vocabulary(models: Path) -> None:
    tok = CamembertTokenizer.from_pretrained(models / "camembert")
    with pytest.raises(ValueError, match="is not in the vocabulary of"):
        tok.decode([10**6])


def test_auto_tokenizer_cannot_tell(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nor a tokenizer_config\.json"):
        AutoTokenizer.from_pretrained(models / "bert")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type 'gpt2', which is none"):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"AutoTokenizer\.from_pretrained"):
        AutoTokenizer()


def test_offline_hub_id_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="could not be had from the hub"):
        BertTokenizer.from_pretrained("nobody/nothing", local_files_only=True)


def test_half_a_character_is_refused(tok: Any) -> None:
    """json.loads and os.fsdecode make such texts."""
    if type(tok) in (BertTokenizerLegacy, FlaubertTokenizer):
        assert tok(["a text", "b \ud800 c"])["input_ids"]  # pure Python: a character like others
        return
    with pytest.raises(ValueError, match=r"Text 1 holds half a character \('\\ud800', at 2\)"):
        tok(["a text", "b \ud800 c"])
    with pytest.raises(ValueError, match="Text 0 holds half a character"):
        tok([("a", "\udfff")])
    with pytest.raises(ValueError, match="Text 0 holds half a character"):
        tok([["a", "\udfff"]], is_split_into_words=True)


@pytest.mark.parametrize("cls", [BertTokenizer, CamembertTokenizerFast])
def test_labels_are_not_decoded(cls: Any, models: Path) -> None:
    tok = cls.from_pretrained(models / cls.__name__.partition("Tok")[0].lower())
    with pytest.raises(ValueError, match="begin at 0, but -100 is among"):
        tok.decode([5, -100])


def test_a_list_is_no_configuration(models: Path, tmp_path: Path) -> None:
    BertTokenizer.from_pretrained(models / "bert").save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match="must be a JSON object, but it is a list"):
        AutoTokenizer.from_pretrained(tmp_path)
