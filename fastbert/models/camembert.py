"""CamemBERT (Martin et al. 2019, arXiv:1911.03894): RoBERTa's encoder, trained on French."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fastbert.layers.heads import vocabulary_scores
from fastbert.layers.linear import Linear, project
from fastbert.layers.norm import LayerNorm
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.encoding import Encoding, Options
from fastbert.models.bert import BertConfig


class CamembertConfig(BertConfig):
    """Configuration of CamemBERT: BERT's, with other special tokens.

    Attributes:
        pad_token_id: also the row of the position table that stands for padding: the first token
            has position pad_token_id + 1.
        max_position_embeddings: rows of that table, so a text has at most max_position_embeddings -
            pad_token_id - 1 tokens (512 for the published checkpoints, whose table has 514).
    """

    model_type = "camembert"

    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2


class CamembertEmbeddings(ParameterTree):
    """CamemBERT's tables, and the rules by which tokens get their positions."""

    @staticmethod
    def create_position_ids_from_input_ids(
        input_ids: Tensor, padding_idx: int, past_key_values_length: int = 0
    ) -> Tensor:
        """Count the tokens that are not padding, from padding_idx + 1; padding has padding_idx.

        The count goes by the ids, whatever the attention mask says.

        Args:
            input_ids: (batch, length).
            past_key_values_length: tokens that came before.
        """
        real = (input_ids != padding_idx).long()
        return (torch.cumsum(real, dim=1) + past_key_values_length) * real + padding_idx

    @staticmethod
    def create_position_ids_from_inputs_embeds(inputs_embeds: Tensor, padding_idx: int) -> Tensor:
        """Count all columns from padding_idx + 1: embeddings do not tell which are padding."""
        batch, length = inputs_embeds.shape[:2]
        first = padding_idx + 1
        columns = torch.arange(first, first + length, device=inputs_embeds.device)
        return columns.expand(batch, length)


class CamembertPreTrainedModel(PreTrainedModel):
    """Base of the CamemBERT models."""

    config_class = CamembertConfig
    base_model_prefix = "roberta"
    _no_split_modules = ["CamembertEmbeddings", "CamembertLayer"]


class CamembertModel(CamembertPreTrainedModel, BertLikeModel):
    """The encoder (or, with is_decoder, decoder) without a head."""

    embeddings_class = CamembertEmbeddings

    def __init__(self, config: CamembertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        self.post_init()

    def position_padding(self) -> int | None:
        return self.config.pad_token_id

    def longest(self) -> int:
        return int(self.config.max_position_embeddings - self.config.pad_token_id - 1)

    def default_positions(
        self, input_ids: Tensor | None, length: int, past: int, device: torch.device
    ) -> Tensor:
        padding = self.config.pad_token_id
        if input_ids is not None:
            return CamembertEmbeddings.create_position_ids_from_input_ids(input_ids, padding, past)
        return super().default_positions(None, length, past, device) + padding + 1

    def positions_from_mask(self, mask: Tensor) -> Tensor:
        real = (mask != 0).long()
        return real.cumsum(dim=1) * real + self.config.pad_token_id


class _CamembertHead(CamembertPreTrainedModel, tasks.HeadModel):
    encoder_class = CamembertModel


class _CamembertVocabulary(_CamembertHead, tasks.VocabularyHead):
    """What the models that score the vocabulary share: `lm_head`."""

    _tied_weights_keys = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def build_head(self, config: CamembertConfig) -> None:
        self.lm_head: Any = ParameterTree(
            dense=Linear(config.hidden_size, config.hidden_size),
            layer_norm=LayerNorm(config.hidden_size, config.layer_norm_eps),
            decoder=Linear(config.hidden_size, config.vocab_size),
            bias=nn.Parameter(torch.zeros(config.vocab_size)),
        )

    def get_output_embeddings(self) -> Any:
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.lm_head.decoder = new_embeddings
        self.lm_head.bias = new_embeddings.bias

    def score(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        head = self.lm_head
        # RoBERTa's head is always gelu, whatever hidden_act says.
        return vocabulary_scores(
            hidden, encoding.plan, head.dense, "gelu", head.layer_norm, head.decoder
        )


class CamembertForCausalLM(_CamembertVocabulary, tasks.ForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""


class CamembertForMaskedLM(_CamembertVocabulary, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""


class CamembertForSequenceClassification(_CamembertHead, tasks.ForSequenceClassification):
    """A label for a whole text, from the first token through a layer of the head's own."""

    pooled = False

    def build_head(self, config: CamembertConfig) -> None:
        self.classifier = ParameterTree(
            dense=Linear(config.hidden_size, config.hidden_size),
            out_proj=Linear(config.hidden_size, config.num_labels),
        )

    def classify(self, encoding: Encoding) -> Tensor:
        first = self.dropped(encoding.first_tokens())
        hidden = project(self.classifier.dense, first, encoding.plan, "tanh")
        return project(self.classifier.out_proj, self.dropped(hidden), encoding.plan)


class CamembertForMultipleChoice(_CamembertHead, tasks.ForMultipleChoice):
    """The best of several texts, from the pooler."""

    def head_dropout(self) -> float:
        return self.config.hidden_dropout_prob

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Unpack[Options],
    ) -> Any:
        """As of all multiple-choice models; only the order of the arguments is this family's."""
        return super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            labels,
            **options,
        )


class CamembertForTokenClassification(_CamembertHead, tasks.ForTokenClassification):
    """A label for every token."""


class CamembertForQuestionAnswering(_CamembertHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""
