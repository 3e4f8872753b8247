"""fastbert: BERT-family encoders on hand-written kernels, with transformers' classes and weights.

Every public name is imported on first use (PEP 562), so that ``import fastbert`` and
``fastbert env`` cost milliseconds and work where torch, triton or the native library do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS: dict[str, tuple[str, ...]] = {
    "runtime.plan": ("Plan", "use_backend"),
    "tools.explain": ("explain",),
    "integrations.accelerate": ("accelerate", "restore"),
    "modeling.quantization": ("QuantizationConfig",),
    "modeling.base": ("PreTrainedModel",),
    "modeling.config": ("PreTrainedConfig", "PretrainedConfig"),
    "outputs": (
        "BertForPreTrainingOutput",
        "ElectraForPreTrainingOutput",
    ),
    "generation.config": ("GenerationConfig",),
    "layers.kv_cache": ("DynamicCache", "EncoderDecoderCache", "StaticCache"),
    "layers.cache_joining": ("join_caches",),
    "runtime.packing": ("PackedBatch",),
    "embedding.cross_encoder": ("CrossEncoder",),
    "embedding.sentence": ("SentenceEncoder",),
    "pipelines": ("pipeline",),
    "models.bert": (
        "BertConfig",
        "BertPreTrainedModel",
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
        "RobertaPreTrainedModel",
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
        "CamembertPreTrainedModel",
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
        "FlaubertPreTrainedModel",
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
        "RemBertPreTrainedModel",
        "RemBertModel",
        "RemBertForCausalLM",
        "RemBertForMaskedLM",
        "RemBertForSequenceClassification",
        "RemBertForMultipleChoice",
        "RemBertForTokenClassification",
        "RemBertForQuestionAnswering",
    ),
    "models.xlm_roberta": (
        "XLMRobertaConfig",
        "XLMRobertaPreTrainedModel",
        "XLMRobertaModel",
        "XLMRobertaForCausalLM",
        "XLMRobertaForMaskedLM",
        "XLMRobertaForSequenceClassification",
        "XLMRobertaForMultipleChoice",
        "XLMRobertaForTokenClassification",
        "XLMRobertaForQuestionAnswering",
    ),
    "models.distilbert": (
        "DistilBertConfig",
        "DistilBertPreTrainedModel",
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForSequenceClassification",
        "DistilBertForMultipleChoice",
        "DistilBertForTokenClassification",
        "DistilBertForQuestionAnswering",
    ),
    "models.electra": (
        "ElectraConfig",
        "ElectraPreTrainedModel",
        "ElectraModel",
        "ElectraForPreTraining",
        "ElectraForCausalLM",
        "ElectraForMaskedLM",
        "ElectraForSequenceClassification",
        "ElectraForMultipleChoice",
        "ElectraForTokenClassification",
        "ElectraForQuestionAnswering",
    ),
    "models.mpnet": (
        "MPNetConfig",
        "MPNetPreTrainedModel",
        "MPNetModel",
        "MPNetForMaskedLM",
        "MPNetForSequenceClassification",
        "MPNetForMultipleChoice",
        "MPNetForTokenClassification",
        "MPNetForQuestionAnswering",
    ),
    "models.align": (
        "AlignConfig",
        "AlignPreTrainedModel",
        "AlignModel",
        "AlignTextConfig",
        "AlignTextModel",
        "AlignVisionConfig",
        "AlignVisionModel",
    ),
    "models.apertus": (
        "ApertusConfig",
        "ApertusPreTrainedModel",
        "ApertusModel",
        "ApertusForCausalLM",
        "ApertusForTokenClassification",
    ),
    "processors": ("AlignProcessor", "EfficientNetImageProcessor"),
    "tokenizers": (
        "BatchEncoding",
        "BertTokenizer",
        "BertTokenizerFast",
        "BertTokenizerLegacy",
        "CamembertTokenizer",
        "CamembertTokenizerFast",
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
        "XLMRobertaTokenizer",
        "XLMRobertaTokenizerFast",
    ),
    "models.auto": (
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForMaskedLM",
        "AutoModelForMultipleChoice",
        "AutoModelForNextSentencePrediction",
        "AutoModelForPreTraining",
        "AutoModelForQuestionAnswering",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoModelForZeroShotImageClassification",
        "AutoProcessor",
        "AutoTokenizer",
    ),
}
_ROOM = {name: room for room, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_ROOM)]

if TYPE_CHECKING:
    # What type checkers see; tests/test_types_for_users.py compares it with _EXPORTS.
    from fastbert.embedding.cross_encoder import (
        CrossEncoder as CrossEncoder,
    )
    from fastbert.embedding.sentence import (
        SentenceEncoder as SentenceEncoder,
    )
    from fastbert.generation.config import (
        GenerationConfig as GenerationConfig,
    )
    from fastbert.integrations.accelerate import (
        accelerate as accelerate,
        restore as restore,
    )
    from fastbert.layers.cache_joining import (
        join_caches as join_caches,
    )
    from fastbert.layers.kv_cache import (
        DynamicCache as DynamicCache,
        EncoderDecoderCache as EncoderDecoderCache,
        StaticCache as StaticCache,
    )
    from fastbert.modeling.base import (
        PreTrainedModel as PreTrainedModel,
    )
    from fastbert.modeling.config import (
        PreTrainedConfig as PreTrainedConfig,
        PretrainedConfig as PretrainedConfig,
    )
    from fastbert.modeling.quantization import (
        QuantizationConfig as QuantizationConfig,
    )
    from fastbert.models.align import (
        AlignConfig as AlignConfig,
        AlignModel as AlignModel,
        AlignPreTrainedModel as AlignPreTrainedModel,
        AlignTextConfig as AlignTextConfig,
        AlignTextModel as AlignTextModel,
        AlignVisionConfig as AlignVisionConfig,
        AlignVisionModel as AlignVisionModel,
    )
    from fastbert.models.apertus import (
        ApertusConfig as ApertusConfig,
        ApertusForCausalLM as ApertusForCausalLM,
        ApertusForTokenClassification as ApertusForTokenClassification,
        ApertusModel as ApertusModel,
        ApertusPreTrainedModel as ApertusPreTrainedModel,
    )
    from fastbert.models.auto import (
        AutoConfig as AutoConfig,
        AutoImageProcessor as AutoImageProcessor,
        AutoModel as AutoModel,
        AutoModelForCausalLM as AutoModelForCausalLM,
        AutoModelForMaskedLM as AutoModelForMaskedLM,
        AutoModelForMultipleChoice as AutoModelForMultipleChoice,
        AutoModelForNextSentencePrediction as AutoModelForNextSentencePrediction,
        AutoModelForPreTraining as AutoModelForPreTraining,
        AutoModelForQuestionAnswering as AutoModelForQuestionAnswering,
        AutoModelForSequenceClassification as AutoModelForSequenceClassification,
        AutoModelForTokenClassification as AutoModelForTokenClassification,
        AutoModelForZeroShotImageClassification as AutoModelForZeroShotImageClassification,
        AutoProcessor as AutoProcessor,
        AutoTokenizer as AutoTokenizer,
    )
    from fastbert.models.bert import (
        BertConfig as BertConfig,
        BertForMaskedLM as BertForMaskedLM,
        BertForMultipleChoice as BertForMultipleChoice,
        BertForNextSentencePrediction as BertForNextSentencePrediction,
        BertForPreTraining as BertForPreTraining,
        BertForQuestionAnswering as BertForQuestionAnswering,
        BertForSequenceClassification as BertForSequenceClassification,
        BertForTokenClassification as BertForTokenClassification,
        BertLMHeadModel as BertLMHeadModel,
        BertModel as BertModel,
        BertPreTrainedModel as BertPreTrainedModel,
    )
    from fastbert.models.camembert import (
        CamembertConfig as CamembertConfig,
        CamembertForCausalLM as CamembertForCausalLM,
        CamembertForMaskedLM as CamembertForMaskedLM,
        CamembertForMultipleChoice as CamembertForMultipleChoice,
        CamembertForQuestionAnswering as CamembertForQuestionAnswering,
        CamembertForSequenceClassification as CamembertForSequenceClassification,
        CamembertForTokenClassification as CamembertForTokenClassification,
        CamembertModel as CamembertModel,
        CamembertPreTrainedModel as CamembertPreTrainedModel,
    )
    from fastbert.models.distilbert import (
        DistilBertConfig as DistilBertConfig,
        DistilBertForMaskedLM as DistilBertForMaskedLM,
        DistilBertForMultipleChoice as DistilBertForMultipleChoice,
        DistilBertForQuestionAnswering as DistilBertForQuestionAnswering,
        DistilBertForSequenceClassification as DistilBertForSequenceClassification,
        DistilBertForTokenClassification as DistilBertForTokenClassification,
        DistilBertModel as DistilBertModel,
        DistilBertPreTrainedModel as DistilBertPreTrainedModel,
    )
    from fastbert.models.electra import (
        ElectraConfig as ElectraConfig,
        ElectraForCausalLM as ElectraForCausalLM,
        ElectraForMaskedLM as ElectraForMaskedLM,
        ElectraForMultipleChoice as ElectraForMultipleChoice,
        ElectraForPreTraining as ElectraForPreTraining,
        ElectraForQuestionAnswering as ElectraForQuestionAnswering,
        ElectraForSequenceClassification as ElectraForSequenceClassification,
        ElectraForTokenClassification as ElectraForTokenClassification,
        ElectraModel as ElectraModel,
        ElectraPreTrainedModel as ElectraPreTrainedModel,
    )
    from fastbert.models.flaubert import (
        FlaubertConfig as FlaubertConfig,
        FlaubertForMultipleChoice as FlaubertForMultipleChoice,
        FlaubertForQuestionAnswering as FlaubertForQuestionAnswering,
        FlaubertForQuestionAnsweringSimple as FlaubertForQuestionAnsweringSimple,
        FlaubertForSequenceClassification as FlaubertForSequenceClassification,
        FlaubertForTokenClassification as FlaubertForTokenClassification,
        FlaubertModel as FlaubertModel,
        FlaubertPreTrainedModel as FlaubertPreTrainedModel,
        FlaubertWithLMHeadModel as FlaubertWithLMHeadModel,
    )
    from fastbert.models.mpnet import (
        MPNetConfig as MPNetConfig,
        MPNetForMaskedLM as MPNetForMaskedLM,
        MPNetForMultipleChoice as MPNetForMultipleChoice,
        MPNetForQuestionAnswering as MPNetForQuestionAnswering,
        MPNetForSequenceClassification as MPNetForSequenceClassification,
        MPNetForTokenClassification as MPNetForTokenClassification,
        MPNetModel as MPNetModel,
        MPNetPreTrainedModel as MPNetPreTrainedModel,
    )
    from fastbert.models.rembert import (
        RemBertConfig as RemBertConfig,
        RemBertForCausalLM as RemBertForCausalLM,
        RemBertForMaskedLM as RemBertForMaskedLM,
        RemBertForMultipleChoice as RemBertForMultipleChoice,
        RemBertForQuestionAnswering as RemBertForQuestionAnswering,
        RemBertForSequenceClassification as RemBertForSequenceClassification,
        RemBertForTokenClassification as RemBertForTokenClassification,
        RemBertModel as RemBertModel,
        RemBertPreTrainedModel as RemBertPreTrainedModel,
    )
    from fastbert.models.roberta import (
        RobertaConfig as RobertaConfig,
        RobertaForCausalLM as RobertaForCausalLM,
        RobertaForMaskedLM as RobertaForMaskedLM,
        RobertaForMultipleChoice as RobertaForMultipleChoice,
        RobertaForQuestionAnswering as RobertaForQuestionAnswering,
        RobertaForSequenceClassification as RobertaForSequenceClassification,
        RobertaForTokenClassification as RobertaForTokenClassification,
        RobertaModel as RobertaModel,
        RobertaPreTrainedModel as RobertaPreTrainedModel,
    )
    from fastbert.models.xlm_roberta import (
        XLMRobertaConfig as XLMRobertaConfig,
        XLMRobertaForCausalLM as XLMRobertaForCausalLM,
        XLMRobertaForMaskedLM as XLMRobertaForMaskedLM,
        XLMRobertaForMultipleChoice as XLMRobertaForMultipleChoice,
        XLMRobertaForQuestionAnswering as XLMRobertaForQuestionAnswering,
        XLMRobertaForSequenceClassification as XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification as XLMRobertaForTokenClassification,
        XLMRobertaModel as XLMRobertaModel,
        XLMRobertaPreTrainedModel as XLMRobertaPreTrainedModel,
    )
    from fastbert.outputs import (
        BertForPreTrainingOutput as BertForPreTrainingOutput,
        ElectraForPreTrainingOutput as ElectraForPreTrainingOutput,
    )
    from fastbert.pipelines import (
        pipeline as pipeline,
    )
    from fastbert.processors import (
        AlignProcessor as AlignProcessor,
        EfficientNetImageProcessor as EfficientNetImageProcessor,
    )
    from fastbert.runtime.packing import (
        PackedBatch as PackedBatch,
    )
    from fastbert.runtime.plan import (
        Plan as Plan,
        use_backend as use_backend,
    )
    from fastbert.tokenizers import (
        BatchEncoding as BatchEncoding,
        BertTokenizer as BertTokenizer,
        BertTokenizerFast as BertTokenizerFast,
        BertTokenizerLegacy as BertTokenizerLegacy,
        CamembertTokenizer as CamembertTokenizer,
        CamembertTokenizerFast as CamembertTokenizerFast,
        DistilBertTokenizer as DistilBertTokenizer,
        DistilBertTokenizerFast as DistilBertTokenizerFast,
        ElectraTokenizer as ElectraTokenizer,
        ElectraTokenizerFast as ElectraTokenizerFast,
        FlaubertTokenizer as FlaubertTokenizer,
        MPNetTokenizer as MPNetTokenizer,
        MPNetTokenizerFast as MPNetTokenizerFast,
        PreTrainedTokenizerFast as PreTrainedTokenizerFast,
        RemBertTokenizer as RemBertTokenizer,
        RemBertTokenizerFast as RemBertTokenizerFast,
        RobertaTokenizer as RobertaTokenizer,
        RobertaTokenizerFast as RobertaTokenizerFast,
        XLMRobertaTokenizer as XLMRobertaTokenizer,
        XLMRobertaTokenizerFast as XLMRobertaTokenizerFast,
    )
    from fastbert.tools.explain import (
        explain as explain,
    )

else:
    # Hidden from type checkers, which would take every name that is missing for one found here.
    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for."""
        room = _ROOM.get(name)
        if room is None:
            raise AttributeError(f"module 'fastbert' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{room}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOM})
