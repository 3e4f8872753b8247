"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without token types and pooler."""

from __future__ import annotations

from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from fastbert.branches.bert import ActivationFunction
from fastbert.branches.distilbert import DISTILBERT_MODULES
from fastbert.branches.first_token import PreClassified
from fastbert.layers.called import LayerInputs
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.sinusoids import sinusoids
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.bertlike import BertLikeModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.encoding import EncoderInputs, Encoding, UntypedOptions
from fastbert.modeling.head_parts import held_part
from fastbert.modeling.parameter_names import AttentionNames, EncoderShape, ParameterNames
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.outputs import BaseModelOutput, MaskedLMOutput, QuestionAnsweringModelOutput

_NORM_EPS = 1e-12


class DistilBertConfig(PreTrainedConfig):
    """Configuration of DistilBERT; the defaults are those of distilbert-base-uncased.

    Attributes:
        sinusoidal_pos_embds: whether the table of positions begins as sines and cosines.
        qa_dropout, seq_classif_dropout: dropout before the scores of these heads.
    """

    model_type = "distilbert"
    attribute_map = {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    initializer_range: float = 0.02
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    pad_token_id: int | None = 0
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    tie_word_embeddings: bool = True


class DistilBertPreTrainedModel(PreTrainedModel):
    """Base of the DistilBERT models."""

    config_class = DistilBertConfig
    base_model_prefix = "distilbert"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        config: Any = self.config
        if config.sinusoidal_pos_embds and module is self.get_position_embeddings():
            table: Any = module.weight
            table.copy_(sinusoids(*table.shape))

    def get_position_embeddings(self) -> nn.Embedding:
        """Return the table of positions."""
        holder: Any = self.base_model.embeddings
        return cast(nn.Embedding, holder.position_embeddings)

    @torch.no_grad()
    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change the number of positions; new ones are made as the configuration says."""
        old, base = self.get_position_embeddings(), self.base_model
        holder: Any = base.embeddings
        table = nn.Embedding(new_num_position_embeddings, old.embedding_dim).to(old.weight)
        holder.position_embeddings = table
        base.config.max_position_embeddings = new_num_position_embeddings
        base._init_weights(table)
        kept = min(len(old.weight), new_num_position_embeddings)
        table.weight[:kept] = old.weight[:kept]


class DistilBertModel(DistilBertPreTrainedModel, BertLikeModel):
    """The encoder without a head."""

    parameter_names = ParameterNames(
        token_type=None,
        attention=AttentionNames(
            query="transformer.layer.N.attention.q_lin",
            key="transformer.layer.N.attention.k_lin",
            value="transformer.layer.N.attention.v_lin",
            output="transformer.layer.N.attention.out_lin",
            norm="transformer.layer.N.sa_layer_norm",
        ),
        cross_attention=None,
        intermediate="transformer.layer.N.ffn.lin1",
        output="transformer.layer.N.ffn.lin2",
        output_norm="transformer.layer.N.output_layer_norm",
        pooler=None,
    )
    module_table = DISTILBERT_MODULES
    output_class = BaseModelOutput

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes."""
        c: Any = self.config
        sizes = {"width": c.dim, "hidden": c.dim, "layers": c.n_layers, "heads": c.n_heads}
        return EncoderShape(
            vocabulary=c.vocab_size,
            positions=c.max_position_embeddings,
            **sizes,
            intermediate=c.hidden_dim,
            activation=c.activation,
            norm_eps=_NORM_EPS,
            padding=c.pad_token_id,
        )

    def dropouts(self) -> tuple[float, float, float]:
        """Return the probabilities for hidden states, attention weights and whole layers."""
        return self.config.dropout, self.config.attention_dropout, 0.0

    def is_decoder(self) -> bool:
        """Return False: every token sees all others, whatever the configuration says."""
        return False

    def layer_arguments(self, hidden: Tensor, given: LayerInputs) -> dict[str, Any]:
        """Return what a layer gets by position behind hidden states."""
        return {"attention_mask": given.mask}

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Unpack[UntypedOptions],
    ) -> Any:
        """Encode token ids as all encoders do, with DistilBERT's order of arguments."""
        options.pop("token_type_ids", None)
        return super().forward(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **options,
        )


