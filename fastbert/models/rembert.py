"""RemBERT (Chung et al. 2020, arXiv:2010.12821): input and output embeddings of their own width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from torch import Tensor

from fastbert.branches.bert import (
    BertCrossAttention,
    BertEmbeddings,
    BertLayer,
    DroppingByModule,
    bert_modules,
)
from fastbert.branches.heads import BertOnlyMLMHead, RemBertLMPredictionHead
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import CausalOptions
from fastbert.modeling.parameter_names import EncoderShape, ParameterNames
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.outputs import CausalLMOutputWithCrossAttentions


class RemBertConfig(PreTrainedConfig):
    """Configuration of RemBERT; the defaults are those of google/rembert.

    Attributes:
        input_embedding_size: width of the embedding tables, and of inputs_embeds.
        output_embedding_size: width of the rows that score the vocabulary.
        tie_word_embeddings: always False; the two tables have different widths.
    """

    model_type = "rembert"

    vocab_size: int = 250300
    hidden_size: int = 1152
    num_hidden_layers: int = 32
    num_attention_heads: int = 18
    input_embedding_size: int = 256
    output_embedding_size: int = 1664
    intermediate_size: int = 4608
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 312
    eos_token_id: int | None = 313
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = False


class RemBertEmbeddings(BertEmbeddings):
    """BERT's tables, with a width of their own."""


class RemBertSelfAttention(DroppingByModule):
    """BERT's attention, whose module of dropout decides by itself."""


class RemBertCrossAttention(DroppingByModule, BertCrossAttention):
    """The same for attention to another encoder's hidden states."""


class RemBertLayer(BertLayer):
    """BERT's layer, which returns its attention weights too."""

    returns_tuple = True


class RemBertPreTrainedModel(PreTrainedModel):
    """Base of the RemBERT models."""

    config_class = RemBertConfig
    base_model_prefix = "rembert"
    _no_split_modules = ["RemBertEmbeddings", "RemBertLayer"]


class RemBertModel(RemBertPreTrainedModel, BertLikeModel):
    """The encoder (or, with is_decoder, decoder) without a head."""

    parameter_names = ParameterNames(embedding_projection="encoder.embedding_hidden_mapping_in")
    module_table = bert_modules(
        embeddings=RemBertEmbeddings,
        layer=RemBertLayer,
        self_attention=RemBertSelfAttention,
        cross_attention=RemBertCrossAttention,
    )
    kept_in_tuple = ("pooler_output",)

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes; the tables have a width of their own."""
        return replace(super().encoder_shape(), width=self.config.input_embedding_size)


class _RemBertHead(RemBertPreTrainedModel, tasks.HeadModel):
    encoder_class = RemBertModel

    def head_dropout(self) -> float:
        """Return the probability of dropout before a classifier, in training."""
        return float(self.config.classifier_dropout_prob)


class _RemBertVocabulary(_RemBertHead, NamedVocabularyHead):
    """What the models that score the vocabulary share: `cls.predictions`, tied to nothing."""

    head_names = VocabularyNames(
        dense="cls.predictions.dense",
        norm="cls.predictions.LayerNorm",
        decoder="cls.predictions.decoder",
    )
    head_classes = {"cls": BertOnlyMLMHead, "cls.predictions": RemBertLMPredictionHead}
    head_order = ("dense", "decoder", "norm")

    def head_width(self) -> int:
        """Return the width that the decoder reads."""
        return int(self.config.output_embedding_size)


class RemBertForCausalLM(_RemBertVocabulary, tasks.ForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""

    caches_with_labels = True

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        logits_to_keep: int | Tensor = 0,
        **options: Unpack[CausalOptions],
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict the next token as all causal models do, with RemBERT's order of arguments."""
        return super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            labels,
            past_key_values,
            use_cache,
            logits_to_keep,
            **options,
        )


class RemBertForMaskedLM(_RemBertVocabulary, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""


class RemBertForSequenceClassification(_RemBertHead, tasks.ForSequenceClassification):
    """A label for a whole text, from the pooler."""


class RemBertForMultipleChoice(_RemBertHead, tasks.ForMultipleChoice):
    """The best of several texts, from the pooler."""


class RemBertForTokenClassification(_RemBertHead, tasks.ForTokenClassification):
    """A label for every token."""


class RemBertForQuestionAnswering(_RemBertHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""
