"""Tokenizers of the BERT families, over `tokenizers` and `sentencepiece`."""

from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.batch_encoding import BatchEncoding, CharSpan, TokenSpan
from fastbert.tokenizers.bert import BertTokenizer, BertTokenizerFast
from fastbert.tokenizers.camembert import CamembertTokenizer, CamembertTokenizerFast
from fastbert.tokenizers.flaubert import FlaubertTokenizer
from fastbert.tokenizers.rembert import RemBertTokenizer, RemBertTokenizerFast

__all__ = [
    "BatchEncoding",
    "BertTokenizer",
    "BertTokenizerFast",
    "CamembertTokenizer",
    "CamembertTokenizerFast",
    "CharSpan",
    "FlaubertTokenizer",
    "RemBertTokenizer",
    "RemBertTokenizerFast",
    "TokenSpan",
    "Tokenizer",
]
