"""BERT (Devlin et al. 2018, arXiv:1810.04805): configuration, encoder and heads."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fastbert.config import PreTrainedConfig
from fastbert.generation import GenerationMixin
from fastbert.layers.heads import vocabulary_scores
from fastbert.layers.linear import Linear
from fastbert.layers.masks import labelled_padding
from fastbert.layers.norm import LayerNorm
from fastbert.layers.tree import Tree
from fastbert.losses import token_loss
from fastbert.models import tasks
from fastbert.models.base import PreTrainedModel
from fastbert.models.bertlike import BertLikeModel
from fastbert.models.encoding import Encoding, Options
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


class _Predictions(BertPreTrainedModel):
    """What the models that score the vocabulary share: `cls.predictions`."""

    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def get_output_embeddings(self) -> Any:
        return self.cls.predictions.decoder  # type: ignore[union-attr]

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        predictions: Any = self.cls.predictions  # type: ignore[union-attr]
        predictions.decoder = new_embeddings
        predictions.bias = new_embeddings.bias

    def score(self, rows: Tensor, encoding: Encoding) -> Tensor:
        parts: Any = self.cls.predictions  # type: ignore[union-attr]
        transform = parts.transform
        return vocabulary_scores(
            rows,
            encoding.plan,
            transform.dense,
            self.config.hidden_act,
            transform.LayerNorm,
            parts.decoder,
        )


def _predictions(config: BertConfig) -> Tree:
    return Tree(
        transform=Tree(
            dense=Linear(config.hidden_size, config.hidden_size),
            LayerNorm=LayerNorm(config.hidden_size, config.layer_norm_eps),
        ),
        decoder=Linear(config.hidden_size, config.vocab_size),
        bias=nn.Parameter(torch.zeros(config.vocab_size)),
    )


class BertForPreTraining(_Predictions, tasks.VocabularyHead):
    """Both heads of BERT's training: masked tokens and next sentence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = Tree(
            predictions=_predictions(config), seq_relationship=Linear(config.hidden_size, 2)
        )
        self.post_init()

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
    ) -> Any:
        """Score the vocabulary at every token, and whether the second text follows.

        Args:
            labels: (batch, length), -100 where there is none.
            next_sentence_label: (batch,), 0 if the second text follows, 1 if not; the loss is
                computed when both labels are given.

        Returns:
            BertForPreTrainingOutput.
        """
        encoding = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            first_column=True,
            keep_padding=labelled_padding(labels, attention_mask),
            **options,
        )
        scores = self.scores(encoding)
        follows = self.cls.seq_relationship(self.bert.pool(encoding), encoding.plan)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = token_loss(scores, labels) + token_loss(follows, next_sentence_label)
        return encoding.finish(
            BertForPreTrainingOutput,
            loss=loss,
            prediction_logits=scores,
            seq_relationship_logits=follows,
        )


class BertLMHeadModel(_Predictions, tasks.ForCausalLM, GenerationMixin):
    """Scores of the next token; needs is_decoder=True to be causal."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self._warn_unless_decoder()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = Tree(predictions=_predictions(config))
        self.post_init()


class BertForMaskedLM(_Predictions, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = Tree(predictions=_predictions(config))
        self.post_init()


class BertForNextSentencePrediction(BertPreTrainedModel, tasks.ForNextSentencePrediction):
    """Whether the second text follows the first."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = Tree(seq_relationship=Linear(config.hidden_size, 2))
        self.post_init()

    def classify(self, encoding: Encoding) -> Tensor:
        return self.cls.seq_relationship(self.bert.pool(encoding), encoding.plan)


def _classifier_dropout(config: Any) -> float:
    chosen = config.classifier_dropout
    return config.hidden_dropout_prob if chosen is None else chosen


class _PooledClassifier(BertPreTrainedModel, tasks.HeadModel):
    outputs_of_one_label = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.classifier = Linear(
            config.hidden_size, 1 if self.outputs_of_one_label else config.num_labels
        )
        self.post_init()

    def classify(self, encoding: Encoding) -> Tensor:
        pooled = self.dropped(self.bert.pool(encoding), _classifier_dropout(self.config))
        return self.classifier(pooled, encoding.plan)


class BertForSequenceClassification(_PooledClassifier, tasks.ForSequenceClassification):
    """A label for a whole text, from the pooler."""


class BertForMultipleChoice(_PooledClassifier, tasks.ForMultipleChoice):
    """The best of several texts, from the pooler."""

    outputs_of_one_label = True


class BertForTokenClassification(BertPreTrainedModel, tasks.ForTokenClassification):
    """A label for every token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def classify(self, rows: Tensor, encoding: Encoding) -> Tensor:
        return self.classifier(self.dropped(rows, _classifier_dropout(self.config)), encoding.plan)


class BertForQuestionAnswering(BertPreTrainedModel, tasks.ForQuestionAnswering):
    """Both ends of an answer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def classify(self, rows: Tensor, encoding: Encoding) -> Tensor:
        return self.qa_outputs(rows, encoding.plan)
