"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): BERT, trained to tell replaced tokens apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

from torch import Tensor

from fastbert.branches.bert import BertEmbeddings, BertLayer, bert_modules
from fastbert.branches.first_token import FirstTokenClassification
from fastbert.branches.heads import (
    ElectraClassificationHead,
    ElectraDiscriminatorPredictions,
    ElectraGeneratorPredictions,
)
from fastbert.branches.summary import SequenceSummary
from fastbert.engine.encoder import Wanted
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.embeddings import EmbeddingInput
from fastbert.layers.linear import Linear, project, running_on
from fastbert.layers.masks import for_all
from fastbert.modeling import parts, tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import EncoderInputs, Encoding, Options, refuse_count
from fastbert.modeling.head_parts import held_part, without_padding
from fastbert.modeling.losses import replaced_loss
from fastbert.modeling.module_table import ModuleTable
from fastbert.modeling.parameter_names import EncoderShape, ParameterNames
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    ElectraForPreTrainingOutput,
    finish,
)


class ElectraConfig(PreTrainedConfig):
    """Configuration of ELECTRA; the defaults are those of electra-small-discriminator.

    Attributes:
        embedding_size: width of the embedding tables, and of inputs_embeds.
        hidden_act: "gelu" (the exact erf form), "gelu_new", "relu", ...
        summary_type: what stands for a text in multiple choice: "first", "last", "mean" or
            "cls_index".
        summary_use_proj: whether a projection follows it.
        summary_activation: what follows that.
        summary_last_dropout: dropout behind the activation.
        classifier_dropout: dropout before a classifier; None for hidden_dropout_prob.
        is_decoder, add_cross_attention, position_embedding_type: as of BertConfig.
    """

    model_type = "electra"

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str | None = "gelu"
    summary_last_dropout: float = 0.1
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True


class ElectraEmbeddings(BertEmbeddings):
    """BERT's tables, with a width of their own."""


class ElectraLayer(BertLayer):
    """BERT's layer."""


class ElectraPreTrainedModel(PreTrainedModel):
    """Base of the ELECTRA models."""

    config_class = ElectraConfig
    base_model_prefix = "electra"


_PROJECTION = "embeddings_project"


def _modules() -> ModuleTable:
    table = bert_modules(embeddings=ElectraEmbeddings, layer=ElectraLayer)
    return replace(table, regions={**table.regions, _PROJECTION: "embeddings"})


