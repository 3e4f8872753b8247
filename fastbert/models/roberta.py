"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's encoder with other positions and heads.

It is the root of the families that share its graph, such as CamemBERT.
"""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from fastbert.branches.bert import BertEmbeddings, BertLayer, bert_modules
from fastbert.branches.first_token import FirstTokenClassification
from fastbert.branches.heads import RobertaLMHead
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.counted_positions import (
    CountedPositions,
    positions_of_columns,
    positions_of_ids,
)
from fastbert.modeling.encoding import Options
from fastbert.modeling.parameter_names import EncoderShape
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.outputs import MultipleChoiceModelOutput


class RobertaConfig(PreTrainedConfig):
    """Configuration of RoBERTa.

    Attributes:
        hidden_act: "gelu" (the exact erf form), "gelu_new", "relu", ...
        max_position_embeddings: rows of the table of positions, so that a text has at most
            max_position_embeddings - pad_token_id - 1 tokens (512 for the published checkpoints,
            whose table has 514).
        pad_token_id: also the row of the table of positions that stands for padding: the first
            token has position pad_token_id + 1.
        position_embedding_type: "absolute", "relative_key" or "relative_key_query".
        classifier_dropout: dropout before a classifier; None for hidden_dropout_prob.
        is_decoder: whether attention is causal.
        add_cross_attention: whether a decoder attends to encoder_hidden_states.
    """

    model_type = "roberta"

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True


class RobertaEmbeddings(BertEmbeddings):
    """RoBERTa's tables, and the rules by which tokens get their positions."""

    settings = ("absolute", "padding_idx")
    create_position_ids_from_input_ids = staticmethod(positions_of_ids)
    create_position_ids_from_inputs_embeds = staticmethod(positions_of_columns)

    def positions(self, input_ids: Tensor | None, inputs_embeds: Tensor, past: int) -> Tensor:
        """Return the positions of tokens, (batch, length)."""
        padding = int(self.padding_idx or 0)
        if input_ids is None:
            return self.create_position_ids_from_inputs_embeds(inputs_embeds, padding)
        return self.create_position_ids_from_input_ids(input_ids, padding, past)


class RobertaLayer(BertLayer):
    """BERT's layer."""


class RobertaPreTrainedModel(PreTrainedModel):
    """Base of the RoBERTa models."""

    config_class = RobertaConfig
    base_model_prefix = "roberta"
    _no_split_modules = ["RobertaEmbeddings", "RobertaLayer"]


class RobertaModel(RobertaPreTrainedModel, CountedPositions):
    """The encoder (or, with is_decoder, decoder) without a head."""

    module_table = bert_modules(embeddings=RobertaEmbeddings, layer=RobertaLayer)

    def build_tables(self, shape: EncoderShape) -> None:
        """Build the tables, that of positions last, as in transformers."""
        super().build_tables(shape)
        held = self.get_submodule("embeddings")._modules
        held["position_embeddings"] = held.pop("position_embeddings")


class HeadFirst(RobertaPreTrainedModel):
    """A head whose parameters come before the encoder's, since optimizers know them by number."""

    def build_head(self, config: Any) -> None:
        """Build the head's modules, and put the encoder behind them."""
        head: Any = super()
        head.build_head(config)
        self._modules[self.base_model_prefix] = self._modules.pop(self.base_model_prefix)


class _RobertaHead(RobertaPreTrainedModel, tasks.HeadModel):
    encoder_class = RobertaModel


class _RobertaVocabulary(_RobertaHead, NamedVocabularyHead):
    """What the models that score the vocabulary share: `lm_head`."""

    head_names = VocabularyNames(
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder",
        bias="lm_head.bias",
    )
    head_classes = {"lm_head": RobertaLMHead}
    _tied_weights_keys = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def head_activation(self) -> str:
        """Return gelu: that of this head, whatever hidden_act says."""
        return "gelu"


class RobertaForCausalLM(_RobertaVocabulary, tasks.ForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""


class RobertaForMaskedLM(_RobertaVocabulary, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""


class RobertaForSequenceClassification(_RobertaHead, FirstTokenClassification):
    """A label for a whole text, from the first token through a layer of the head's own."""


class RobertaForMultipleChoice(_RobertaHead, tasks.ForMultipleChoice):
    """The best of several texts, from the pooler."""

    def head_dropout(self) -> float:
        """Return hidden_dropout_prob: this head leaves classifier_dropout alone."""
        return float(self.config.hidden_dropout_prob)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Unpack[Options],
    ) -> MultipleChoiceModelOutput:
        """Choose a text as all multiple-choice models do, with RoBERTa's order of arguments."""
        return super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            labels,
            **options,
        )


class RobertaForTokenClassification(_RobertaHead, tasks.ForTokenClassification):
    """A label for every token."""


class RobertaForQuestionAnswering(_RobertaHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""
