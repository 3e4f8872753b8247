"""BERT's tokenizer under the names of other families, with what each of them does differently."""

from __future__ import annotations

import os
from typing import Any

from fastbert.tokenizers.bert import BertTokenizer
from fastbert.tokenizers.engines.rust import RustEngine
from fastbert.tokenizers.roberta import FAIRSEQ_TEMPLATE, surround
from fastbert.tokenizers.special import Default, DefaultMask, TokenLike


class DistilBertTokenizer(BertTokenizer):
    """DistilBERT's tokenizer: BERT's, without token types unless asked for."""

    saved_as = "DistilBertTokenizer"
    model_input_names = ["input_ids", "attention_mask"]


class ElectraTokenizer(BertTokenizer):
    """ELECTRA's tokenizer: BERT's."""

    saved_as = "ElectraTokenizer"


class MPNetTokenizer(BertTokenizer):
    """MPNet's tokenizer: BERT's WordPiece with RoBERTa's special tokens.

    `<s> A </s>`, or `<s> A </s></s> B </s>`. Every token type is 0, and token types are not
    returned unless asked for.

    Args:
        vocab_file: as of `BertTokenizer`.
        do_lower_case: as of `BertTokenizer`.
        bos_token: one of the special tokens, as are the others named so.
        eos_token: see bos_token.
        sep_token: see bos_token.
        cls_token: see bos_token.
        unk_token: see bos_token.
        pad_token: see bos_token.
        mask_token: see bos_token.
        **options: as of `BertTokenizer`.
    """

    saved_as = "MPNetTokenizer"
    model_input_names = ["input_ids", "attention_mask"]
    template = FAIRSEQ_TEMPLATE

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | dict[str, int] | None = None,
        do_lower_case: bool | None = None,
        bos_token: TokenLike | None = Default("<s>"),
        eos_token: TokenLike | None = Default("</s>"),
        sep_token: TokenLike | None = Default("</s>"),
        cls_token: TokenLike | None = Default("<s>"),
        unk_token: TokenLike | None = Default("[UNK]"),
        pad_token: TokenLike | None = Default("<pad>"),
        mask_token: TokenLike | None = DefaultMask("<mask>"),
        **options: Any,
    ) -> None:
        super().__init__(
            vocab_file,
            do_lower_case,
            unk_token=unk_token,
            sep_token=sep_token,
            pad_token=pad_token,
            cls_token=cls_token,
            mask_token=mask_token,
            bos_token=bos_token,
            eos_token=eos_token,
            **options,
        )
        if isinstance(self.engine, RustEngine) and not self.engine.from_file:
            # It leaves the space that a mask stands for out of offsets.
            surround(self.engine, self.specials, add_prefix_space=False)

    def _set_template(self, engine: RustEngine) -> None:
        surround(engine, self.specials, add_prefix_space=False)


DistilBertTokenizerFast = DistilBertTokenizer
ElectraTokenizerFast = ElectraTokenizer
MPNetTokenizerFast = MPNetTokenizer
