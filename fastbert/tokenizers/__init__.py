"""Tokenizers of the BERT families, over `tokenizers` and `sentencepiece`."""

from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.batch_encoding import BatchEncoding, CharSpan, TokenSpan
from fastbert.tokenizers.bert import BertTokenizer, BertTokenizerFast

__all__ = [
    "BatchEncoding",
    "BertTokenizer",
    "BertTokenizerFast",
    "CharSpan",
    "TokenSpan",
    "Tokenizer",
]
