"""A tokenizer.json of any family, run as it is."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from fastbert.tokenizers import files
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.engines.template import BERT_TEMPLATE
from fastbert.tokenizers.engines.tokenizer_json import engine_of
from fastbert.tokenizers.keywords import logger
from fastbert.tokenizers.special import TokenLike
from fastbert.tokenizers.strategies import check_flags


class PreTrainedTokenizerFast(Tokenizer):
    """The tokenizer of a tokenizer.json, whichever family it is of, run in Rust as it is.

    The file says how texts are cut and where special tokens go; only settings that are given change
    it. Special tokens are those that are named, by the arguments or by tokenizer_config.json.

    Args:
        tokenizer_file: a tokenizer.json.
        tokenizer_object: a `tokenizers.Tokenizer`, used instead; a copy is made.
        do_lower_case: lower-case the text; None for what the file says, as for those below.
        strip_accents: strip accents.
        tokenize_chinese_chars: make a word of every CJK ideograph.
        clean_text: drop control characters.
        add_prefix_space: put a space before the first word (byte-level BPE).
        trim_offsets: leave spaces out of offsets (byte-level BPE).
        add_bos_token: whether every text begins with bos_token. Once one of the two is given, they
            say alone which special tokens stand around texts; None for what the file says.
        add_eos_token: whether every text ends with eos_token.
        unk_token: one of the special tokens, as are the others named so.
        sep_token: see unk_token.
        pad_token: see unk_token; None for that of the file's padding, where it has one.
        cls_token: see unk_token.
        mask_token: see unk_token.
        **options: see `Tokenizer`.

    Raises:
        FileNotFoundError: where neither a file nor an object is given.
        ValueError: for a broken file.
    """

    vocab_files_names: ClassVar = {"tokenizer_file": files.TOKENIZER_FILE}
    template = BERT_TEMPLATE

    def __init__(
        self,
        tokenizer_file: str | os.PathLike[str] | None = None,
        tokenizer_object: Any = None,
        do_lower_case: bool | None = None,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool | None = None,
        clean_text: bool | None = None,
        add_prefix_space: bool | None = None,
        trim_offsets: bool | None = None,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        unk_token: TokenLike | None = None,
        sep_token: TokenLike | None = None,
        pad_token: TokenLike | None = None,
        cls_token: TokenLike | None = None,
        mask_token: TokenLike | None = None,
        **options: Any,
    ) -> None:
        given = {
            "do_lower_case": do_lower_case,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": tokenize_chinese_chars,
            "clean_text": clean_text,
            "add_prefix_space": add_prefix_space,
            "trim_offsets": trim_offsets,
        }
        ends = {"add_bos_token": add_bos_token, "add_eos_token": add_eos_token}
        check_flags(given | ends)
        source = tokenizer_file if tokenizer_object is None else tokenizer_object.to_str()
        engine, disobeyed = engine_of(source, given, is_text=tokenizer_object is not None)
        super().__init__(
            engine,
            special={
                "unk_token": unk_token,
                "sep_token": sep_token,
                "pad_token": pad_token,
                "cls_token": cls_token,
                "mask_token": mask_token,
            },
            settings={name: value for name, value in given.items() if value is not None},
            **options,
        )
        self._disobeyed = disobeyed
        if any(value is not None for value in ends.values()):
            first, last = (self._end(name) if ends[name] else None for name in ends)
            engine.set_ends(first, last)

    def _surround(self) -> None:
        """Do nothing: the file alone says which special tokens stand around texts."""

    def _end(self, setting: str) -> str | None:
        """Return the token that a setting puts at an end; None, with a warning, without one."""
        role = setting.removeprefix("add_")
        token = self.specials.named[role]
        if token is None:
            logger.warning("%s=True does nothing: this tokenizer has no %s.", setting, role)
            return None
        return token.content

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write nothing: the vocabulary stands in the tokenizer.json of `save_pretrained`."""
        return ()
