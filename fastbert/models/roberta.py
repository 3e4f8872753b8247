"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's encoder with other positions and heads.

It is the root of the families that share its graph, such as CamemBERT.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from fastbert.branches.bert import BertEmbeddings, BertLayer, bert_modules
from fastbert.branches.heads import RobertaClassificationHead, RobertaLMHead
from fastbert.engine.encoder import Wanted
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.linear import Linear, project, running_on
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import EncoderInputs, Encoding, Options
from fastbert.modeling.head_parts import held_part
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

    @staticmethod
    def create_position_ids_from_input_ids(
        input_ids: Tensor, padding_idx: int, past_key_values_length: int = 0
    ) -> Tensor:
        """Count the tokens that are not padding, from padding_idx + 1; padding has padding_idx.

        The count goes by the ids, whatever the attention mask says.

        Args:
            input_ids: (batch, length).
            padding_idx: the id of padding.
            past_key_values_length: tokens that came before.

        Returns:
            int64 (batch, length).
        """
        real = (input_ids != padding_idx).long()
        return (torch.cumsum(real, dim=1) + past_key_values_length) * real + padding_idx

    @staticmethod
    def create_position_ids_from_inputs_embeds(inputs_embeds: Tensor, padding_idx: int) -> Tensor:
        """Count all columns from padding_idx + 1: embeddings do not tell which are padding.

        Args:
            inputs_embeds: (batch, length, width).
            padding_idx: the id of padding.

        Returns:
            int64 (batch, length).
        """
        batch, length = inputs_embeds.shape[:2]
        first = padding_idx + 1
        columns = torch.arange(first, first + length, device=inputs_embeds.device)
        return columns.expand(batch, length)

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


class RobertaModel(RobertaPreTrainedModel, BertLikeModel):
    """The encoder (or, with is_decoder, decoder) without a head."""

    module_table = bert_modules(embeddings=RobertaEmbeddings, layer=RobertaLayer)

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes; padding has a row of its own in the table of positions."""
        return replace(super().encoder_shape(), position_padding=self.config.pad_token_id)

    def longest(self) -> int:
        """Count the tokens that the table of positions has room for."""
        return int(self.config.max_position_embeddings - self.config.pad_token_id - 1)

    def default_positions(
        self, input_ids: Tensor | None, length: int, past: int, device: torch.device
    ) -> Tensor:
        """Return the positions of new tokens by the rules of RobertaEmbeddings."""
        padding = int(self.config.pad_token_id)
        if input_ids is not None:
            return RobertaEmbeddings.create_position_ids_from_input_ids(input_ids, padding, past)
        return super().default_positions(None, length, past, device) + padding + 1

    def positions_from_mask(self, mask: Tensor) -> Tensor:
        """Return the positions of the tokens of a mask (batch, length), padded on the left."""
        real = (mask != 0).long()
        return real.cumsum(dim=1) * real + int(self.config.pad_token_id)


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


class RobertaForSequenceClassification(_RobertaHead, tasks.ForSequenceClassification):
    """A label for a whole text, from the first token through a layer of the head's own."""

    pooled = False

    def build_head(self, config: RobertaConfig) -> None:
        """Build `classifier`."""
        self.classifier = RobertaClassificationHead(
            dense=Linear(config.hidden_size, config.hidden_size),
            out_proj=Linear(config.hidden_size, config.num_labels),
            dropout=self.head_dropout(),
        )

    def dropped(self, x: Tensor) -> Tensor:
        """Apply the classifier's own dropout."""
        out: Tensor = self.classifier.dropout(x)
        return out

    def encode(self, inputs: EncoderInputs, wanted: Wanted) -> Encoding:
        """Run the encoder, on all tokens where somebody's classifier may look at them."""
        if self._head_built.why(self, "classifier") is not None:
            wanted = replace(wanted, keep_padding=True)
        return super().encode(inputs, wanted)

    def classify(self, encoding: Encoding) -> Tensor:
        """Score the labels, (batch, num_labels)."""
        if self._head_built.why(self, "classifier") is not None:
            with running_on(encoding.plan):
                return hidden_of(call(held_part(self, "classifier"), encoding.padded()))
        first = self.dropped(encoding.first_tokens())
        hidden = project(self.classifier.dense, first, encoding.plan, "tanh")
        return project(self.classifier.out_proj, self.dropped(hidden), encoding.plan)


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
