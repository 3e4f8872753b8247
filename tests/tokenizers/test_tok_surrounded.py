"""A tokenizer.json that puts no special tokens around texts gets those of its family's class.

Such files are what training a vocabulary leaves (their post-processor is null, or trims offsets
only), and what transformers 5 saves of a RemBERT that had no tokenizer.json. transformers 5 gives
them the class's own tokens. A file that says anything of its own is obeyed, and the class that runs
any file as it is adds nothing.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import ByteLevelBPETokenizer

import fastbert

TEXTS = ["the cat's fromage", "", " [MASK] <mask> ", "été 日本"]
EMPTY = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
TRIMMING = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
KINDS = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "bert",
    "ElectraTokenizer": "bert",
    "MPNetTokenizer": "bert",
    "RobertaTokenizer": "",
    "CamembertTokenizerFast": "camembert",
    "RemBertTokenizerFast": "rembert",
    "XLMRobertaTokenizer": "camembert",
}


def saved(name: str, models: Path, folder: Path) -> Any:
    """Write the tokenizer.json of a family and return its tokenizer of transformers."""
    folder.mkdir()
    if name == "RobertaTokenizer":
        trained = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained.train_from_iterator(TEXTS * 3, vocab_size=300, special_tokens=special)
        trained.save_model(str(folder))
    else:
        shutil.copytree(models / KINDS[name], folder, dirs_exist_ok=True)
        vocabulary = folder / "vocab.txt"
        if name == "MPNetTokenizer":
            text = vocabulary.read_text(encoding="utf-8")
            for old, new in (("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>")):
                text = text.replace(old, new)
            vocabulary.write_text(text.replace("[MASK]", "<mask>"), encoding="utf-8")
    theirs = getattr(transformers, name.removesuffix("Fast")).from_pretrained(folder)
    theirs.save_pretrained(folder)
    for file in ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model"):
        (folder / file).unlink(missing_ok=True)
    return type(theirs).from_pretrained(folder)


def with_processor(folder: Path, processor: Any) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {"post_processor": processor}
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", KINDS)
def test_the_family_says_what_stands_around_texts(name: str, models: Path, tmp_path: Path) -> None:
    theirs = saved(name, models, tmp_path / "model")
    options: dict[str, Any] = {"return_special_tokens_mask": True, "return_offsets_mapping": True}
    options["return_token_type_ids"] = name != "RemBertTokenizerFast"  # 5 lost its segments
    expected = [dict(theirs(*given, **options)) for given in ((TEXTS,), (TEXTS, TEXTS[::-1]))]
    for processor in (None, EMPTY, TRIMMING):
        if name != "RobertaTokenizer" and processor is TRIMMING:
            continue
        with_processor(tmp_path / "model", processor)
        ours = getattr(fastbert, name).from_pretrained(tmp_path / "model")
        for tokenizer in (ours, pickle.loads(pickle.dumps(ours))):
            found = [
                dict(tokenizer(*given, **options)) for given in ((TEXTS,), (TEXTS, TEXTS[::-1]))
            ]
            assert found == expected
        assert ours.num_special_tokens_to_add(True) == theirs.num_special_tokens_to_add(True)


def test_what_transformers_saves_of_a_rembert(models: Path, tmp_path: Path) -> None:
    theirs = transformers.RemBertTokenizer.from_pretrained(models / "rembert")
    theirs.save_pretrained(tmp_path)
    ours = fastbert.AutoTokenizer.from_pretrained(tmp_path)
    reloaded = transformers.RemBertTokenizer.from_pretrained(tmp_path)
    for given in ((TEXTS,), (TEXTS, TEXTS[::-1])):
        assert ours(*given)["input_ids"] == reloaded(*given)["input_ids"]
        assert ours(*given)["input_ids"][0][0] == ours.cls_token_id


def test_a_file_of_its_own_mind_is_obeyed(models: Path, tmp_path: Path) -> None:
    saved("BertTokenizer", models, tmp_path / "model")
    index = fastbert.BertTokenizer.from_pretrained(tmp_path / "model").sep_token_id
    token = {"[SEP]": {"id": "[SEP]", "ids": [index], "tokens": ["[SEP]"]}}
    last = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    own = EMPTY | {"single": [*EMPTY["single"], last], "special_tokens": token}
    with_processor(tmp_path / "model", own)
    ours = fastbert.BertTokenizer.from_pretrained(tmp_path / "model")
    assert ours("the")["input_ids"][1:] == [index] and ours("the", "the")["token_type_ids"] == [
        0,
        1,
    ]
    with_processor(tmp_path / "model", None)
    plain = fastbert.PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    assert plain("the")["input_ids"] == ours("the", add_special_tokens=False)["input_ids"]


def test_extra_special_tokens_have_both_their_names(models: Path) -> None:
    theirs = transformers.BertTokenizer.from_pretrained(models / "bert")
    ours = fastbert.BertTokenizer.from_pretrained(models / "bert")
    for tokenizer in (ours, theirs):
        tokenizer.add_special_tokens({"additional_special_tokens": ["<a>"]})
        tokenizer.add_special_tokens(
            {"extra_special_tokens": ["<b>"]}, replace_extra_special_tokens=False
        )
    assert ours.extra_special_tokens == theirs.extra_special_tokens == ["<a>", "<b>"]
    assert ours.extra_special_tokens_ids == theirs.extra_special_tokens_ids
    ours.extra_special_tokens = ["<a>"]
    assert ours.additional_special_tokens == ["<a>"]
    ours.add_special_tokens(
        {"extra_special_tokens": ["<c>"]}, replace_additional_special_tokens=False
    )
    assert ours.extra_special_tokens == ["<a>", "<c>"]
