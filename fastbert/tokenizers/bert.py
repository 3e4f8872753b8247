"""BERT's tokenizer: WordPiece, in Rust."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer as RustTokenizer, decoders, models, normalizers, pre_tokenizers

from fastbert.checkpoints.storage import write_text
from fastbert.tokenizers import files
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines.rust import RustEngine, read_rust_tokenizer
from fastbert.tokenizers.engines.template import BERT_TEMPLATE
from fastbert.tokenizers.special import TokenLike


def read_vocabulary(source: str | os.PathLike[str] | dict[str, int] | None) -> dict[str, int]:
    """Read the id of every token.

    Args:
        source: a vocab.txt (one token a line, the id is the line's number), or a dict of ids.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a file that is empty or not UTF-8.
    """
    if isinstance(source, dict):
        return source
    path = files.existing_file(
        source, "vocabulary file", "pass vocab_file= (a vocab.txt), or use from_pretrained(folder)."
    )
    try:
        # Only "\n" ends a token: vocabularies hold other line separators as tokens.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not a vocabulary of UTF-8 lines ({error}).") from error
    lines = lines[:-1] if lines[-1] == "" else lines
    if not lines:
        raise ValueError(f"'{path}' is empty; a vocab.txt holds one token a line.")
    return {line.rstrip("\r"): index for index, line in enumerate(lines)}


def write_vocabulary(vocab: dict[str, int], folder: str, prefix: str | None) -> tuple[str]:
    """Write vocab.txt, in the order of the ids, and return its path."""
    path = Path(folder) / (f"{prefix}-vocab.txt" if prefix else "vocab.txt")
    ordered = sorted(vocab, key=vocab.__getitem__)
    write_text(path, "".join(f"{token}\n" for token in ordered))
    return (str(path),)


class BertTokenizer(Tokenizer):
    """BERT's tokenizer: clean, split at spaces and punctuation, then WordPiece.

    `[CLS] A [SEP]`, or `[CLS] A [SEP] B [SEP]` with token type 1 from B on.

    Args:
        vocab_file: a vocab.txt, or the ids of the tokens as a dict.
        tokenizer_file: a tokenizer.json, used instead.
        do_lower_case: lower-case the text.
        unk_token: one of the special tokens, as are the others named so.
        sep_token: see unk_token.
        pad_token: see unk_token.
        cls_token: see unk_token.
        mask_token: see unk_token.
        tokenize_chinese_chars: make a word of every CJK ideograph.
        strip_accents: strip accents; None does where the text is lower-cased.
        clean_text: drop control characters.
        wordpieces_prefix: what begins a piece inside a word.
        do_basic_tokenize: True; False needs `BertTokenizerLegacy`.
        never_split: none; words to keep whole need `BertTokenizerLegacy`.
        vocab: another name of vocab_file.
        **options: see `Tokenizer`.
    """

    vocab_files_names: ClassVar = {
        "vocab_file": "vocab.txt",
        "tokenizer_file": files.TOKENIZER_FILE,
    }
    template = BERT_TEMPLATE

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | dict[str, int] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool = True,
        unk_token: TokenLike = "[UNK]",
        sep_token: TokenLike = "[SEP]",
        pad_token: TokenLike = "[PAD]",
        cls_token: TokenLike = "[CLS]",
        mask_token: TokenLike = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        clean_text: bool | None = None,
        wordpieces_prefix: str = "##",
        do_basic_tokenize: bool = True,
        never_split: list[str] | None = None,
        vocab: str | os.PathLike[str] | dict[str, int] | None = None,
        **options: Any,
    ) -> None:
        if not do_basic_tokenize or never_split:
            raise ValueError(
                "do_basic_tokenize=False and never_split need the Python tokenizer; use "
                "BertTokenizerLegacy."
            )
        special = {
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        names = {
            k.removesuffix("_token"): str(getattr(v, "content", v)) for k, v in special.items()
        }
        normalizer = {
            "lowercase": do_lower_case,
            "strip_accents": strip_accents,
            "handle_chinese_chars": tokenize_chinese_chars,
        }
        if clean_text is not None:
            normalizer["clean_text"] = clean_text
        if tokenizer_file is not None:
            backend = read_rust_tokenizer(tokenizer_file)
            _apply_normalizer(backend, normalizer)
        else:
            source = vocab_file if vocab is None else vocab
            backend = _build(read_vocabulary(source), names, normalizer, wordpieces_prefix)
        self.do_lower_case = do_lower_case
        engine = RustEngine(backend)
        # Built from a vocabulary, transformers 4 cleans decoded text; from tokenizer.json it does
        # not, unless the settings say so.
        options.setdefault("clean_up_tokenization_spaces", tokenizer_file is None)
        super().__init__(
            engine,
            special=special,
            settings={
                "do_lower_case": do_lower_case,
                "tokenize_chinese_chars": tokenize_chinese_chars,
                "strip_accents": strip_accents,
            }
            | ({} if clean_text is None else {"clean_text": clean_text})
            | ({} if wordpieces_prefix == "##" else {"wordpieces_prefix": wordpieces_prefix}),
            **options,
        )
        if tokenizer_file is None:
            engine.set_template(self.template, self.specials)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.txt (the base vocabulary) into a folder and return its path."""
        assert isinstance(self.engine, RustEngine)
        vocab = self.engine.backend.get_vocab(with_added_tokens=False)
        return write_vocabulary(vocab, save_directory, filename_prefix)

    def _class_name(self) -> str:
        return "BertTokenizer"


BertTokenizerFast = BertTokenizer


def _build(
    vocab: dict[str, int], names: dict[str, str], normalizer: dict[str, Any], prefix: str
) -> RustTokenizer:
    missing = [names[slot] for slot in ("unk", "cls", "sep") if names[slot] not in vocab]
    if missing:
        raise ValueError(
            f"The vocabulary lacks {', '.join(missing)}; pass the names it uses as unk_token, "
            "cls_token and sep_token, or check that this is a BERT vocabulary."
        )
    backend = RustTokenizer(
        models.WordPiece(vocab, unk_token=names["unk"], continuing_subword_prefix=prefix)
    )
    backend.normalizer = normalizers.BertNormalizer(**({"clean_text": True} | normalizer))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=prefix)
    return backend


def _apply_normalizer(backend: RustTokenizer, wanted: dict[str, Any]) -> None:
    """Give a loaded BertNormalizer the wanted settings; leave any other normaliser alone."""
    if not isinstance(backend.normalizer, normalizers.BertNormalizer):
        return
    state = json.loads(backend.normalizer.__getstate__())
    state.pop("type")
    if any(state.get(name) != value for name, value in wanted.items()):
        backend.normalizer = normalizers.BertNormalizer(**(state | wanted))
