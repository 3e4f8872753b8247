"""The tasks: heads, losses and the forward of every sort of model with a head.

A family derives its classes from these and builds the modules. `run` is the task itself, for
families whose forward has other arguments. Every `forward` takes the arguments of the encoder
(input_ids or inputs_embeds, attention_mask, token_type_ids, position_ids), those of its task, and
the keywords of `fastbert.modeling.encoding.Options`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.engine.encoder import FIRST_COLUMN, PACKED, Wanted
from fastbert.generation.mixin import GenerationMixin
from fastbert.layers.calling import call, hidden_of
from fastbert.layers.encoder import EncoderOutput
from fastbert.layers.hooks import hooked
from fastbert.layers.linear import Linear, project, share_with
from fastbert.layers.masks import labelled_padding
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoder import EncoderModel, keeping_padding, words_adapted
from fastbert.modeling.encoding import (
    CausalOptions,
    EncoderInputs,
    Encoding,
    Options,
    Output,
    counted,
)
from fastbert.modeling.head_parts import BuiltHead
from fastbert.modeling.kept_columns import kept
from fastbert.modeling.losses import token_loss
from fastbert.modeling.module_table import head_by_rows
from fastbert.outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    finish,
)
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Traits, tell_of_torch


class HeadModel(PreTrainedModel):
    """A model with a head over `base_model`.

    Attributes:
        encoder_class: the family's encoder.
        pooled: whether the head needs the encoder's pooler.
        num_labels: number of classes when the model was built.
    """

    encoder_class: ClassVar[Callable[..., EncoderModel]]
    pooled: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels
        encoder = self.build_encoder(config)
        self._encoder_type = type(encoder)
        setattr(self, self.base_model_prefix, encoder)
        self.build_head(config)
        self._head_built = BuiltHead(self, self.base_model_prefix)
        self.post_init()

    @property
    def base_model(self) -> EncoderModel:
        """The encoder that the head stands on, within whatever was put around it.

        Where somebody's own module stands in its place, that module.
        """
        found: Any = getattr(self, self.base_model_prefix)
        if isinstance(found, EncoderModel):
            return found
        inside = (module for module in found.modules() if isinstance(module, EncoderModel))
        encoder: EncoderModel = next(inside, found)
        return encoder

    def torch_parts(self) -> list[str]:
        """See PreTrainedModel.torch_parts."""
        name = self.base_model_prefix
        base: Any = self._modules[name]
        found = self.base_model.torch_parts() if isinstance(self.base_model, EncoderModel) else []
        if type(base) is not self._encoder_type:
            found.append(f"{name} is a {type(base).__name__}, which is called")
        elif hooked(base):
            found.append(f"{name} has hooks, or another forward, so it is called")
        return found + self.head_parts()

    def head_parts(self) -> list[str]:
        """Say, in clauses, which parts of the head torch computes."""
        return self._head_built.clauses(self)

    def traits(self) -> Traits:
        """See PreTrainedModel.traits; of an own module in the place of the encoder, nothing."""
        base: Any = self.base_model
        return base.traits() if isinstance(base, EncoderModel) else Traits()

    def build_encoder(self, config: Any) -> EncoderModel:
        """Make the encoder that the head stands on."""
        return self.encoder_class(config, add_pooling_layer=self.pooled)

    def build_head(self, config: Any) -> None:
        """Make the head's modules, under the names of the family's checkpoints."""
        raise NotImplementedError

    def head_dropout(self) -> float:
        """Return the probability of dropout before a classifier, in training."""
        chosen = self.config.classifier_dropout
        return float(self.config.hidden_dropout_prob if chosen is None else chosen)

    def input_embeddings_place(self) -> tuple[nn.Module, str]:
        """See PreTrainedModel.input_embeddings_place."""
        return self.base_model.input_embeddings_place()

    def blocks(self) -> Any:
        """See PreTrainedModel.blocks."""
        return self.base_model.blocks()

    def encode(self, inputs: EncoderInputs, wanted: Wanted) -> Encoding:
        """Run the encoder; see EncoderModel.encode.

        Whatever else stands in its place, or looks at it, is called as torch would call it.
        """
        if self.strict or self.batch_invariant:
            self._tell_of_torch()
        base: Any = self._modules[self.base_model_prefix]
        if type(base) is self._encoder_type and not hooked(base):
            encoding: Encoding = base.encode(inputs, wanted)
            return encoding
        return self._call_encoder(base, inputs, wanted)

    def _tell_of_torch(self) -> None:
        """Raise or warn where a pass would leave the kernels for a part of the head."""
        found = self.head_parts()
        if found and not self.plan().by_reference:
            tell_of_torch(found, self.strict, self.batch_invariant)

    def _call_encoder(self, base: Any, inputs: EncoderInputs, wanted: Wanted) -> Encoding:
        given = {**inputs.named(), "return_dict": True}
        first = given.pop("input_ids")
        with keeping_padding(wanted.keep_padding):
            answer = call(base, first, None, **given)
        grid, pooled = hidden_of(answer), getattr(answer, "pooler_output", None)
        if pooled is None and isinstance(answer, tuple) and self.pooled and len(answer) > 1:
            pooled = answer[1]
        kept = ("hidden_states", "past_key_values", "attentions", "cross_attentions")
        chosen = inputs.options.get("return_dict")
        return Encoding(
            PackedBatch.dense(grid.shape[0], grid.shape[1], grid.device),
            self.plan(needs_grad=torch.is_grad_enabled() and grid.requires_grad),
            self.config.return_dict if chosen is None else chosen,
            EncoderOutput(packed=grid.flatten(0, 1), grid=grid, pooled=pooled),
            {name: getattr(answer, name, None) for name in kept},
        )

    def pooled_text(self, encoding: Encoding) -> Tensor:
        """Return what a head over the pooler reads, (batch, pooler width).

        Raises:
            ValueError: for an encoder without a pooler.
        """
        if encoding.output.pooled is not None:
            return encoding.output.pooled
        if not isinstance(self.base_model, EncoderModel):
            raise ValueError(
                f"This head reads the pooler's output, but the {type(self.base_model).__name__} in "
                "the place of its encoder returned no pooler_output."
            )
        return self.base_model.pooled(encoding)

    def removed(self, inputs: EncoderInputs) -> Tensor | None:
        """Return the mask (batch, length) that says which tokens the encoder leaves out."""
        return inputs.attention_mask

    def dropped(self, x: Tensor) -> Tensor:
        """Apply `dropout`, or where the head has none, dropout by `head_dropout` in training."""
        dropout = self._modules.get("dropout")
        if dropout is not None:
            out: Tensor = dropout(x)
            return out
        return F.dropout(x, self.head_dropout()) if self.training else x

    def add_dropout(self) -> None:
        """Make `dropout`, with the probability that `head_dropout` returns."""
        self.dropout = nn.Dropout(self.head_dropout())

    def looks_around(self, name: str) -> bool:
        """Return whether the part of that name may look at more than one token at a time."""
        part = self._modules.get(name)
        return part is not None and not head_by_rows(part)


class VocabularyHead(HeadModel):
    """A head that scores the vocabulary for hidden states."""

    def score(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        """Score hidden states: (tokens, hidden) to (tokens, vocabulary)."""
        raise NotImplementedError

    def called_head(self) -> bool:
        """Return whether the head is called as torch would call it, on all tokens."""
        return False

    def called_scores(self, encoding: Encoding) -> Tensor | None:
        """Score all tokens by calling the head as torch would, where it is not as it was built.

        Returns:
            (batch, length, vocabulary); None where kernels compute the head.
        """
        return None

    def scores(self, encoding: Encoding, keep: Any = 0) -> Tensor:
        """Score the vocabulary for the tokens that `keep` selects, and for no others.

        Args:
            encoding: the output of the encoder.
            keep: as for `kept`.

        Returns:
            The logits: (batch, length, vocabulary) for all tokens, with zeros where a token was
            removed; (batch, n, vocabulary) for columns; (selected, vocabulary) for single tokens.
        """
        batch = encoding.batch
        logits = self.called_scores(encoding)
        if logits is not None:
            return kept(logits, keep)
        share_with(self.get_output_embeddings(), words_adapted(self))
        if isinstance(keep, int) and keep == 0:
            return batch.pad(self.score(encoding.packed, encoding))
        chosen = kept(encoding.padded(), keep)
        found = self.score(chosen.reshape(-1, chosen.shape[-1]), encoding)
        return found.reshape(*chosen.shape[:-1], found.shape[-1])


class ForMaskedLM(VocabularyHead):
    """A head that predicts the tokens that were masked out, with scores of the vocabulary."""

    accepts_loss_kwargs = True
    loss_type = "ForMaskedLM"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor | str = 0,
        **options: Unpack[Options],
    ) -> MaskedLMOutput:
        """Predict masked tokens.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: (batch, length), zero for padding, or a wider mask.
            token_type_ids: int64 (batch, length) or (1, length).
            position_ids: int64 (batch, length) or (1, length).
            inputs_embeds: (batch, length, embedding width), in place of input_ids.
            encoder_hidden_states: (batch, encoder length, hidden), for cross-attention.
            encoder_attention_mask: (batch, encoder length), zero for padding.
            labels: int64 (batch, length), the true token where one is to be predicted, -100
                elsewhere.
            logits_to_keep: as `keep` in `scores`; "labels" for the tokens that have a label, which
                saves the projection to the vocabulary for all others: logits are then (labelled,
                vocabulary).
            **options: the keywords of `fastbert.modeling.encoding.Options`.

        Returns:
            MaskedLMOutput, or its tuple with return_dict=False.

        Raises:
            ValueError: for logits_to_keep="labels" without labels, and for any other text.
        """
        inputs = EncoderInputs(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            options=options,
        )
        return self.run(labels, inputs, logits_to_keep)

    def run(
        self,
        labels: Tensor | None,
        inputs: EncoderInputs,
        logits_to_keep: int | Tensor | str = 0,
    ) -> MaskedLMOutput:
        """Compute the task; arguments are those of forward."""
        keep = labelled_padding(labels, self.removed(inputs))
        encoding = self.encode(inputs, Wanted(keep_padding=keep or self.called_head()))
        encoding.scores_padding = keep
        if isinstance(logits_to_keep, str):
            if logits_to_keep != "labels" or labels is None:
                raise ValueError('logits_to_keep="labels" needs labels; other texts mean nothing.')
            logits_to_keep = labels != -100
        logits = self.scores(encoding, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=kept(labels, logits_to_keep),
                vocab_size=self.config.vocab_size,
                **counted(inputs.options),
            )
        return finish(MaskedLMOutput(loss, logits), encoding)


class ForCausalLM(GenerationMixin, VocabularyHead):
    """A head that predicts the next token, with scores of the vocabulary.

    Attributes:
        caches_with_labels: whether a cache is returned even when labels are given.
    """

    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"
    caches_with_labels = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if not config.is_decoder:
            warnings.warn(
                f"{type(self).__name__} was built with is_decoder=False, so every token sees those "
                "after it; set is_decoder=True in the configuration to predict the next token.",
                stacklevel=2,
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Unpack[CausalOptions],
    ) -> CausalLMOutputWithCrossAttentions:
        """Predict the next token.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: (batch, length), zero for padding, or a wider mask.
            token_type_ids: int64 (batch, length) or (1, length).
            position_ids: int64 (batch, length) or (1, length).
            inputs_embeds: (batch, length, embedding width), in place of input_ids.
            encoder_hidden_states: (batch, encoder length, hidden), for cross-attention.
            encoder_attention_mask: (batch, encoder length), zero for padding.
            labels: int64 (batch, length), -100 where there is none; shifted here by one column.
            past_key_values: a cache, or tuples over layers of keys and values.
            use_cache: whether to return a cache; None for config.use_cache.
            logits_to_keep: as `keep` in `scores`.
            **options: the keywords of `fastbert.modeling.encoding.CausalOptions`.

        Returns:
            CausalLMOutputWithCrossAttentions, or its tuple with return_dict=False.
        """
        shift_labels = options.pop("shift_labels", None)
        if labels is not None and not self.caches_with_labels:
            use_cache = False
        inputs = EncoderInputs(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache,
            options,
        )
        mask = inputs.attention_mask
        keep = labelled_padding(labels, mask, shift=1) or labelled_padding(shift_labels, mask)
        encoding = self.encode(inputs, Wanted(keep_padding=keep or self.called_head()))
        encoding.scores_padding = keep
        logits = self.scores(encoding, logits_to_keep)
        loss = None
        if labels is not None or shift_labels is not None:
            shifted = {} if shift_labels is None else {"shift_labels": shift_labels}
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                **shifted,
                **counted(options),
            )
        return finish(CausalLMOutputWithCrossAttentions(loss, logits), encoding)


class _WithLabels(HeadModel, Generic[Output]):
    """A head whose forward takes `labels` besides the arguments of the encoder."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Unpack[Options],
    ) -> Output:
        """Compute the task's output.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: (batch, length), zero for padding, or a wider mask.
            token_type_ids: int64 (batch, length) or (1, length).
            position_ids: int64 (batch, length) or (1, length).
            inputs_embeds: (batch, length, embedding width), in place of input_ids.
            labels: the true answers, in the form that the class describes; None computes no loss.
            **options: the keywords of `fastbert.modeling.encoding.Options`.

        Returns:
            The output that the class names, or its tuple with return_dict=False.
        """
        inputs = EncoderInputs(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            options=options,
        )
        return self.run(labels, inputs)

    def run(self, labels: Tensor | None, inputs: EncoderInputs) -> Output:
        """Compute the task; arguments are those of forward."""
        raise NotImplementedError