class _DistilBertHead(DistilBertPreTrainedModel, tasks.HeadModel):
    encoder_class = DistilBertModel

    def head_dropout(self) -> float:
        """Return the probability of dropout before a classifier, in training."""
        return float(self.config.dropout)


class _WithLabels(_DistilBertHead):
    """The forward of the tasks whose only argument of their own is `labels`."""

    run: Any

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Unpack[UntypedOptions],
    ) -> Any:
        """Compute the task as all models do, with DistilBERT's order of arguments."""
        return self.run(
            labels, _inputs(input_ids, attention_mask, inputs_embeds, position_ids, options)
        )


def _inputs(
    ids: Tensor | None,
    mask: Tensor | None,
    embeds: Tensor | None,
    positions: Tensor | None,
    options: UntypedOptions,
) -> EncoderInputs:
    options.pop("token_type_ids", None)
    return EncoderInputs(ids, mask, None, positions, embeds, options=options)


class DistilBertForMaskedLM(_DistilBertHead, NamedVocabularyHead, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""

    head_names = VocabularyNames(
        dense="vocab_transform", norm="vocab_layer_norm", decoder="vocab_projector"
    )
    _tied_weights_keys = {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}

    def head_activation(self) -> str:
        """Return the activation behind dense."""
        return str(self.config.activation)

    def head_eps(self) -> float:
        """Return what the norm adds to the variance."""
        return _NORM_EPS

    def build_head(self, config: Any) -> None:
        """Build the parts, and the activation as a module of its own."""
        self.activation = ActivationFunction(self.head_activation())
        super().build_head(config)

    def head_roots(self) -> tuple[str, ...]:
        """Return the names of the modules that the head consists of."""
        return (*super().head_roots(), "activation")

    def call_head(self, head: Any, encoding: Encoding) -> Any:
        """Call the modules of the head, one after the other."""
        hidden = encoding.padded()
        for name in ("vocab_transform", "activation", "vocab_layer_norm"):
            hidden = hidden_of(call(held_part(self, name), hidden))
        return call(head, hidden)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor | str = 0,
        **options: Unpack[UntypedOptions],
    ) -> MaskedLMOutput:
        """Predict masked tokens as all models do, with DistilBERT's order of arguments."""
        inputs = _inputs(input_ids, attention_mask, inputs_embeds, position_ids, options)
        return self.run(labels, inputs, logits_to_keep)


class _Classified(PreClassified, _WithLabels):
    """What the classifiers of whole texts share."""

    def head_dropout(self) -> float:
        """Return the probability of dropout before a classifier, in training."""
        return float(self.config.seq_classif_dropout)


class DistilBertForSequenceClassification(  # type: ignore[misc]
    _Classified, tasks.ForSequenceClassification
):
    """A label for a whole text, from the first token."""


class DistilBertForMultipleChoice(_Classified, tasks.ForMultipleChoice):  # type: ignore[misc]
    """The best of several texts, each judged by its first token."""


class DistilBertForTokenClassification(  # type: ignore[misc]
    _WithLabels, tasks.ForTokenClassification
):
    """A label for every token."""


class DistilBertForQuestionAnswering(_DistilBertHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""

    def head_dropout(self) -> float:
        """Return the probability of dropout before the scores, in training."""
        return float(self.config.qa_dropout)

    def build_head(self, config: DistilBertConfig) -> None:
        """Build `qa_outputs`, which two labels must stand for."""
        self.check_labels()
        super().build_head(config)
        self.add_dropout()

    def classify(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        """Score hidden states: (tokens, dim) to (tokens, 2)."""
        return super().classify(self.dropped(hidden), encoding)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Unpack[UntypedOptions],
    ) -> QuestionAnsweringModelOutput:
        """Find the ends of an answer as all models do, with DistilBERT's order of arguments."""
        inputs = _inputs(input_ids, attention_mask, inputs_embeds, position_ids, options)
        return self.run(start_positions, end_positions, inputs)
