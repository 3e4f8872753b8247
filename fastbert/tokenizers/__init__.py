"""Tokenizers of the BERT families, over `tokenizers` and `sentencepiece`."""

from fastbert.tokenizers.auto import AutoTokenizer
from fastbert.tokenizers.base import Tokenizer
from fastbert.tokenizers.batch_encoding import BatchEncoding, CharSpan, TokenSpan
from fastbert.tokenizers.bert import BertTokenizer, BertTokenizerFast
from fastbert.tokenizers.bert_legacy import BertTokenizerLegacy
from fastbert.tokenizers.camembert import CamembertTokenizer, CamembertTokenizerFast
from fastbert.tokenizers.flaubert import FlaubertTokenizer
from fastbert.tokenizers.generic import PreTrainedTokenizerFast
from fastbert.tokenizers.like_bert import (
    DistilBertTokenizer,
    DistilBertTokenizerFast,
    ElectraTokenizer,
    ElectraTokenizerFast,
    MPNetTokenizer,
    MPNetTokenizerFast,
)
from fastbert.tokenizers.rembert import RemBertTokenizer, RemBertTokenizerFast
from fastbert.tokenizers.roberta import RobertaTokenizer, RobertaTokenizerFast
from fastbert.tokenizers.xlm_roberta import XLMRobertaTokenizer, XLMRobertaTokenizerFast

__all__ = [
    "AutoTokenizer",
    "BatchEncoding",
    "BertTokenizer",
    "BertTokenizerFast",
    "BertTokenizerLegacy",
    "CamembertTokenizer",
    "CamembertTokenizerFast",
    "CharSpan",
    "DistilBertTokenizer",
    "DistilBertTokenizerFast",
    "ElectraTokenizer",
    "ElectraTokenizerFast",
    "FlaubertTokenizer",
    "MPNetTokenizer",
    "MPNetTokenizerFast",
    "PreTrainedTokenizerFast",
    "RemBertTokenizer",
    "RemBertTokenizerFast",
    "RobertaTokenizer",
    "RobertaTokenizerFast",
    "TokenSpan",
    "Tokenizer",
    "XLMRobertaTokenizer",
    "XLMRobertaTokenizerFast",
]