class ForSequenceClassification(_WithLabels[SequenceClassifierOutput]):
    """A head that gives a whole text one label, several labels, or values.

    forward takes `labels` of shape (batch,) with classes, (batch, num_labels) with 0 and 1, or
    values, as config.problem_type says, and returns a SequenceClassifierOutput.

    Attributes:
        reads_first_column: whether the head reads column 0 of every text.
    """

    loss_type = "ForSequenceClassification"
    pooled = True
    reads_first_column = True

    def build_head(self, config: Any) -> None:
        """See HeadModel.build_head."""
        self.classifier: Any = Linear(config.hidden_size, config.num_labels)
        self.add_dropout()

    def classify(self, encoding: Encoding) -> Tensor:
        """Score every text: (batch, num_labels)."""
        return project(self.classifier, self.dropped(self.pooled_text(encoding)), encoding.plan)

    def run(self, labels: Tensor | None, inputs: EncoderInputs) -> SequenceClassifierOutput:
        """See _WithLabels.run."""
        encoding = self.encode(inputs, FIRST_COLUMN if self.reads_first_column else PACKED)
        logits = self.classify(encoding)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                labels=labels, pooled_logits=logits, config=self.config, **counted(inputs.options)
            )
        return finish(SequenceClassifierOutput(loss, logits), encoding)


