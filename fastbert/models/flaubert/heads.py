"""FlauBERT (Le et al. 2019, arXiv:1912.05372): XLM's encoder and heads, trained on French."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.branches.summary import SequenceSummary
from fastbert.engine.encoder import Wanted
from fastbert.generation.mixin import GenerationMixin, GenerationState
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.linear import Linear, project, running_on
from fastbert.layers.masks import labelled_padding
from fastbert.modeling import tasks
from fastbert.modeling.encoding import EncoderInputs, Encoding, RareOptions, counted, refuse_count
from fastbert.modeling.head_parts import held_part, without_padding
from fastbert.models.flaubert.config import FlaubertConfig
from fastbert.models.flaubert.encoder import (
    FlaubertInputs,
    FlaubertModel,
    FlaubertPreTrainedModel,
)
from fastbert.models.flaubert.squad import SQuADHead
from fastbert.models.flaubert.summary import FlaubertPredLayer
from fastbert.outputs import (
    FlaubertForQuestionAnsweringOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    finish,
)


class _FlaubertHead(FlaubertPreTrainedModel, tasks.HeadModel):
    encoder_class = FlaubertModel

    def build_encoder(self, config: FlaubertConfig) -> FlaubertModel:
        """Build the encoder that the head stands on."""
        return FlaubertModel(config)

    @property
    def _encoder(self) -> FlaubertModel:
        """The encoder that the head stands on."""
        encoder = self.base_model
        assert isinstance(encoder, FlaubertModel)
        return encoder

    def head_dropout(self) -> float:
        """Return the probability of dropout before a classifier, in training."""
        return float(self.config.dropout)

    def summary(self, encoding: Encoding) -> Tensor:
        """Call `sequence_summary` on all tokens: (batch, values)."""
        with running_on(encoding.plan):
            return hidden_of(call(held_part(self, "sequence_summary"), encoding.padded()))

    def removed(self, inputs: EncoderInputs) -> Tensor | None:
        """Return the mask that says which tokens are left out, lengths and padding included."""
        return self._encoder.token_mask(FlaubertInputs.of(inputs))


class _WithLabels(_FlaubertHead):
    """The forward of the tasks whose only argument of their own is `labels`."""

    run: Any

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RareOptions],
    ) -> Any:
        """Compute the task from FlaubertModel's arguments and its `labels`."""
        inputs = FlaubertInputs.given(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict,
            options,
        )
        return self.run(labels, inputs)


