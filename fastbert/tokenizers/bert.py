"""BERT's tokenizer: WordPiece, in Rust."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from tokenizers import Tokenizer as RustTokenizer, decoders, models, normalizers, pre_tokenizers

from fastbert.tokenizers import files
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines import holes
from fastbert.tokenizers.engines.python import PieceEngine
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.engines.steps import lowercases
from fastbert.tokenizers.engines.template import BERT_TEMPLATE
from fastbert.tokenizers.engines.tokenizer_json import engine_of
from fastbert.tokenizers.special import Default, TokenLike, content
from fastbert.tokenizers.strategies import check_flags
from fastbert.tokenizers.wordpiece import python_engine, read_vocabulary, write_vocabulary


class BertTokenizer(Tokenizer):
    """BERT's tokenizer: clean, split at spaces and punctuation, then WordPiece.

    `[CLS] A [SEP]`, or `[CLS] A [SEP] B [SEP]` with token type 1 from B on.

    Args:
        vocab_file: a vocab.txt, or the ids of the tokens as a dict.
        do_lower_case: lower-case the text; None for what the tokenizer_file says, or True.
        unk_token: one of the special tokens, as are the others named so.
        sep_token: see unk_token.
        pad_token: see unk_token.
        cls_token: see unk_token.
        mask_token: see unk_token.
        tokenize_chinese_chars: make a word of every CJK ideograph; None for what the
            tokenizer_file says, or True.
        strip_accents: strip accents; None for what the tokenizer_file says, or where the text is
            lower-cased.
        clean_text: drop control characters; None for what the tokenizer_file says, or True.
        wordpieces_prefix: what begins a piece inside a word.
        do_basic_tokenize: False splits at spaces alone; it runs in Python, from the vocab_file.
        never_split: words that are kept whole; they too are kept in Python, from the vocab_file.
        vocab: another name of vocab_file.
        tokenizer_file: a tokenizer.json, used instead of the vocab_file. It runs as it is: only
            settings that are given change it.
        **options: see `Tokenizer`.
    """

    vocab_files_names: ClassVar = {
        "vocab_file": "vocab.txt",
        "tokenizer_file": files.TOKENIZER_FILE,
    }
    template = BERT_TEMPLATE
    # What transformers should load the saved files with, for classes of one's own too.
    saved_as: ClassVar[str] = "BertTokenizer"

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | dict[str, int] | None = None,
        do_lower_case: bool | None = None,
        unk_token: TokenLike | None = Default("[UNK]"),
        sep_token: TokenLike | None = Default("[SEP]"),
        pad_token: TokenLike | None = Default("[PAD]"),
        cls_token: TokenLike | None = Default("[CLS]"),
        mask_token: TokenLike | None = Default("[MASK]"),
        tokenize_chinese_chars: bool | None = None,
        strip_accents: bool | None = None,
        clean_text: bool | None = None,
        wordpieces_prefix: str = "##",
        do_basic_tokenize: bool = True,
        never_split: list[str] | None = None,
        vocab: str | os.PathLike[str] | dict[str, int] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(do_lower_case, os.PathLike) or str(do_lower_case).endswith(".json"):
            raise TypeError(
                f"do_lower_case is {do_lower_case!r}; it must be True or False. A tokenizer.json "
                "is passed by name: tokenizer_file=."
            )
        unk_token, sep_token, cls_token = (
            Default(name) if token is None and tokenizer_file is None else token
            for token, name in zip(
                (unk_token, sep_token, cls_token), ("[UNK]", "[SEP]", "[CLS]"), strict=True
            )
        )
        special = {
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        settings = {
            "do_lower_case": do_lower_case,
            "tokenize_chinese_chars": tokenize_chinese_chars,
            "strip_accents": strip_accents,
            "clean_text": clean_text,
        }
        check_flags(settings | {"do_basic_tokenize": do_basic_tokenize})
        source = vocab_file if vocab is None else vocab
        in_python: dict[str, Any] = {} if do_basic_tokenize else {"do_basic_tokenize": False}
        in_python |= {"never_split": list(never_split)} if never_split else {}
        disobeyed: list[str] = []
        engine: RustEngine | PieceEngine
        if in_python and source is not None:
            tokenizer_file = None
            vocabulary = read_vocabulary(source)
            engine = python_engine(vocabulary, content(unk_token), settings | in_python)
            disobeyed = ["clean_text"] if clean_text is False else []
            disobeyed += ["wordpieces_prefix"] if wordpieces_prefix != "##" else []
        elif tokenizer_file is not None:
            engine, disobeyed = engine_of(tokenizer_file, settings)
            disobeyed += in_python
            prefix = getattr(engine.backend.model, "continuing_subword_prefix", "##")
            disobeyed += ["wordpieces_prefix"] if wordpieces_prefix not in ("##", prefix) else []
            settings["do_lower_case"] = lowercases(engine.backend)
        else:
            settings["tokenize_chinese_chars"] = tokenize_chinese_chars is not False
            names = {k: content(v) for k, v in special.items() if v is not None}
            engine = RustEngine(_build(read_vocabulary(source), names, settings, wordpieces_prefix))
        settings["do_lower_case"] = self.do_lower_case = settings["do_lower_case"] is not False
        # Built from a vocabulary, transformers 4 cleans decoded text; from tokenizer.json it does
        # not, unless the settings say so.
        options.setdefault("clean_up_tokenization_spaces", tokenizer_file is None)
        super().__init__(
            engine,
            special=special,
            settings={k: v for k, v in settings.items() if v is not None}
            | {"strip_accents": strip_accents}
            | in_python
            | ({} if wordpieces_prefix == "##" else {"wordpieces_prefix": wordpieces_prefix}),
            **options,
        )
        self._disobeyed = disobeyed
        if isinstance(engine, RustEngine) and tokenizer_file is None:
            engine.set_template(self.template, self.specials)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.txt (the base vocabulary) into a folder and return its path."""
        if isinstance(self.engine, RustEngine):
            base = self.engine.backend.get_vocab(with_added_tokens=False)
        else:
            assert isinstance(self.engine, PieceEngine)
            base = self.engine.model.vocab()
        return write_vocabulary(base, save_directory, filename_prefix)

    def _class_name(self) -> str:
        return self.saved_as


BertTokenizerFast = BertTokenizer


def _build(
    vocab: dict[str, int], names: dict[str, str], settings: dict[str, Any], prefix: str
) -> RustTokenizer:
    needed = [names[name] for name in ("unk_token", "cls_token", "sep_token")]
    missing = [name for name in needed if name not in vocab]
    if missing:
        raise ValueError(
            f"The vocabulary lacks {', '.join(missing)}; pass the names it uses as unk_token, "
            "cls_token and sep_token, or check that this is a BERT vocabulary."
        )
    filled = vocab | holes.fillers(vocab.values())
    backend = RustTokenizer(
        models.WordPiece(filled, unk_token=needed[0], continuing_subword_prefix=prefix)
    )
    yes = {name: value is not False for name, value in settings.items()}
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=yes["clean_text"],
        handle_chinese_chars=yes["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=yes["do_lower_case"],
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=prefix)
    return backend
