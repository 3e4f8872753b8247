"""A tokenizer.json runs as it is, whichever class its folder names; only given settings change it.

The right ids are those of the Rust library on the same file, which no setting has touched.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer as RustTokenizer,
    decoders,
    models as rust_models,
    normalizers,
    pre_tokenizers,
    processors,
)

import fastbert
from fastbert.tokenizers import (
    AutoTokenizer,
    BertTokenizer,
    CamembertTokenizer,
    PreTrainedTokenizerFast,
    RemBertTokenizer,
)

WORDS = ["un", "Un", "été", "Été", "ete", "日", "本", "日本", "deux", "Deux", "##s", ","]
TEXTS = ["Un Été, deux", "日本 deuxs", "Un [CLS] deux", "un <s> deux", ""]


def rust(special: list[str], **bert: Any) -> RustTokenizer:
    """A WordPiece tokenizer; `special` are its unknown, first, last and padding tokens."""
    vocab = {token: index for index, token in enumerate([*special, *WORDS])}
    made = RustTokenizer(rust_models.WordPiece(vocab, unk_token=special[0]))
    if bert:
        made.normalizer = normalizers.BertNormalizer(**bert)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = special[1:3]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(first, vocab[first]), (last, vocab[last])],
    )
    made.add_special_tokens(special)
    return made


def folder(path: Path, made: RustTokenizer, model: str | None = "bert", **settings: Any) -> Path:
    path.mkdir(exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if model:
        (path / "config.json").write_text(json.dumps({"model_type": model}))
    return path


BERTISH = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
FAIRSEQ = ["<unk>", "<s>", "</s>", "<pad>"]
NAMES = (
    None,
    "BertTokenizer",
    "BertTokenizerFast",
    "ElectraTokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "XLMRobertaTokenizer",
    "NobodysTokenizer",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("special", [BERTISH, FAIRSEQ], ids=["bert", "fairseq"])
@pytest.mark.parametrize("lowercase", [False, True], ids=["cased", "lower"])
def test_the_file_decides(
    name: str | None, special: list[str], lowercase: bool, tmp_path: Path
) -> None:
    made = rust(special, lowercase=lowercase, strip_accents=False, handle_chinese_chars=False)
    settings = {} if name is None else {"tokenizer_class": name}
    tok = AutoTokenizer.from_pretrained(folder(tmp_path, made, **settings))
    assert len(tok) == made.get_vocab_size(), "a token was invented"
    for text in TEXTS:
        want = made.encode(text)
        assert tok(text)["input_ids"] == want.ids
        pair = tok(text, "deux", return_token_type_ids=True)
        want = made.encode(text, "deux")
        assert (pair["input_ids"], pair["token_type_ids"]) == (want.ids, want.type_ids)
        first, second = (made.encode(one, add_special_tokens=False).ids for one in (text, "deux"))
        assert tok.build_inputs_with_special_tokens(first, second) == want.ids
        assert tok.create_token_type_ids_from_sequences(first, second) == want.type_ids
        assert tok.prepare_for_model(first, second)["input_ids"] == want.ids
        mask = tok.get_special_tokens_mask(first, second)
        assert mask == made.encode(text, "deux").special_tokens_mask
    tok.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again(TEXTS)["input_ids"] == tok(TEXTS)["input_ids"] and len(again) == len(tok)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_as_transformers_runs_a_nameless_file(name: str, tmp_path: Path) -> None:
    tokens = {"pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
    where = folder(tmp_path, rust(FAIRSEQ, lowercase=False), None, tokenizer_class=name, **tokens)
    ours = AutoTokenizer.from_pretrained(where)
    theirs = transformers.AutoTokenizer.from_pretrained(where)
    options: dict[str, Any] = {"padding": True, "return_token_type_ids": True}
    assert dict(ours(TEXTS, TEXTS[::-1], **options)) == dict(theirs(TEXTS, TEXTS[::-1], **options))
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert (len(ours), ours.mask_token_id) == (len(theirs), theirs.mask_token_id)


@pytest.mark.parametrize("steps", ["bert", "sequence"])
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "BertTokenizer"])
def test_given_settings_override(steps: str, name: str, tmp_path: Path) -> None:
    made = rust(BERTISH, lowercase=True, strip_accents=True, handle_chinese_chars=True)
    if steps == "sequence":
        made.normalizer = normalizers.Sequence([normalizers.NFC(), made.normalizer])
    settings = {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": None}
    where = folder(tmp_path, made, tokenizer_class=name, **settings)
    tok = AutoTokenizer.from_pretrained(where)
    assert tok.tokenize("Un 日本") == ["Un", "日本"], "given settings override the file"
    assert tok.tokenize("été") == ["ete"], "null was not given"
    tok = AutoTokenizer.from_pretrained(where, strip_accents=False, do_lower_case=True)
    assert tok.tokenize("Un Été") == ["un", "été"], "the caller overrides both"


@pytest.mark.parametrize("cls", [PreTrainedTokenizerFast, BertTokenizer, RemBertTokenizer])
def test_settings_that_the_file_cannot_obey(
    cls: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = rust(BERTISH)
    made.normalizer = normalizers.NFC()
    where = folder(tmp_path, made, do_lower_case=True)
    with caplog.at_level(logging.WARNING):
        tok = cls.from_pretrained(where)
    assert "does not obey: do_lower_case" in caplog.text
    assert tok.tokenize("Un") == ["Un"]
    with pytest.raises(ValueError, match="cannot be told do_lower_case"):
        cls.from_pretrained(where, do_lower_case=True)
    caplog.clear()
    cls.from_pretrained(folder(tmp_path, made, do_lower_case=False))
    assert not caplog.records, "the file does not lower-case, as the setting says"


def test_padding_and_truncation_of_the_file(tmp_path: Path) -> None:
    made = rust(FAIRSEQ, lowercase=False)
    made.enable_padding(direction="left", pad_id=3, pad_type_id=2, pad_token="<pad>")
    made.enable_truncation(7, direction="left")
    where = folder(tmp_path, made, tokenizer_class="TokenizersBackend")
    tok = AutoTokenizer.from_pretrained(where)
    theirs = transformers.AutoTokenizer.from_pretrained(where)
    assert (tok.pad_token, tok.padding_side, tok.truncation_side) == ("<pad>", "left", "left")
    assert tok.pad_token_type_id == theirs.pad_token_type_id == 0
    calls: list[dict[str, Any]] = [{"padding": True}, {"truncation": True, "max_length": 4}]
    for call in calls:
        ours = tok(["un deux un deux", "un"], **call)
        assert ours["input_ids"] == theirs(["un deux un deux", "un"], **call)["input_ids"]
    assert BertTokenizer.from_pretrained(where).padding_side == "left"
    assert AutoTokenizer.from_pretrained(where, padding_side="right").padding_side == "right"


@pytest.mark.parametrize(
    "processor",
    [
        processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)),
        processors.RobertaProcessing(("[SEP]", 2), ("[CLS]", 1)),
        processors.Sequence(
            [processors.ByteLevel(), processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))]
        ),
        None,
    ],
    ids=["bert", "roberta", "sequence", "none"],
)  # fmt: skip
def test_every_layout(processor: Any, tmp_path: Path) -> None:
    made = rust(BERTISH, lowercase=True)
    if processor is None:
        state = json.loads(made.to_str()) | {"post_processor": None}
        made = RustTokenizer.from_str(json.dumps(state))
    else:
        made.post_processor = processor
    tok = AutoTokenizer.from_pretrained(folder(tmp_path, made, "roberta"))
    for texts in (("un deux",), ("un deux", "un")):
        want = made.encode(*texts)
        alone = [made.encode(one, add_special_tokens=False).ids for one in texts]
        assert tok.build_inputs_with_special_tokens(*alone) == want.ids
        assert tok.create_token_type_ids_from_sequences(*alone) == want.type_ids
        assert tok.get_special_tokens_mask(*alone) == want.special_tokens_mask


def test_classes_without_token_types(tmp_path: Path) -> None:
    """Such a class beside a BERT must not give the second text of a pair its own segment."""
    made = rust(FAIRSEQ, lowercase=False)
    where = folder(tmp_path, made, tokenizer_class="XLMRobertaTokenizer")
    tok = AutoTokenizer.from_pretrained(where)
    assert list(tok("un", "deux")) == ["input_ids", "attention_mask"]
    assert (tok.pad_token, tok.cls_token, tok.mask_token) == ("<pad>", "<s>", None)
    tok = AutoTokenizer.from_pretrained(folder(tmp_path, made, "xlm-roberta"))
    assert list(tok("un", "deux")) == ["input_ids", "attention_mask"] and tok.pad_token == "<pad>"
    where = folder(tmp_path, made, tokenizer_class="PreTrainedTokenizerFast")
    assert "token_type_ids" in AutoTokenizer.from_pretrained(where)("un", "deux")
    vocab = tmp_path / "words"
    vocab.mkdir()
    (vocab / "vocab.txt").write_text("\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "un"]))
    (vocab / "tokenizer_config.json").write_text('{"tokenizer_class": "DistilBertTokenizer"}')
    tok = AutoTokenizer.from_pretrained(vocab)
    assert isinstance(tok, BertTokenizer) and "token_type_ids" not in tok("un")


def test_own_code_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where = folder(tmp_path, rust(BERTISH), "mine", tokenizer_class="MyTokenizer")
    settings = json.loads((where / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["mine.MyTokenizer", None]}
    (where / "tokenizer_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        AutoTokenizer.from_pretrained(where, trust_remote_code=True)
    assert "tokenizer class of its own, which fastbert does not run" in caplog.text
    (where / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="'MyTokenizer', which is none of fastbert's"):
        AutoTokenizer.from_pretrained(where)


def test_made_by_hand(tmp_path: Path) -> None:
    made = rust(BERTISH, lowercase=True)
    made.add_tokens([AddedToken("neuf", normalized=False)])
    tok = PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", pad_token="[PAD]")
    assert tok("Un neuf")["input_ids"] == made.encode("Un neuf").ids
    tok.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("vocab")] == []
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("Un neuf")["input_ids"] == tok("Un neuf")["input_ids"]
    with pytest.raises(FileNotFoundError, match="pass tokenizer_file="):
        PreTrainedTokenizerFast()


def test_families_invent_no_tokens_beside_a_file(tmp_path: Path) -> None:
    where = folder(tmp_path, rust(["<unk>", "<s>", "</s>", "<p>"], lowercase=False))
    for cls in (BertTokenizer, CamembertTokenizer, RemBertTokenizer):
        tok = cls.from_pretrained(where)
        assert len(tok) == 4 + len(WORDS), cls
        assert tok.mask_token is None and tok.pad_token is None
    with pytest.raises(ValueError, match="no pad token"):
        tok(["un", "un deux"], padding=True)
    tok = BertTokenizer.from_pretrained(where, mask_token="<mask>")
    assert tok.mask_token_id == len(tok) - 1, "one that is named is added"


def test_arguments_in_the_documented_order() -> None:
    vocab = {token: index for index, token in enumerate([*BERTISH, "[MASK]", *WORDS])}
    assert BertTokenizer(vocab, False).tokenize("Un") == ["Un"]
    assert BertTokenizer(vocab, True).tokenize("Un") == ["un"]
    with pytest.raises(TypeError, match="passed by name"):
        BertTokenizer(vocab, "tokenizer.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [None, True, False])
@pytest.mark.parametrize("last", [None, True, False])
def test_the_ends_of_texts_are_those_asked_for(
    first: bool | None, last: bool | None, tmp_path: Path
) -> None:
    made = rust(FAIRSEQ, lowercase=False)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
    where = folder(tmp_path, made, None, tokenizer_class="PreTrainedTokenizerFast", **tokens)
    given = {"add_bos_token": first, "add_eos_token": last}
    asked = {name: value for name, value in given.items() if value is not None}
    ours, theirs = (
        lib.AutoTokenizer.from_pretrained(where, **asked) for lib in (fastbert, transformers)
    )
    options: dict[str, Any] = {"padding": True, "return_token_type_ids": True}
    for pairs in ((TEXTS,), (TEXTS, TEXTS[::-1])):
        assert dict(ours(*pairs, **options)) == dict(theirs(*pairs, **options))
    ours.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert dict(again(TEXTS, **options)) == dict(ours(TEXTS, **options))


def test_ends_that_cannot_be_had_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = folder(tmp_path, rust(FAIRSEQ, lowercase=False), None)
    with caplog.at_level(logging.WARNING):
        tok = PreTrainedTokenizerFast.from_pretrained(where, add_bos_token=True)
    assert "add_bos_token=True does nothing: this tokenizer has no bos_token." in caplog.text
    assert tok(TEXTS[0])["input_ids"] == tok(TEXTS[0], add_special_tokens=False)["input_ids"]
    words = tmp_path / "words"
    words.mkdir()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un"]
    (words / "vocab.txt").write_text("\n".join(vocab))
    with caplog.at_level(logging.WARNING):
        asked = BertTokenizer.from_pretrained(words, add_eos_token=True)
    assert "of add_eos_token; PreTrainedTokenizerFast obeys that." in caplog.text
    assert asked("un")["input_ids"] == [2, 5, 3]


@pytest.mark.parametrize("pairs", [True, False])
def test_only_words_are_cleaned_up(tmp_path: Path, pairs: bool) -> None:
    """Byte pairs hold the text's own spaces; a stream of pieces would lose what is taken back."""
    text = "un , deux ."
    if pairs:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = RustTokenizer(rust_models.BPE({t: i for i, t in enumerate(letters)}, []))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:
        made = rust([*BERTISH])
        made.add_tokens(["."])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    folder(tmp_path, made, None, **settings)
    ours = AutoTokenizer.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = ours.encode(text, add_special_tokens=False)
    for clean in (None, True, False):
        found = ours.decode(ids, clean_up_tokenization_spaces=clean)
        assert found == theirs.decode(ids, clean_up_tokenization_spaces=clean)
        assert found == (text if pairs or clean is False else "un, deux.")