class FlaubertWithLMHeadModel(GenerationMixin, _FlaubertHead, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token.

    generate() puts config.mask_token_id behind the text and takes what is predicted there, all in
    language config.lang_id and without token types, as transformers does.

    With config.asm the scores are logarithms of probabilities from an adaptive softmax
    (Grave et al. 2016, arXiv:1609.04309).
    """

    _tied_weights_keys = {"pred_layer.proj.weight": "transformer.embeddings.weight"}

    def build_head(self, config: FlaubertConfig) -> None:
        """Build `pred_layer.proj`: a projection, or an adaptive softmax.

        Raises:
            ValueError: for asm=True without asm_cutoffs.
        """
        projection: nn.Module
        if config.asm:
            cutoffs = getattr(config, "asm_cutoffs", None)
            if not cutoffs:
                raise ValueError(
                    "asm=True needs asm_cutoffs (and asm_div_value) in the configuration."
                )
            projection = nn.AdaptiveLogSoftmaxWithLoss(
                config.emb_dim,
                config.vocab_size,
                cutoffs=cutoffs,
                div_value=getattr(config, "asm_div_value", 4.0),
                head_bias=True,
            )
        else:
            projection = Linear(config.emb_dim, config.vocab_size)
        self.pred_layer = FlaubertPredLayer(projection)

    def tied_weights(self) -> dict[str, str]:
        """Return the parameters that are one with another: none with an adaptive softmax."""
        return {} if self.config.asm else super().tied_weights()

    def get_output_embeddings(self) -> nn.Module | None:
        """Find the projection to the vocabulary; None with an adaptive softmax."""
        return None if self.config.asm else self.pred_layer.proj

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection to the vocabulary."""
        self.pred_layer.proj = new_embeddings

    def score(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        """Score the vocabulary: (tokens, emb_dim) to (tokens, vocabulary)."""
        projection = self.pred_layer.proj
        if isinstance(projection, nn.AdaptiveLogSoftmaxWithLoss):
            return projection.log_prob(hidden)
        return project(projection, hidden, encoding.plan)

    def called_head(self) -> bool:
        """Return whether `pred_layer` is not as it was built, and so is called on all tokens."""
        return self._head_built.why(self, "pred_layer") is not None

    def called_scores(self, encoding: Encoding) -> Tensor | None:
        """Score all tokens by a `pred_layer` that is not as it was built; None otherwise."""
        return self._called(encoding, None)[1] if self.called_head() else None

    def _called(self, encoding: Encoding, labels: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Call `pred_layer`: the loss, where it computes one, and the scores."""
        with running_on(encoding.plan):
            answer = call(held_part(self, "pred_layer"), encoding.padded(), {"y": labels})
        loss = None
        if labels is not None and isinstance(answer, (tuple, list)) and len(answer) > 1:
            loss, *answer = answer
        return loss, without_padding(hidden_of(answer), encoding)

    def run(
        self,
        labels: Tensor | None,
        inputs: EncoderInputs,
        logits_to_keep: int | Tensor | str = 0,
    ) -> MaskedLMOutput:
        """Compute the task; a `pred_layer` of one's own may compute the loss of all tokens."""
        every = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if labels is None or not every or not self.called_head():
            return super().run(labels, inputs, logits_to_keep)
        encoding = self.encode(inputs, Wanted(keep_padding=True))
        encoding.scores_padding = labelled_padding(labels, self.removed(inputs))
        loss, logits = self._called(encoding, labels)
        if loss is None:
            given = {"labels": labels, "vocab_size": self.config.vocab_size}
            loss = self.loss_function(logits=logits, **given, **counted(inputs.options))
        return finish(MaskedLMOutput(loss, logits), encoding)

    def caches(self) -> bool:
        """Keep no cache: every token sees the mask behind it, which moves on."""
        return False

    def generation_inputs(self, ids: Tensor, state: GenerationState) -> dict[str, Any]:
        """Put a mask behind the text, where the next token is predicted."""
        if state.encoder_hidden_states is not None:
            raise ValueError("FlauBERT has no cross-attention to encoder_hidden_states.")
        config = self.config
        ids = F.pad(ids, (0, 1), value=config.mask_token_id)
        mask = F.pad(state.mask, (0, 1), value=1)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": self.base_model.positions_from_mask(mask),
            "langs": None if config.lang_id is None else torch.full_like(ids, config.lang_id),
        }

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor | str = 0,
        **options: Unpack[RareOptions],
    ) -> MaskedLMOutput:
        """Score the vocabulary at every token.

        Args:
            input_ids: as of FlaubertModel.forward, like all others but the two that follow.
            attention_mask: likewise.
            langs: likewise.
            token_type_ids: likewise.
            position_ids: likewise.
            lengths: likewise.
            cache: likewise.
            inputs_embeds: likewise.
            labels: (batch, length), not shifted, -100 where there is none.
            logits_to_keep: see ForMaskedLM.forward.
            output_attentions: as of FlaubertModel.forward.
            output_hidden_states: likewise.
            return_dict: likewise.
            **options: likewise.
        """
        inputs = FlaubertInputs.given(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict,
            options,
        )
        return self.run(labels, inputs, logits_to_keep)


class FlaubertForSequenceClassification(  # type: ignore[misc]
    _WithLabels, tasks.ForSequenceClassification
):
    """A label for a whole text, from config.summary_type."""

    reads_first_column = False

    def build_head(self, config: FlaubertConfig) -> None:
        """Build `sequence_summary`."""
        self.sequence_summary = SequenceSummary(config)

    def classify(self, encoding: Encoding) -> Tensor:
        """Score every text: (batch, num_labels)."""
        return self.summary(encoding)


class FlaubertForMultipleChoice(_WithLabels, tasks.ForMultipleChoice):  # type: ignore[misc]
    """The best of several texts."""

    reads_first_column = False

    def build_head(self, config: FlaubertConfig) -> None:
        """Build `sequence_summary` and `logits_proj`."""
        self.sequence_summary = SequenceSummary(config)
        self.logits_proj = Linear(config.num_labels, 1)

    def classify(self, encoding: Encoding) -> Tensor:
        """Score every text: (batch * choices, 1)."""
        return project(self.logits_proj, self.summary(encoding), encoding.plan)

    def run(self, labels: Tensor | None, inputs: EncoderInputs) -> MultipleChoiceModelOutput:
        """Compute the task, without lengths."""
        given = FlaubertInputs.of(inputs)
        if given.lengths is not None:
            warnings.warn(
                "Multiple choice does not use lengths; pass an attention_mask.", stacklevel=3
            )
            given = replace(given, lengths=None)
        output: MultipleChoiceModelOutput = super().run(labels, given)
        return output


class FlaubertForTokenClassification(  # type: ignore[misc]
    _WithLabels, tasks.ForTokenClassification
):
    """A label for every token."""


class FlaubertForQuestionAnsweringSimple(_FlaubertHead, tasks.ForQuestionAnswering):
    """Both ends of an answer, each scored by itself."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RareOptions],
    ) -> Any:
        """Compute the task from FlaubertModel's arguments and the ends (batch,) of the answer."""
        inputs = FlaubertInputs.given(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict,
            options,
        )
        return self.run(start_positions, end_positions, inputs)


class FlaubertForQuestionAnswering(_FlaubertHead):
    """Both ends of an answer, found by beam search, and whether there is one."""

    def build_head(self, config: FlaubertConfig) -> None:
        """Build `qa_outputs`."""
        self.qa_outputs = SQuADHead(
            config.emb_dim, config.layer_norm_eps, config.start_n_top, config.end_n_top
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        is_impossible: Tensor | None = None,
        cls_index: Tensor | None = None,
        p_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RareOptions],
    ) -> Any:
        """Compute the task from the arguments of FlaubertModel.forward and SQuADHead.forward.

        Returns:
            FlaubertForQuestionAnsweringOutput: the loss alone where both ends are given, else the
            best answers.
        """
        inputs = FlaubertInputs.given(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict,
            options,
        )
        if start_positions is not None and end_positions is not None:
            refuse_count(options, type(self).__name__)
        encoding = self.encode(inputs, Wanted())
        with running_on(encoding.plan):
            answer = call(
                held_part(self, "qa_outputs"),
                encoding.padded(),
                None,
                start_positions=start_positions,
                end_positions=end_positions,
                cls_index=cls_index,
                is_impossible=is_impossible,
                p_mask=p_mask,
                return_dict=True,
            )
        learning = start_positions is not None and end_positions is not None
        return finish(_answers(answer, learning), encoding)


def _answers(answer: Any, learning: bool) -> FlaubertForQuestionAnsweringOutput:
    """Read what `qa_outputs` answered: a ModelOutput, a dict, or a tuple of its values.

    Args:
        answer: what it returned.
        learning: whether both ends were given, so that it is the loss.

    Raises:
        TypeError: for anything else.
    """
    names = FlaubertForQuestionAnsweringOutput.__dataclass_fields__
    if isinstance(answer, (tuple, list)):
        answer = dict(zip(("loss",) if learning else list(names)[1:], answer, strict=False))
    if not isinstance(answer, Mapping):
        raise TypeError(
            "The module in the place of qa_outputs must return the values of a "
            f"FlaubertForQuestionAnsweringOutput, but returned a {type(answer).__name__}."
        )
    return FlaubertForQuestionAnsweringOutput(**{n: v for n, v in answer.items() if n in names})
