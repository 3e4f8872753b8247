"""RemBERT's tokenizers: sentencepiece with BERT's special tokens."""

from __future__ import annotations

import os
from typing import Any, ClassVar, Self

from tokenizers import Regex, normalizers

from fastbert.tokenizers import files
from fastbert.tokenizers.engines.python import PieceEngine
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.engines.steps import lowercases
from fastbert.tokenizers.engines.template import BERT_TEMPLATE
from fastbert.tokenizers.engines.tokenizer_json import engine_of
from fastbert.tokenizers.sentencepiece import model_file, rust
from fastbert.tokenizers.sentencepiece.base import SpmTokenizer, filled, mask_of, need_a_file
from fastbert.tokenizers.sentencepiece.python import SpmModel
from fastbert.tokenizers.special import Default, DefaultMask, TokenLike, content
from fastbert.tokenizers.vocabulary import Engine

# What a text cannot be laid out without.
_DEFAULTS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


class RemBertTokenizer(SpmTokenizer):
    """RemBERT's tokenizer.

    `[CLS] A [SEP]`, or `[CLS] A [SEP] B [SEP]` with token type 1 from B on. The token types are
    returned, as transformers 4 did (5 lost them); `model_input_names=["input_ids",
    "attention_mask"]` leaves them out.

    Args:
        vocab_file: sentencepiece.model, used by sentencepiece itself where there is no
            tokenizer_file.
        tokenizer_file: a tokenizer.json, which runs in Rust as it is.
        do_lower_case: lower-case everything but special tokens; None for what the tokenizer_file
            says, or False.
        remove_space: stored only; sentencepiece's own normalisation decides.
        keep_accents: likewise.
        bos_token: one of the special tokens, as are the others named so.
        eos_token: see bos_token.
        unk_token: see bos_token.
        sep_token: see bos_token.
        pad_token: see bos_token.
        cls_token: see bos_token.
        mask_token: see bos_token.
        **options: see `Tokenizer`.
    """

    vocab_files_names: ClassVar = {
        "vocab_file": "sentencepiece.model",
        "tokenizer_file": files.TOKENIZER_FILE,
    }
    model_file_name = "sentencepiece.model"
    template = BERT_TEMPLATE

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool | None = None,
        remove_space: bool = True,
        keep_accents: bool | None = None,
        bos_token: TokenLike | None = Default("[CLS]"),
        eos_token: TokenLike | None = Default("[SEP]"),
        unk_token: TokenLike | None = Default("[UNK]"),
        sep_token: TokenLike | None = Default("[SEP]"),
        pad_token: TokenLike | None = Default("[PAD]"),
        cls_token: TokenLike | None = Default("[CLS]"),
        mask_token: TokenLike | None = DefaultMask("[MASK]"),
        **options: Any,
    ) -> None:
        mask_token = mask_of(mask_token)
        self.do_lower_case = bool(do_lower_case)
        self.remove_space = remove_space
        self.keep_accents = keep_accents is not False
        disobeyed: list[str] = []
        engine: Engine
        if tokenizer_file is not None:
            strip = None if keep_accents is None else not keep_accents
            given = {"do_lower_case": do_lower_case, "strip_accents": strip}
            engine, named = engine_of(tokenizer_file, given)
            disobeyed = ["keep_accents" if name == "strip_accents" else name for name in named]
            self.do_lower_case = lowercases(engine.backend)
            # Both spellings are in use; the vocabulary knows which is its own.
            unk_token = _present(engine, unk_token, ("[UNK]", "<unk>"))
            pad_token = _present(engine, pad_token, ("[PAD]", "<pad>"))
        elif vocab_file is None:
            raise need_a_file(type(self))
        else:
            engine = self._engine(vocab_file)
        special = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        super().__init__(
            engine,
            vocab_file=vocab_file,
            special=filled(special, {} if vocab_file is None else _DEFAULTS),
            settings={
                "do_lower_case": self.do_lower_case,
                "remove_space": remove_space,
                "keep_accents": self.keep_accents,
            },
            **options,
        )
        self._disobeyed = disobeyed

    def _engine(self, vocab_file: str | os.PathLike[str]) -> Engine:
        """Build the engine over a sentencepiece model, by the settings made so far."""
        return PieceEngine(SpmModel(vocab_file), self.template, lower=self.do_lower_case)

    def _mask_ids(self) -> set[int]:
        return {index for index in (self.sep_token_id, self.cls_token_id) if index is not None}


def _present(
    engine: Engine, token: TokenLike | None, spellings: tuple[str, str]
) -> TokenLike | None:
    """Return the spelling of a token that the vocabulary has; `token` where it has neither."""
    if token in spellings and engine.token_to_id(content(token)) is None:
        other = spellings[token == spellings[0]]
        return token if engine.token_to_id(other) is None else other
    return token


class RemBertTokenizerFast(RemBertTokenizer):
    """RemBERT's tokenizer in Rust.

    It runs a tokenizer_file (tokenizer.json) as it is, or is built from a vocab_file
    (sentencepiece.model). Arguments are those of `RemBertTokenizer`.

    As in transformers 4, called directly it lower-cases and strips accents unless told otherwise,
    while `from_pretrained` on a folder without tokenizer.json does neither unless the folder's
    settings say so.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        do_lower_case: bool | None = None,
        remove_space: bool = True,
        keep_accents: bool | None = None,
        unk_token: TokenLike | None = Default("<unk>"),
        pad_token: TokenLike | None = Default("<pad>"),
        **options: Any,
    ) -> None:
        if tokenizer_file is None:
            do_lower_case = do_lower_case is not False
            keep_accents = bool(keep_accents)
        super().__init__(
            vocab_file,
            tokenizer_file,
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            keep_accents=keep_accents,
            unk_token=unk_token,
            pad_token=pad_token,
            **options,
        )

    @classmethod
    def _from_files(cls, paths: dict[str, str], arguments: dict[str, Any]) -> Self:
        if "tokenizer_file" not in paths and "tokenizer_file" not in arguments:
            plain: dict[str, Any] = {
                "do_lower_case": False,
                "keep_accents": True,
                "unk_token": "[UNK]",
                "pad_token": "[PAD]",
            }
            arguments = plain | arguments
        return super()._from_files(paths, arguments)

    def _engine(self, vocab_file: str | os.PathLike[str]) -> Engine:
        source = model_file.read(vocab_file)
        steps: list[normalizers.Normalizer] = [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
        if not self.keep_accents:
            steps += [normalizers.NFKD(), normalizers.StripAccents()]
        if self.do_lower_case:
            steps.append(normalizers.Lowercase())
        if source.charsmap:
            steps.append(normalizers.Precompiled(source.charsmap))
        vocab = [(piece.text, piece.score) for piece in source.pieces]
        return RustEngine(rust.build(source, vocab, source.unk_id, steps))
