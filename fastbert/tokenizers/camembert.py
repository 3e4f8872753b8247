"""CamemBERT's tokenizers: sentencepiece with fairseq's ids in front."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from tokenizers import Regex, normalizers

from fastbert.tokenizers import files
from fastbert.tokenizers.engines.python import PieceEngine
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.engines.template import SpecialTokensTemplate
from fastbert.tokenizers.engines.tokenizer_json import engine_of
from fastbert.tokenizers.sentencepiece import model_file, rust
from fastbert.tokenizers.sentencepiece.base import SpmTokenizer, filled, mask_of, need_a_file
from fastbert.tokenizers.sentencepiece.python import SpmModel
from fastbert.tokenizers.special import Default, DefaultMask, TokenLike, as_added_token
from fastbert.tokenizers.vocabulary import Engine

# fairseq's dictionary comes first, so sentencepiece's piece i has id i + 4; its own unknown piece
# (0) is never used: 3 is.
_OFFSET = 4
_UNK_ID = 3
_NOT_USED = (Default("<s>NOTUSED"), Default("</s>NOTUSED"), Default("<unk>NOTUSED"))

# What a text cannot be laid out without.
_DEFAULTS = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}


class CamembertTokenizer(SpmTokenizer):
    """CamemBERT's tokenizer, by sentencepiece itself.

    `<s> A </s>`, or `<s> A </s></s> B </s>`. Every token type is 0, and token types are not
    returned unless asked for.

    Args:
        vocab_file: sentencepiece.bpe.model.
        tokenizer_file: a tokenizer.json, used (in Rust) where no vocab_file is given, as in folders
            that transformers 5 saved.
        bos_token: one of the special tokens, as are the others named so.
        eos_token: see bos_token.
        sep_token: see bos_token.
        cls_token: see bos_token.
        unk_token: see bos_token.
        pad_token: see bos_token.
        mask_token: see bos_token.
        additional_special_tokens: special tokens without a role.
        sp_model_kwargs: for SentencePieceProcessor (enable_sampling, nbest_size, alpha).
        **options: see `Tokenizer`.

    Attributes:
        prefers_rust: whether the class runs in Rust where it can.
    """

    vocab_files_names: ClassVar = {
        "vocab_file": "sentencepiece.bpe.model",
        "tokenizer_file": files.TOKENIZER_FILE,
    }
    model_file_name = "sentencepiece.bpe.model"
    model_input_names = ["input_ids", "attention_mask"]
    template = SpecialTokensTemplate(("cls", "A", "sep"), ("cls", "A", "sep", "sep", "B", "sep"), 0)
    prefers_rust: ClassVar[bool] = False

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        bos_token: TokenLike | None = Default("<s>"),
        eos_token: TokenLike | None = Default("</s>"),
        sep_token: TokenLike | None = Default("</s>"),
        cls_token: TokenLike | None = Default("<s>"),
        unk_token: TokenLike | None = Default("<unk>"),
        pad_token: TokenLike | None = Default("<pad>"),
        mask_token: TokenLike | None = DefaultMask("<mask>"),
        additional_special_tokens: Iterable[TokenLike] | None = _NOT_USED,
        sp_model_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        special = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "sep_token": sep_token,
            "cls_token": cls_token,
            "unk_token": unk_token,
            "pad_token": pad_token,
            "mask_token": mask_token,
        }
        special["mask_token"] = mask_of(mask_token)
        special = filled(special, _DEFAULTS if tokenizer_file is None else {})
        from_json = tokenizer_file is not None and (self.prefers_rust or vocab_file is None)
        engine: Engine
        if from_json:
            assert tokenizer_file is not None
            engine, _ = engine_of(tokenizer_file)
        elif vocab_file is None:
            raise need_a_file(type(self))
        elif self.prefers_rust:
            engine = _fast_engine(vocab_file)
        else:
            pad, unk = special["pad_token"] or "<pad>", special["unk_token"] or "<unk>"
            engine = _slow_engine(vocab_file, sp_model_kwargs, pad, unk)
            # A saved table from the fast class lacks ids that sentencepiece's numbering reserves.
            if options.get("added_tokens_decoder"):
                saved = {int(k): v for k, v in options["added_tokens_decoder"].items()}
                options["added_tokens_decoder"] = saved | engine.added_tokens
        if sp_model_kwargs and not isinstance(engine, PieceEngine):
            raise ValueError(
                "sp_model_kwargs need sentencepiece itself; use CamembertTokenizer with a "
                "vocab_file (sentencepiece.bpe.model)."
            )
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        super().__init__(
            engine,
            vocab_file=vocab_file,
            special=special,
            additional_special_tokens=additional_special_tokens,
            settings={"sp_model_kwargs": self.sp_model_kwargs} if self.sp_model_kwargs else {},
            **options,
        )


class CamembertTokenizerFast(CamembertTokenizer):
    """CamemBERT's tokenizer in Rust.

    It runs a tokenizer_file (tokenizer.json) where there is one, and is built from the vocab_file
    (sentencepiece.bpe.model) otherwise. Arguments are those of `CamembertTokenizer`.
    """

    prefers_rust = True


class _CamembertModel(SpmModel):
    def join(self, tokens: Sequence[str], specials: set[str]) -> str:
        """Join runs of pieces as sentencepiece does, special tokens with a space before them."""
        text = ""
        run: list[str] = []
        after_special = False
        for token in tokens:
            if token in specials:
                text += ("" if after_special else " ") + self.decode(run) + token
                run = []
            else:
                run.append(token)
            after_special = token in specials
        return (text + self.decode(run)).strip()


def _slow_engine(
    vocab_file: str | os.PathLike[str],
    sp_model_kwargs: dict[str, Any] | None,
    pad_token: TokenLike,
    unk_token: TokenLike,
) -> PieceEngine:
    model = _CamembertModel(
        vocab_file, offset=_OFFSET, unk_id=_UNK_ID, processor_options=sp_model_kwargs
    )
    engine = PieceEngine(model, CamembertTokenizer.template)
    engine.restore_added(
        {
            0: as_added_token("<s>NOTUSED", special=True),
            1: as_added_token(pad_token, special=True),
            2: as_added_token("</s>NOTUSED", special=True),
            _UNK_ID: as_added_token(unk_token, special=True),
            _OFFSET: as_added_token("<unk>NOTUSED", special=True),
        }
    )
    return engine


def _fast_engine(vocab_file: str | os.PathLike[str]) -> RustEngine:
    source = model_file.read(vocab_file)
    vocab = [
        ("<s>NOTUSED", 0.0),
        ("<pad>", 0.0),
        ("</s>NOTUSED", 0.0),
        ("<unk>", 0.0),
        # So unlikely that it is never chosen.
        ("<unk>NOTUSED", -100.0),
        *((piece.text, piece.score) for piece in source.pieces[1:]),
        ("<mask>", 0.0),
    ]
    steps: list[normalizers.Normalizer] = [
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁"),
    ]
    if source.charsmap:
        steps.insert(0, normalizers.Precompiled(source.charsmap))
    return RustEngine(rust.build(source, vocab, _UNK_ID, steps))
