"""fastbert: BERT-family encoders on hand-written kernels, with transformers' classes and weights.

Every public name is imported on first use (PEP 562), so that ``import fastbert`` and
``fastbert env`` cost milliseconds and work where torch, triton or the native library do not.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS: dict[str, tuple[str, ...]] = {
    "runtime.plan": ("Plan", "use_backend"),
    "tools.explain": ("explain",),
    "modeling.quantization": ("QuantizationConfig",),
    "generation.config": ("GenerationConfig",),
    "layers.kv_cache": ("DynamicCache", "EncoderDecoderCache"),
    "runtime.packing": ("PackedBatch",),
    "embedding.sentence": ("SentenceEncoder",),
    "pipelines": ("pipeline",),
    "models.bert": (
        "BertConfig",
        "BertModel",
        "BertForPreTraining",
        "BertLMHeadModel",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForMultipleChoice",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ),
    "models.roberta": (
        "RobertaConfig",
        "RobertaModel",
        "RobertaForCausalLM",
        "RobertaForMaskedLM",
        "RobertaForSequenceClassification",
        "RobertaForMultipleChoice",
        "RobertaForTokenClassification",
        "RobertaForQuestionAnswering",
    ),
    "models.camembert": (
        "CamembertConfig",
        "CamembertModel",
        "CamembertForCausalLM",
        "CamembertForMaskedLM",
        "CamembertForSequenceClassification",
        "CamembertForMultipleChoice",
        "CamembertForTokenClassification",
        "CamembertForQuestionAnswering",
    ),
    "models.flaubert": (
        "FlaubertConfig",
        "FlaubertModel",
        "FlaubertWithLMHeadModel",
        "FlaubertForSequenceClassification",
        "FlaubertForMultipleChoice",
        "FlaubertForTokenClassification",
        "FlaubertForQuestionAnsweringSimple",
        "FlaubertForQuestionAnswering",
    ),
    "models.rembert": (
        "RemBertConfig",
        "RemBertModel",
        "RemBertForCausalLM",
        "RemBertForMaskedLM",
        "RemBertForSequenceClassification",
        "RemBertForMultipleChoice",
        "RemBertForTokenClassification",
        "RemBertForQuestionAnswering",
    ),
    "models.align": ("AlignTextConfig", "AlignTextModel"),
    "tokenizers": (
        "BatchEncoding",
        "BertTokenizer",
        "BertTokenizerFast",
        "BertTokenizerLegacy",
        "CamembertTokenizer",
        "CamembertTokenizerFast",
        "FlaubertTokenizer",
        "RemBertTokenizer",
        "RemBertTokenizerFast",
    ),
    "models.auto": (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForMaskedLM",
        "AutoModelForMultipleChoice",
        "AutoModelForNextSentencePrediction",
        "AutoModelForPreTraining",
        "AutoModelForQuestionAnswering",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoTokenizer",
    ),
}
_ROOM = {name: room for room, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_ROOM)]


def __getattr__(name: str) -> Any:
    room = _ROOM.get(name)
    if room is None:
        raise AttributeError(f"module 'fastbert' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM})
