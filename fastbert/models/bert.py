"""BERT (Devlin et al. 2018, arXiv:1810.04805): configuration, encoder and heads."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from fastbert.branches.bert import bert_modules
from fastbert.branches.heads import (
    BertLMPredictionHead,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPredictionHeadTransform,
    BertPreTrainingHeads,
)
from fastbert.engine.encoder import Wanted
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.hooks import hooked
from fastbert.layers.linear import Linear, project, running_on
from fastbert.layers.masks import labelled_padding
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import EncoderInputs, Encoding, Options, refuse_count
from fastbert.modeling.head_parts import held_part
from fastbert.modeling.losses import token_loss
from fastbert.modeling.parts import part, plant
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.outputs import BertForPreTrainingOutput, finish


class BertConfig(PreTrainedConfig):
    """Configuration of BERT; the defaults are those of bert-base-uncased.

    Attributes:
        hidden_act: "gelu" (the exact erf form), "gelu_new", "relu", ...
        classifier_dropout: dropout before a classifier; None for hidden_dropout_prob.
        is_decoder: whether attention is causal.
        add_cross_attention: whether a decoder attends to encoder_hidden_states.
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

    module_table = bert_modules()


_FOLLOWS = "cls.seq_relationship"


class _BertHead(BertPreTrainedModel, tasks.HeadModel):
    encoder_class = BertModel


class _BertPredictions(_BertHead, NamedVocabularyHead):
    """What the models that score the vocabulary share: `cls.predictions`."""

    head_names = VocabularyNames(
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder",
        bias="cls.predictions.bias",
    )
    head_classes = {
        "cls": BertOnlyMLMHead,
        "cls.predictions": BertLMPredictionHead,
        "cls.predictions.transform": BertPredictionHeadTransform,
    }
    _tied_weights_keys = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


class _BertNextSentence(_BertHead):
    """What the models that judge whether the second text follows share: `cls.seq_relationship`."""

    def build_next_sentence(self, config: BertConfig) -> None:
        """Build the projection of the pooled text to (it follows, it does not)."""
        projection = Linear(config.hidden_size, 2)
        plant(self, _FOLLOWS, projection, make=lambda path, layer: BertOnlyNSPHead("none"))

    def follows(self, encoding: Encoding) -> Tensor:
        """Score whether the second text follows, (batch, 2)."""
        pooled = self.pooled_text(encoding)
        head: Any = held_part(self, "cls")
        if type(head) not in (BertOnlyNSPHead, BertPreTrainingHeads) or hooked(head):
            with running_on(encoding.plan):
                answer = call(head, pooled)
            return hidden_of(answer)
        return project(part(Linear, self, _FOLLOWS), pooled, encoding.plan)


class BertForPreTraining(_BertPredictions, _BertNextSentence):
    """Both heads of BERT's training: masked tokens and next sentence."""

    pooled = True
    head_classes = {**_BertPredictions.head_classes, "cls": BertPreTrainingHeads}

    def build_head(self, config: BertConfig) -> None:
        """Build both heads."""
        super().build_head(config)
        self.build_next_sentence(config)

    def call_head(self, head: Any, encoding: Encoding) -> Any:
        """Call both heads: scores of the vocabulary, and whether the second text follows."""
        return call(head, encoding.padded(), {"pooled_output": self.pooled_text(encoding)})

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
            input_ids: as of BertModel.forward, like the next four.
            attention_mask: likewise.
            token_type_ids: likewise.
            position_ids: likewise.
            inputs_embeds: likewise.
            labels: (batch, length), -100 where there is none.
            next_sentence_label: (batch,), 0 if the second text follows, 1 if not; the loss is
                computed when both labels are given.
            **options: see fastbert.modeling.encoding.Options.

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
        called = self.called_head()
        keep = called or labelled_padding(labels, inputs.attention_mask)
        encoding = self.encode(inputs, Wanted(first_column=True, keep_padding=keep))
        if called:
            with running_on(encoding.plan):
                scores, follows = self.call_head(held_part(self, "cls"), encoding)
        else:
            scores, follows = self.scores(encoding), self.follows(encoding)
        loss = None
        if labels is not None and next_sentence_label is not None:
            refuse_count(options, type(self).__name__)
            loss = token_loss(scores, labels) + token_loss(follows, next_sentence_label)
        return finish(BertForPreTrainingOutput(loss, scores, follows), encoding)


class BertLMHeadModel(_BertPredictions, tasks.ForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""


class BertForMaskedLM(_BertPredictions, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""


class BertForNextSentencePrediction(_BertNextSentence, tasks.ForNextSentencePrediction):
    """Whether the second text follows the first."""

    def build_head(self, config: BertConfig) -> None:
        """Build the one head."""
        self.build_next_sentence(config)

    def classify(self, encoding: Encoding) -> Tensor:
        """Score whether the second text follows, (batch, 2)."""
        return self.follows(encoding)


class BertForSequenceClassification(_BertHead, tasks.ForSequenceClassification):
    """A label for a whole text, from the pooler."""


class BertForMultipleChoice(_BertHead, tasks.ForMultipleChoice):
    """The best of several texts, from the pooler."""


class BertForTokenClassification(_BertHead, tasks.ForTokenClassification):
    """A label for every token."""


class BertForQuestionAnswering(_BertHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""
