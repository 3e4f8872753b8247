"""FlauBERT (Le et al. 2019, arXiv:1912.05372): XLM's encoder and heads, trained on French."""

from __future__ import annotations

from fastbert.models.flaubert.config import FlaubertConfig
from fastbert.models.flaubert.encoder import FlaubertModel, FlaubertPreTrainedModel
from fastbert.models.flaubert.heads import (
    FlaubertForMultipleChoice,
    FlaubertForQuestionAnswering,
    FlaubertForQuestionAnsweringSimple,
    FlaubertForSequenceClassification,
    FlaubertForTokenClassification,
    FlaubertWithLMHeadModel,
)

__all__ = [
    "FlaubertConfig",
    "FlaubertForMultipleChoice",
    "FlaubertForQuestionAnswering",
    "FlaubertForQuestionAnsweringSimple",
    "FlaubertForSequenceClassification",
    "FlaubertForTokenClassification",
    "FlaubertModel",
    "FlaubertPreTrainedModel",
    "FlaubertWithLMHeadModel",
]
