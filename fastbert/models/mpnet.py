"""MPNet (Song et al. 2020, arXiv:2004.09297): BERT with RoBERTa's positions and relative ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from torch import Tensor

from fastbert.branches.first_token import FirstTokenClassification
from fastbert.branches.heads import RobertaLMHead
from fastbert.branches.mpnet import MPNET_MODULES, PADDING
from fastbert.layers.bucket_bias import BUCKETS
from fastbert.layers.called import LayerInputs
from fastbert.modeling import tasks
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.config import PreTrainedConfig
from fastbert.modeling.counted_positions import CountedPositions
from fastbert.modeling.encoding import EncoderInputs, UntypedOptions
from fastbert.modeling.parameter_names import AttentionNames, EncoderShape, ParameterNames
from fastbert.modeling.vocabulary_head import NamedVocabularyHead, VocabularyNames
from fastbert.outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
)


class MPNetConfig(PreTrainedConfig):
    """Configuration of MPNet; the defaults are those of mpnet-base.

    Attributes:
        hidden_act: "gelu" (the exact erf form), "gelu_new", "relu", ...
        max_position_embeddings: rows of the table of positions, so that a text has at most
            max_position_embeddings - 2 tokens.
        relative_attention_num_buckets: rows of the table of what distances add to the scores; the
            first 32 are used.
    """

    model_type = "mpnet"

    vocab_size: int = 30527
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    relative_attention_num_buckets: int = 32
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = True


class MPNetPreTrainedModel(PreTrainedModel):
    """Base of the MPNet models."""

    config_class = MPNetConfig
    base_model_prefix = "mpnet"


class MPNetModel(MPNetPreTrainedModel, CountedPositions):
    """The encoder without a head."""

    parameter_names = ParameterNames(
        token_type=None,
        attention=AttentionNames(
            query="encoder.layer.N.attention.attn.q",
            key="encoder.layer.N.attention.attn.k",
            value="encoder.layer.N.attention.attn.v",
            output="encoder.layer.N.attention.attn.o",
            norm="encoder.layer.N.attention.LayerNorm",
        ),
        cross_attention=None,
        position_bias="encoder.relative_attention_bias",
    )
    module_table = MPNET_MODULES
    output_class = BaseModelOutputWithPooling
    kept_in_tuple = ("pooler_output",)

    def padding_position(self) -> int:
        """Return 1, whatever the configuration calls padding."""
        return PADDING

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes.

        Raises:
            ValueError: for fewer buckets than distances have.
        """
        buckets = self.config.relative_attention_num_buckets
        if buckets < BUCKETS:
            raise ValueError(
                f"relative_attention_num_buckets is {buckets}, but MPNet sorts distances into "
                f"{BUCKETS} buckets; set it to that."
            )
        return replace(
            super().encoder_shape(),
            token_types=0,
            padding=PADDING,
            position_type="absolute",
            cross_attention=False,
            buckets=buckets,
        )

    def is_decoder(self) -> bool:
        """Return False: every token sees all others, whatever the configuration says."""
        return False

    def prune(self, heads_to_prune: dict[int, Sequence[int]]) -> None:
        """Refuse to remove heads.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "The heads of MPNet cannot be pruned: all layers share one table of what distances add "
            "to the scores of every head. Use head_mask."
        )

    def layer_arguments(self, hidden: Tensor, given: LayerInputs) -> dict[str, Any]:
        """Return what a layer gets by position behind hidden states."""
        bias = given.position_bias
        assert bias is not None
        whole = bias.expand(hidden.shape[0], -1, -1, -1)
        return {"attention_mask": given.mask, "position_bias": whole}

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **options: Unpack[UntypedOptions],
    ) -> Any:
        """Encode token ids as all encoders do, with MPNet's order of arguments."""
        options.pop("token_type_ids", None)
        return super().forward(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **options,
        )


class _MPNetHead(MPNetPreTrainedModel, tasks.HeadModel):
    encoder_class = MPNetModel

    def head_dropout(self) -> float:
        """Return the probability of dropout before a classifier, in training."""
        return float(self.config.hidden_dropout_prob)


def _inputs(
    ids: Tensor | None,
    mask: Tensor | None,
    positions: Tensor | None,
    embeds: Tensor | None,
    options: UntypedOptions,
) -> EncoderInputs:
    options.pop("token_type_ids", None)
    return EncoderInputs(ids, mask, None, positions, embeds, options=options)


class _WithLabels(_MPNetHead):
    """The forward of the tasks whose only argument of their own is `labels`."""

    run: Any

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Unpack[UntypedOptions],
    ) -> Any:
        """Compute the task as all models do, with MPNet's order of arguments."""
        inputs = _inputs(input_ids, attention_mask, position_ids, inputs_embeds, options)
        return self.run(labels, inputs)


class MPNetForMaskedLM(_MPNetHead, NamedVocabularyHead, tasks.ForMaskedLM):
    """Scores of the vocabulary at every token."""

    head_names = VocabularyNames(
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        decoder="lm_head.decoder",
        bias="lm_head.bias",
    )
    head_classes = {"lm_head": RobertaLMHead}
    _tied_weights_keys = {
        "lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def head_activation(self) -> str:
        """Return gelu: that of this head, whatever hidden_act says."""
        return "gelu"

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor | str = 0,
        **options: Unpack[UntypedOptions],
    ) -> MaskedLMOutput:
        """Predict masked tokens as all models do, with MPNet's order of arguments."""
        inputs = _inputs(input_ids, attention_mask, position_ids, inputs_embeds, options)
        return self.run(labels, inputs, logits_to_keep)


class MPNetForSequenceClassification(_WithLabels, FirstTokenClassification):  # type: ignore[misc]
    """A label for a whole text, from the first token through a layer of the head's own."""


class MPNetForMultipleChoice(_WithLabels, tasks.ForMultipleChoice):  # type: ignore[misc]
    """The best of several texts, from the pooler."""


class MPNetForTokenClassification(_WithLabels, tasks.ForTokenClassification):  # type: ignore[misc]
    """A label for every token."""


class MPNetForQuestionAnswering(_MPNetHead, tasks.ForQuestionAnswering):
    """Both ends of an answer."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Unpack[UntypedOptions],
    ) -> QuestionAnsweringModelOutput:
        """Find the ends of an answer as all models do, with MPNet's order of arguments."""
        inputs = _inputs(input_ids, attention_mask, position_ids, inputs_embeds, options)
        return self.run(start_positions, end_positions, inputs)