class ForNextSentencePrediction(_WithLabels[NextSentencePredictorOutput]):
    """A head that predicts whether the second text follows the first.

    forward takes `labels` of shape (batch,), 0 where it follows and 1 where not, and returns a
    NextSentencePredictorOutput.
    """

    pooled = True

    def classify(self, encoding: Encoding) -> Tensor:
        """Score every pair: (batch, 2)."""
        raise NotImplementedError

    def run(self, labels: Tensor | None, inputs: EncoderInputs) -> NextSentencePredictorOutput:
        """See _WithLabels.run."""
        encoding = self.encode(inputs, FIRST_COLUMN)
        logits = self.classify(encoding)
        count = counted(inputs.options)
        loss = None if labels is None else token_loss(logits, labels, **count)
        return finish(NextSentencePredictorOutput(loss, logits), encoding)


class ForMultipleChoice(_WithLabels[MultipleChoiceModelOutput]):
    """A head that chooses one of several texts.

    All inputs of forward have one dimension more, (batch, choices, ...). It takes `labels` of shape
    (batch,), the right choices, and returns a MultipleChoiceModelOutput.

    Attributes:
        reads_first_column: whether the head reads column 0 of every text.
    """

    pooled = True
    reads_first_column = True

    def build_head(self, config: Any) -> None:
        """See HeadModel.build_head."""
        self.classifier = Linear(config.hidden_size, 1)
        self.add_dropout()

    def classify(self, encoding: Encoding) -> Tensor:
        """Score every choice: (batch * choices, 1)."""
        return project(self.classifier, self.dropped(self.pooled_text(encoding)), encoding.plan)

    def run(self, labels: Tensor | None, inputs: EncoderInputs) -> MultipleChoiceModelOutput:
        """See _WithLabels.run."""
        given = inputs.inputs_embeds if inputs.input_ids is None else inputs.input_ids
        if given is None or given.dim() < 3:
            raise ValueError("Multiple choice takes inputs of shape (batch, choices, length).")
        choices = given.shape[1]
        wanted = FIRST_COLUMN if self.reads_first_column else PACKED
        encoding = self.encode(inputs.flattened(), wanted)
        logits = self.classify(encoding).reshape(-1, choices)
        count = counted(inputs.options)
        loss = None if labels is None else token_loss(logits, labels, **count)
        return finish(MultipleChoiceModelOutput(loss, logits), encoding)


