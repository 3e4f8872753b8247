"""What is compared, for our tokenizers and for the oracle's alike.

A configuration names a class, how it is made, and from which trained files. `answers` asks a
tokenizer about every text; both sides run this very code. Needs no package of its own.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import tok_corpus

HERE = Path(__file__).parent
MODELS = HERE / "golden" / "models.tar.xz"


class Case(NamedTuple):
    """`files`: a folder of the archive. `call`: make it by calling the class with the files
    (argument name to file name) rather than by from_pretrained."""

    name: str
    cls: str
    files: str
    call: dict[str, str] | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    fast: bool = False


SPM = {"vocab_file": "sentencepiece.bpe.model"}
REM = {"vocab_file": "sentencepiece.model"}
CASES = [
    Case("camembert-slow", "CamembertTokenizer", "camembert", SPM),
    Case("camembert-slow-bpe", "CamembertTokenizer", "camembert-bpe"),
    Case("camembert-slow-bytes", "CamembertTokenizer", "camembert-bytes", SPM),
    Case("camembert-slow-identity", "CamembertTokenizer", "camembert-identity", SPM),
    Case("camembert-fast", "CamembertTokenizerFast", "camembert", SPM, fast=True),
    Case("camembert-fast-bpe", "CamembertTokenizerFast", "camembert-bpe", fast=True),
    Case("rembert-slow", "RemBertTokenizer", "rembert", REM),
    Case("rembert-slow-lower", "RemBertTokenizer", "rembert", REM, {"do_lower_case": True}),
    Case("rembert-slow-plain", "RemBertTokenizer", "rembert-plain"),
    Case("rembert-fast", "RemBertTokenizerFast", "rembert", REM, fast=True),
    Case("rembert-fast-folder", "RemBertTokenizerFast", "rembert", fast=True),
    Case("flaubert", "FlaubertTokenizer", "flaubert"),
    Case("flaubert-lower", "FlaubertTokenizer", "flaubert", None, {"do_lowercase": True}),
    Case("bert-slow", "BertTokenizerLegacy", "bert"),
    Case("bert-slow-cased", "BertTokenizerLegacy", "bert-cased", None, {"do_lower_case": False}),
    Case("bert-fast", "BertTokenizerFast", "bert", fast=True),
    Case(
        "bert-fast-cased", "BertTokenizerFast", "bert-cased", None, {"do_lower_case": False}, True
    ),
]

PARTS = ("tokens", "decoded", "pair")


def unpack(folder: Path) -> Path:
    """The trained files, under `folder`."""
    with lzma.open(MODELS) as stream, tarfile.open(fileobj=stream) as archive:
        archive.extractall(folder, filter="data")
    return folder


def make(case: Case, cls: Any, models: Path) -> Any:
    """The tokenizer of a case."""
    folder = models / case.files
    if case.call is None:
        return cls.from_pretrained(str(folder), **case.options)
    files = {argument: str(folder / name) for argument, name in case.call.items()}
    return cls(**files, **case.options)


def answer(tok: Any, text: str, other: str, fast: bool) -> dict[str, Any]:
    """Everything compared for one text, by part."""
    extra: dict[str, Any] = {"return_offsets_mapping": True} if fast else {}
    one = tok(text, return_special_tokens_mask=True, **extra)
    ids = list(one["input_ids"])
    first = [tok.tokenize(text), {key: list(one[key]) for key in sorted(one)}]
    if fast:
        first += [one.tokens(0), one.word_ids(0)]
    first.append(tok.convert_ids_to_tokens(ids))
    other = other or "x"  # transformers 4 takes an empty second text for none
    pair = tok(text, other, return_token_type_ids=True, return_special_tokens_mask=True, **extra)
    # Ten tokens hold both texts' special tokens and always leave room to cut.
    cut = tok(text, other, truncation=True, max_length=10) if text else {}
    return {
        "tokens": first,
        "decoded": [tok.decode(ids), tok.decode(ids, skip_special_tokens=True)],
        "pair": [
            {key: list(pair[key]) for key in sorted(pair)},
            {key: list(cut[key]) for key in sorted(cut)},
        ],
    }


def answers(tok: Any, fast: bool, texts: list[str]) -> list[dict[str, str]]:
    """The canonical JSON of every answer."""
    found = []
    for text, other in zip(texts, texts[1:] + texts[:1], strict=True):
        parts = answer(tok, text, other, fast)
        found.append(
            {part: json.dumps(parts[part], ensure_ascii=True, default=list) for part in PARTS}
        )
    return found


def summary(tok: Any) -> dict[str, Any]:
    """What is compared once for each tokenizer."""
    return {
        "vocab_size": tok.vocab_size,
        "length": len(tok),
        "special": dict(sorted(tok.special_tokens_map.items())),
        "special_ids": tok.all_special_ids,
        "added": {str(i): str(t) for i, t in sorted(tok.added_tokens_decoder.items())},
        "names": list(tok.model_input_names),
        "room": [tok.num_special_tokens_to_add(False), tok.num_special_tokens_to_add(True)],
        "vocab": tok_corpus.digest(json.dumps(sorted(tok.get_vocab().items()))),
        "built": tok.build_inputs_with_special_tokens([7, 8], [9]),
        "types": tok.create_token_type_ids_from_sequences([7, 8], [9]),
    }
