"""XLM-RoBERTa's tokenizer: sentencepiece with fairseq's ids in front."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from fastbert.tokenizers import files
from fastbert.tokenizers.engines.python import PieceEngine
from fastbert.tokenizers.engines.tokenizer_json import engine_of
from fastbert.tokenizers.roberta import FAIRSEQ_TEMPLATE
from fastbert.tokenizers.sentencepiece.base import SpmTokenizer, filled, mask_of, need_a_file
from fastbert.tokenizers.sentencepiece.python import SpmModel
from fastbert.tokenizers.special import Default, DefaultMask, TokenLike, as_added_token
from fastbert.tokenizers.vocabulary import Engine

# fairseq's dictionary begins with a padding token that sentencepiece does not have, so
# sentencepiece's piece i has id i + 1; its first three, in another order, are fairseq's first four.
_OFFSET = 1
_UNK_ID = 3
_DEFAULTS = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}


class XLMRobertaTokenizer(SpmTokenizer):
    """XLM-RoBERTa's tokenizer.

    `<s> A </s>`, or `<s> A </s></s> B </s>`. Every token type is 0, and token types are not
    returned unless asked for.

    Args:
        vocab_file: sentencepiece.bpe.model, used by sentencepiece itself where there is no
            tokenizer_file.
        tokenizer_file: a tokenizer.json, which runs in Rust as it is.
        bos_token: one of the special tokens, as are the others named so.
        eos_token: see bos_token.
        sep_token: see bos_token.
        cls_token: see bos_token.
        unk_token: see bos_token.
        pad_token: see bos_token.
        mask_token: see bos_token.
        sp_model_kwargs: for SentencePieceProcessor (enable_sampling, nbest_size, alpha).
        **options: see `Tokenizer`.
    """

    vocab_files_names: ClassVar = {
        "vocab_file": "sentencepiece.bpe.model",
        "tokenizer_file": files.TOKENIZER_FILE,
    }
    model_file_name = "sentencepiece.bpe.model"
    model_input_names = ["input_ids", "attention_mask"]
    template = FAIRSEQ_TEMPLATE

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
            "mask_token": mask_of(mask_token),
        }
        special = filled(special, _DEFAULTS if tokenizer_file is None else {})
        engine: Engine
        if tokenizer_file is not None:
            engine, _ = engine_of(tokenizer_file)
        elif vocab_file is None:
            raise need_a_file(type(self))
        else:
            engine = _engine(vocab_file, sp_model_kwargs, special)
        if sp_model_kwargs and not isinstance(engine, PieceEngine):
            raise ValueError(
                "sp_model_kwargs need sentencepiece itself; leave the tokenizer.json out "
                "(from_slow=True, with a sentencepiece.bpe.model)."
            )
        super().__init__(
            engine,
            vocab_file=vocab_file,
            special=special,
            settings={"sp_model_kwargs": dict(sp_model_kwargs)} if sp_model_kwargs else {},
            **options,
        )


XLMRobertaTokenizerFast = XLMRobertaTokenizer


class _Model(SpmModel):
    """A PieceModel whose control pieces are fairseq's tokens, which have ids of their own."""

    def vocab(self) -> dict[str, int]:
        """Return the id of every piece that is no control piece."""
        found = super().vocab()
        control = (i for i in range(self.size) if self.processor.IsControl(i))
        for index in control:
            del found[self.processor.IdToPiece(index)]
        return found

    def join(self, tokens: Sequence[str], specials: set[str]) -> str:
        """Join pieces to text, with special and unknown tokens as they are written.

        sentencepiece itself drops control pieces, and has a sign of its own for unknown text.
        """
        text = "".join(tokens)
        return text.removeprefix("▁").replace("▁", " ")


def _engine(
    vocab_file: str | os.PathLike[str],
    sp_model_kwargs: dict[str, Any] | None,
    special: dict[str, TokenLike | None],
) -> PieceEngine:
    model = _Model(vocab_file, offset=_OFFSET, unk_id=_UNK_ID, processor_options=sp_model_kwargs)
    engine = PieceEngine(model, XLMRobertaTokenizer.template)
    pad, unk = special["pad_token"] or "<pad>", special["unk_token"] or "<unk>"
    ids = {0: "<s>", 1: pad, 2: "</s>", _UNK_ID: unk, model.size + _OFFSET: special["mask_token"]}
    engine.restore_added(
        {index: as_added_token(token, special=True) for index, token in ids.items() if token}
    )
    return engine
