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
    (argument name to file name) rather than by from_pretrained. `step`: every how manyth text is
    asked about. `added`: tokens are added to it, and strewn over the texts."""

    name: str
    cls: str
    files: str
    call: dict[str, str] | None = None
    options: dict[str, Any] = {}
    fast: bool = False
    step: int = 1
    added: bool = False


SPM = {"vocab_file": "sentencepiece.bpe.model"}
REM = {"vocab_file": "sentencepiece.model"}
LOWER = {"do_lower_case": True}
CASED = {"do_lower_case": False}
OPEN = {"split_special_tokens": True}
NEVER = {"never_split": ["dit-elle", "l'été", "J.-C.", "##ing"]}
BARE = {"do_basic_tokenize": False}
CASES = [
    Case("camembert-slow", "CamembertTokenizer", "camembert", SPM),
    Case("camembert-slow-bpe", "CamembertTokenizer", "camembert-bpe", step=3),
    Case("camembert-slow-bytes", "CamembertTokenizer", "camembert-bytes", SPM, step=3),
    Case("camembert-slow-identity", "CamembertTokenizer", "camembert-identity", SPM, step=3),
    Case("camembert-slow-added", "CamembertTokenizer", "camembert", SPM, step=4, added=True),
    Case("camembert-slow-open", "CamembertTokenizer", "camembert", SPM, OPEN, step=6),
    Case("camembert-fast", "CamembertTokenizerFast", "camembert", SPM, fast=True),
    Case("camembert-fast-bpe", "CamembertTokenizerFast", "camembert-bpe", fast=True, step=3),
    Case("rembert-slow", "RemBertTokenizer", "rembert", REM),
    Case("rembert-slow-lower", "RemBertTokenizer", "rembert", REM, LOWER, step=3),
    Case("rembert-slow-added", "RemBertTokenizer", "rembert", REM, LOWER, step=4, added=True),
    Case("rembert-slow-plain", "RemBertTokenizer", "rembert-plain", step=3),
    Case("rembert-fast", "RemBertTokenizerFast", "rembert", REM, fast=True),
    Case("rembert-fast-folder", "RemBertTokenizerFast", "rembert", fast=True, step=3),
    Case("flaubert", "FlaubertTokenizer", "flaubert"),
    Case("flaubert-lower", "FlaubertTokenizer", "flaubert", None, {"do_lowercase": True}, step=3),
    Case("flaubert-added", "FlaubertTokenizer", "flaubert", step=4, added=True),
    Case("bert-slow-added", "BertTokenizerLegacy", "bert", step=4, added=True),
    Case("bert-slow-never", "BertTokenizerLegacy", "bert", None, NEVER, step=6),
    Case("bert-slow-bare", "BertTokenizerLegacy", "bert", None, BARE, step=6),
    Case("bert-slow", "BertTokenizerLegacy", "bert"),
    Case("bert-slow-cased", "BertTokenizerLegacy", "bert-cased", None, CASED, step=3),
    Case("bert-fast", "BertTokenizerFast", "bert", fast=True),
    Case("bert-fast-open", "BertTokenizerFast", "bert", None, OPEN, True, 6),
    Case("bert-fast-cased", "BertTokenizerFast", "bert-cased", None, CASED, True, 3),
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


def extend(tok: Any) -> None:
    """Adds tokens of every kind."""
    from tokenizers import AddedToken

    tok.add_tokens(["neuf", "Tok", "le"])
    tok.add_tokens([AddedToken("<ent>", lstrip=True, rstrip=True), AddedToken("<G>", rstrip=True)])
    tok.add_tokens([AddedToken("mot", single_word=True), AddedToken("ab", normalized=False)])
    tok.add_special_tokens({"additional_special_tokens": ["<sp>", "<sp2>"]})
    tok.add_tokens(["<x>"], special_tokens=True)


STREWN = ["neuf", "Tok", "tok", "le", "<ent>", " <ent> ", "<G>", "<g> ", "mot", " mot ", "mot.",
          "ab", "AB", "<sp>", " <sp>", "<sp2>", "<x>", "<X>"]  # fmt: skip


def strew(texts: list[str]) -> list[str]:
    """The texts with added tokens here and there."""
    dice = tok_corpus.Dice(3)
    found = []
    for text in texts:
        for _ in range(1 + dice.below(4)):
            place = dice.below(len(text) + 1)
            text = text[:place] + dice.pick(STREWN) + text[place:]
        found.append(text)
    return found


def texts_of(case: Case) -> list[str]:
    """The texts a case is asked about."""
    texts = tok_corpus.texts()[:: case.step]
    return strew(texts) if case.added else texts


def answer(tok: Any, text: str, other: str, fast: bool, more: bool) -> dict[str, Any]:
    """Everything compared for one text, by part; `more` asks about batches and words too."""
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
    parts = [pair, cut]
    if more:
        side = {"padding_side": "left"} if len(text) % 2 else {}
        parts.append(
            tok([text, other], padding=True, pad_to_multiple_of=8, return_length=True, **side)
        )
        parts[-1].pop("length")  # transformers 4 counts padding in one engine, not in the other
        parts.append(tok(text.split(" ")[:8], is_split_into_words=True))
        parts.append(tok(text, padding="max_length", max_length=12, truncation=True))
    return {
        "tokens": first,
        "decoded": [tok.decode(ids), tok.decode(ids, skip_special_tokens=True)],
        "pair": [{key: list(part[key]) for key in sorted(part)} for part in parts],
    }


def answers(tok: Any, fast: bool, texts: list[str]) -> list[dict[str, str]]:
    """The canonical JSON of every answer."""
    found = []
    for index, (text, other) in enumerate(zip(texts, texts[1:] + texts[:1], strict=True)):
        parts = answer(tok, text, other, fast, index % 5 == 0)
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
