"""BERT's original tokenizer in Python, with the settings that only it has."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar

from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines.template import BERT_TEMPLATE
from fastbert.tokenizers.special import Default, TokenLike, content
from fastbert.tokenizers.strategies import check_flags
from fastbert.tokenizers.wordpiece import python_engine, read_vocabulary, write_vocabulary


class BertTokenizerLegacy(Tokenizer):
    """BERT's tokenizer in Python: slower than BertTokenizer, and with two settings more.

    Args:
        vocab_file: a vocab.txt, or the ids of the tokens as a dict.
        do_lower_case: lower-case the text.
        do_basic_tokenize: False splits at spaces alone, for text that is split already.
        never_split: words that are kept whole.
        unk_token: one of the special tokens, as are the others named so.
        sep_token: see unk_token.
        pad_token: see unk_token.
        cls_token: see unk_token.
        mask_token: see unk_token.
        tokenize_chinese_chars: make a word of every CJK ideograph.
        strip_accents: strip accents; None does where the text is lower-cased.
        clean_up_tokenization_spaces: remove the spaces before English punctuation in decoded text.
        **options: see `Tokenizer`.
    """

    vocab_files_names: ClassVar = {"vocab_file": "vocab.txt"}
    template = BERT_TEMPLATE

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | dict[str, int] | None = None,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: TokenLike | None = Default("[UNK]"),
        sep_token: TokenLike | None = Default("[SEP]"),
        pad_token: TokenLike | None = Default("[PAD]"),
        cls_token: TokenLike | None = Default("[CLS]"),
        mask_token: TokenLike | None = Default("[MASK]"),
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        clean_up_tokenization_spaces: bool = True,
        **options: Any,
    ) -> None:
        unk_token = Default("[UNK]") if unk_token is None else unk_token
        settings = {
            "do_lower_case": do_lower_case,
            "do_basic_tokenize": do_basic_tokenize,
            "never_split": list(never_split or []) or None,
            "tokenize_chinese_chars": tokenize_chinese_chars,
            "strip_accents": strip_accents,
        }
        check_flags({name: value for name, value in settings.items() if name != "never_split"})
        vocab = read_vocabulary(vocab_file)
        self.do_lower_case = do_lower_case
        self.do_basic_tokenize = do_basic_tokenize
        self._vocab = vocab
        super().__init__(
            python_engine(vocab, content(unk_token), settings),
            special={
                "unk_token": unk_token,
                "sep_token": sep_token,
                "pad_token": pad_token,
                "cls_token": cls_token,
                "mask_token": mask_token,
            },
            settings=settings,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **options,
        )

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.txt into a folder and return its path."""
        return write_vocabulary(self._vocab, save_directory, filename_prefix)