class ElectraModel(ElectraPreTrainedModel, BertLikeModel):
    """The encoder (or, with is_decoder, decoder) without a head."""

    parameter_names = ParameterNames(embedding_projection=_PROJECTION, pooler=None)
    module_table = _modules()
    output_class = BaseModelOutputWithPastAndCrossAttentions

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes; tables of another width than the layers are projected."""
        width, hidden = self.config.embedding_size, self.config.hidden_size
        return replace(super().encoder_shape(), width=width, projected=width != hidden)

    def called_projection(self) -> Linear | None:
        """Return None: `call_embeddings` projects."""
        return None

    def call_embeddings(self, inputs: EmbeddingInput, past: int) -> Tensor:
        """Call the embeddings and their projection: (batch, seqlen, hidden)."""
        hidden = super().call_embeddings(inputs, past)
        projection = parts.find(self, _PROJECTION)
        return hidden if projection is None else hidden_of(call(projection, hidden))


class _ElectraHead(ElectraPreTrainedModel, tasks.HeadModel):
    encoder_class = ElectraModel


_DENSE = "discriminator_predictions.dense"
_SCORE = "discriminator_predictions.dense_prediction"


class ElectraForPreTraining(_ElectraHead):
    """A score for every token: whether it was replaced."""

    def build_head(self, config: ElectraConfig) -> None:
        """Build `discriminator_predictions`."""
        hidden, self._built_activation = config.hidden_size, config.hidden_act

        made = ElectraDiscriminatorPredictions(self._built_activation)
        parts.plant(self, _DENSE, Linear(hidden, hidden), make=lambda *_: made)
        parts.plant(self, _SCORE, Linear(hidden, 1))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Unpack[Options],
    ) -> ElectraForPreTrainingOutput:
        """Score every token: positive where it looks replaced.

        Args:
            input_ids: as of ElectraModel.forward, like the next four.
            attention_mask: likewise.
            token_type_ids: likewise.
            position_ids: likewise.
            inputs_embeds: likewise.
            labels: (batch, length), 1 where a token was replaced and 0 where not. Tokens whose
                attention_mask is not 1 have no part in the loss.
            **options: see fastbert.modeling.encoding.Options.

        Returns:
            ElectraForPreTrainingOutput.
        """
        inputs = EncoderInputs(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            options=options,
        )
        called = self._head_built.why(self, "discriminator_predictions") is not None
        encoding = self.encode(inputs, Wanted(keep_padding=called))
        if called:
            encoding.scores_padding = False
            head = held_part(self, "discriminator_predictions")
            with running_on(encoding.plan):
                logits = hidden_of(call(head, encoding.padded()))
            logits = without_padding(logits[..., None], encoding)[..., 0]
        else:
            logits = encoding.batch.pad(self._scores(encoding))
        loss = None
        if labels is not None:
            refuse_count(options, type(self).__name__)
            mask = None if attention_mask is None else for_all(attention_mask, labels.shape[0])
            loss = replaced_loss(logits, labels, mask)
        return finish(ElectraForPreTrainingOutput(loss, logits), encoding)

    def _scores(self, encoding: Encoding) -> Tensor:
        """Score the computed tokens: (tokens,)."""
        dense, last = (parts.part(Linear, self, path) for path in (_DENSE, _SCORE))
        hidden = project(dense, encoding.packed, encoding.plan, self._built_activation)
        return project(last, hidden, encoding.plan)[..., 0]


class _ElectraVocabulary(_ElectraHead, NamedVocabularyHead):
    """What the models that score the vocabulary share: two modules beside the encoder."""

    head_names = VocabularyNames(
        dense="generator_predictions.dense",
        norm="generator_predictions.LayerNorm",
        decoder="generator_lm_head",
    )
    head_classes = {"generator_predictions": ElectraGeneratorPredictions}
    head_order = ("norm", "dense", "decoder")
    _tied_weights_keys = {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"}

    def head_activation(self) -> str:
        """Return gelu: that of this head, whatever hidden_act says."""
        return "gelu"

    def head_width(self) -> int:
        """Return the width that the decoder reads."""
        return int(self.config.embedding_size)

    def call_head(self, head: Any, encoding: Encoding) -> Any:
        """Call both modules, one after the other."""
        hidden = call(held_part(self, "generator_predictions"), encoding.padded())
        return call(head, hidden_of(hidden))


class ElectraForCausalLM(_ElectraVocabulary, tasks.ForCausalLM):
    """Scores of the next token; needs is_decoder=True to be causal."""


class ElectraForMaskedLM(_ElectraVocabulary, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor | str = 0,
        **options: Unpack[Options],
    ) -> Any:
        """Predict masked tokens as all models do, without another encoder's hidden states."""
        return super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **options,
        )


class ElectraForSequenceClassification(_ElectraHead, FirstTokenClassification):
    """A label for a whole text, from the first token through a layer of the head's own."""

    classifier_class = ElectraClassificationHead


class ElectraForMultipleChoice(_ElectraHead, tasks.ForMultipleChoice):
    """The best of several texts, each judged by config.summary_type."""

    pooled = False

    def build_head(self, config: ElectraConfig) -> None:
        """Build `sequence_summary` and `classifier`."""
        self.sequence_summary = SequenceSummary(config)
        self.classifier = Linear(config.hidden_size, 1)

    def encode(self, inputs: EncoderInputs, wanted: Wanted) -> Encoding:
        """Run the encoder, on padding too unless the first token alone is looked at."""
        summary = self.sequence_summary
        if self._head_built.why(self, "sequence_summary") or summary.summary_type != "first":
            wanted = replace(wanted, keep_padding=True)
        return super().encode(inputs, wanted)

    def classify(self, encoding: Encoding) -> Tensor:
        """Score every text: (batch * choices, 1)."""
        with running_on(encoding.plan):
            summary = call(held_part(self, "sequence_summary"), encoding.padded())
        return project(self.classifier, hidden_of(summary), encoding.plan)


class ElectraForTokenClassification(_ElectraHead, tasks.ForTokenClassification):
    """A label for every token."""


class ElectraForQuestionAnswering(_ElectraHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""
