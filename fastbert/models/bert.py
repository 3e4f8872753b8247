"""BERT (Devlin et al. 2018, arXiv:1810.04805): configuration, encoder and heads."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fastbert.engine.encoder import Wanted
from fastbert.layers.heads import vocabulary_scores
from fastbert.layers.linear import Linear, project
from fastbert.layers.masks import labelled_padding
from fastbert.layers.norm import LayerNorm
from fastbert.layers.parameter_tree import ParameterTree
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import EncoderInputs, Encoding, Options
from fastbert.modeling.losses import token_loss
from fastbert.outputs import BertForPreTrainingOutput


class BertConfig(PreTrainedConfig):
    """Configuration of BERT; the defaults are those of bert-base-uncased.

    Attributes:
        hidden_act: "gelu" (the exact erf form), "gelu_new", "relu", ...
        classifier_dropout: dropout before a classifier; None for hidden_dropout_prob.
        is_decoder: causal attention; add_cross_attention: attention to encoder_hidden_states.
        position_embedding_type: "absolute", "relative_key" or "relative_key_query".
    """

    model_type = "bert"

    vocab_size: int = 30522
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
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True


class BertPreTrainedModel(PreTrainedModel):
    """Base of the BERT models."""

    config_class = BertConfig
    base_model_prefix = "bert"
    _no_split_modules = ["BertEmbeddings", "BertLayer"]


class BertModel(BertPreTrainedModel, BertLikeModel):
    """The encoder (or, with is_decoder, decoder) without a head."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        self.post_init()


class _BertHead(BertPreTrainedModel, tasks.HeadModel):
    encoder_class = BertModel


class _BertPredictions(_BertHead, tasks.VocabularyHead):
    """What the models that score the vocabulary share: `cls.predictions`."""

    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def build_head(self, config: BertConfig) -> None:
        self.cls: Any = ParameterTree(
            predictions=ParameterTree(
                transform=ParameterTree(
                    dense=Linear(config.hidden_size, config.hidden_size),
                    LayerNorm=LayerNorm(config.hidden_size, config.layer_norm_eps),
                ),
                decoder=Linear(config.hidden_size, config.vocab_size),
                bias=nn.Parameter(torch.zeros(config.vocab_size)),
            )
        )

    def get_output_embeddings(self) -> Any:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def score(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        parts = self.cls.predictions
        dense, norm = parts.transform.dense, parts.transform.LayerNorm
        activation = self.config.hidden_act
        return vocabulary_scores(hidden, encoding.plan, dense, activation, norm, parts.decoder)


class BertForPreTraining(_BertPredictions):
    """Both heads of BERT's training: masked tokens and next sentence."""

    pooled = True

    def build_head(self, config: BertConfig) -> None:
        super().build_head(config)
        self.cls.seq_relationship = Linear(config.hidden_size, 2)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **options: Unpack[Options],
    ) -> BertForPreTrainingOutput:
        """Score the vocabulary at every token, and whether the second text follows.

        Args:
            labels: (batch, length), -100 where there is none.
            next_sentence_label: (batch,), 0 if the second text follows, 1 if not; the loss is
                computed when both labels are given.

        Returns:
            BertForPreTrainingOutput.
        """
        inputs = EncoderInputs(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            options=options,
        )
        keep = labelled_padding(labels, attention_mask)
        encoding = self.encode(inputs, Wanted(first_column=True, keep_padding=keep))
        scores = self.scores(encoding)
        follows = project(
            self.cls.seq_relationship, self.base_model.pooled(encoding), encoding.plan
        )
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = token_loss(scores, labels) + token_loss(follows, next_sentence_label)
        return encoding.finish(BertForPreTrainingOutput(loss, scores, follows))


class BertLMHeadModel(_BertPredictions, tasks.ForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""


class BertForMaskedLM(_BertPredictions, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""


class BertForNextSentencePrediction(_BertHead, tasks.ForNextSentencePrediction):
    """Whether the second text follows the first."""

    def build_head(self, config: BertConfig) -> None:
        self.cls: Any = ParameterTree(seq_relationship=Linear(config.hidden_size, 2))

    def classify(self, encoding: Encoding) -> Tensor:
        return project(self.cls.seq_relationship, self.base_model.pooled(encoding), encoding.plan)


class BertForSequenceClassification(_BertHead, tasks.ForSequenceClassification):
    """A label for a whole text, from the pooler."""


class BertForMultipleChoice(_BertHead, tasks.ForMultipleChoice):
    """The best of several texts, from the pooler."""


class BertForTokenClassification(_BertHead, tasks.ForTokenClassification):
    """A label for every token."""


class BertForQuestionAnswering(_BertHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""