class ForTokenClassification(_WithLabels[TokenClassifierOutput]):
    """A head that gives every token a label.

    forward takes `labels` of shape (batch, length), -100 where there is none, and returns a
    TokenClassifierOutput.
    """

    accepts_loss_kwargs = True
    loss_type = "ForTokenClassification"

    def build_head(self, config: Any) -> None:
        """See HeadModel.build_head."""
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self.add_dropout()

    def classify(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        """Score hidden states: (tokens, hidden) to (tokens, num_labels), or over the grid."""
        return project(self.classifier, self.dropped(hidden), encoding.plan)

    def run(self, labels: Tensor | None, inputs: EncoderInputs) -> TokenClassifierOutput:
        """See _WithLabels.run."""
        grid = self.looks_around("classifier")
        keep = grid or labelled_padding(labels, self.removed(inputs))
        encoding = self.encode(inputs, Wanted(keep_padding=keep))
        if grid:
            logits = self.classify(encoding.padded(), encoding)
        else:
            logits = encoding.batch.pad(self.classify(encoding.packed, encoding))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, config=self.config, **counted(inputs.options)
            )
        return finish(TokenClassifierOutput(loss, logits), encoding)


class ForQuestionAnswering(HeadModel):
    """A head that finds the answer to a question in a text."""

    loss_type = "ForQuestionAnswering"

    def build_head(self, config: Any) -> None:
        """See HeadModel.build_head."""
        self.qa_outputs: Any = Linear(config.hidden_size, config.num_labels)

    def classify(self, hidden: Tensor, encoding: Encoding) -> Tensor:
        """Score hidden states: (tokens, hidden) to (tokens, 2)."""
        return project(self.qa_outputs, hidden, encoding.plan)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Unpack[Options],
    ) -> QuestionAnsweringModelOutput:
        """Score every token as the first and as the last of the answer.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: (batch, length), zero for padding, or a wider mask.
            token_type_ids: int64 (batch, length) or (1, length).
            position_ids: int64 (batch, length) or (1, length).
            inputs_embeds: (batch, length, embedding width), in place of input_ids.
            start_positions: int64 (batch,), the true first tokens; those beyond the input are
                ignored.
            end_positions: int64 (batch,), the true last tokens, likewise.
            **options: the keywords of `fastbert.modeling.encoding.Options`.

        Returns:
            QuestionAnsweringModelOutput, or its tuple with return_dict=False. Where a token was
            removed, the logits are the lowest finite value, so that no answer can stand there.
        """
        inputs = EncoderInputs(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            options=options,
        )
        return self.run(start_positions, end_positions, inputs)

    def check_labels(self) -> None:
        """Raise ValueError for a configuration with another number of labels than two."""
        if self.config.num_labels != 2:
            raise ValueError(
                f"Question answering scores the two ends of an answer, so config.num_labels must "
                f"be 2; it is {self.config.num_labels}."
            )

    def run(
        self, first: Tensor | None, last: Tensor | None, inputs: EncoderInputs
    ) -> QuestionAnsweringModelOutput:
        """Compute the task; arguments are those of forward."""
        self.check_labels()
        # The softmax of the loss runs over all columns, so it needs the logits of padding too.
        given = first is not None and last is not None
        grid = self.looks_around("qa_outputs")
        encoding = self.encode(inputs, Wanted(keep_padding=given or grid))
        if grid:
            padded = self.classify(encoding.padded(), encoding)
        else:
            logits = self.classify(encoding.packed, encoding)
            padded = encoding.batch.pad(logits, fill=torch.finfo(logits.dtype).min)
        starts, ends = padded[..., 0].contiguous(), padded[..., 1].contiguous()
        loss = None
        if first is not None and last is not None:
            loss = self.loss_function(
                start_logits=starts,
                end_logits=ends,
                start_positions=first,
                end_positions=last,
                **counted(inputs.options),
            )
        return finish(QuestionAnsweringModelOutput(loss, starts, ends), encoding)
