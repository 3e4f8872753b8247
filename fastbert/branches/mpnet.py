"""MPNet's modules, with the names, arguments and results of transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastbert.branches.bert import (
    BertEmbeddings,
    BertIntermediate,
    BertOutput,
    BertPooler,
    Branch,
    DroppingByModule,
)
from fastbert.layers.bucket_bias import bucket_bias
from fastbert.layers.calling import call, hidden_of, tell
from fastbert.layers.recomputing import recomputable
from fastbert.modeling.counted_positions import positions_of_columns, positions_of_ids
from fastbert.modeling.module_table import ModuleTable
from fastbert.modeling.parameter_names import EncoderShape
from fastbert.outputs import BaseModelOutput
from fastbert.runtime.packing import PackedBatch

# Of every published model, whatever its configuration calls padding.
PADDING = 1


class MPNetEmbeddings(BertEmbeddings):
    """Words and positions, LayerNorm, dropout."""

    def positions(self, input_ids: Tensor | None, inputs_embeds: Tensor, past: int) -> Tensor:
        """Return the positions of tokens, (batch, length)."""
        if input_ids is None:
            return positions_of_columns(inputs_embeds, PADDING)
        return positions_of_ids(input_ids, PADDING)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Embed tokens: (batch, length) to (batch, length, hidden)."""
        return super().forward(input_ids, None, position_ids, inputs_embeds)


class MPNetSelfAttention(DroppingByModule):
    """Self-attention with the projection of its result."""

    q: Any
    k: Any
    v: Any
    o: Any

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        head_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        """Attend among hidden states (batch, length, hidden).

        Returns:
            Hidden states, and the weights if wanted.
        """
        q, k, v = (self.heads(part(hidden_states)) for part in (self.q, self.k, self.v))
        if position_bias is not None:
            attention_mask = (
                position_bias if attention_mask is None else position_bias + attention_mask
            )
        context, weights = self.attend(q, k, v, attention_mask, head_mask)
        hidden = self.o(context)
        return (hidden, weights) if output_attentions else (hidden,)


class MPNetAttention(Branch):
    """Attention with what follows it."""

    attn: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Attend, add and normalise; return hidden states, and the weights if wanted."""
        following = {"attention_mask": attention_mask, "position_bias": position_bias}
        wanted = output_attentions or None
        answer = call(self.attn, hidden_states, following, output_attentions=wanted, **kwargs)
        rest = tuple(answer[1:]) if isinstance(answer, tuple) else ()
        tell(rest[0] if rest else None, False)
        return (self.LayerNorm(self.dropout(hidden_of(answer)) + hidden_states), *rest)


class MPNetLayer(Branch):
    """One layer."""

    attention: Any
    intermediate: Any
    output: Any

    @recomputable
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Compute the layer on hidden states (batch, length, hidden)."""
        following = {"attention_mask": attention_mask, "position_bias": position_bias}
        wanted = output_attentions or None
        answer = call(self.attention, hidden_states, following, output_attentions=wanted, **kwargs)
        rest = tuple(answer[1:]) if isinstance(answer, tuple) else ()
        attended = hidden_of(answer)
        inner = hidden_of(call(self.intermediate, attended))
        return (hidden_of(call(self.output, inner, {"input_tensor": attended})), *rest)


class MPNetEncoder(Branch):
    """All layers, one after the other, and the table of what distances add to the scores."""

    layer: Any
    relative_attention_bias: Any

    def compute_position_bias(self, x: Tensor) -> Tensor:
        """Return what distances add to the scores: (batch, heads, length, length)."""
        batch = PackedBatch.dense(x.shape[0], x.shape[1], x.device)
        bias = bucket_bias(self.relative_attention_bias, batch)
        return bias.expand(x.shape[0], -1, -1, -1)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Compute all layers; head_mask, if given, has one entry a layer."""
        head_mask = kwargs.pop("head_mask", None)
        bias = self.compute_position_bias(hidden_states)
        states: list[Tensor] = [hidden_states]
        weights: list[Tensor] = []
        for index, layer in enumerate(self.layer):
            answer = call(
                layer,
                hidden_states,
                {"attention_mask": attention_mask, "position_bias": bias},
                output_attentions=output_attentions or None,
                head_mask=None if head_mask is None else head_mask[index],
                **kwargs,
            )
            hidden_states = hidden_of(answer)
            states.append(hidden_states)
            if output_attentions and isinstance(answer, tuple):
                weights += answer[1:2]
        output = BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


_INSIDE = "encoder.layer.N"
MPNET_MODULES = ModuleTable(
    {
        "embeddings": MPNetEmbeddings,
        "encoder": MPNetEncoder,
        _INSIDE: MPNetLayer,
        f"{_INSIDE}.attention": MPNetAttention,
        f"{_INSIDE}.attention.attn": MPNetSelfAttention,
        f"{_INSIDE}.intermediate": BertIntermediate,
        f"{_INSIDE}.output": BertOutput,
        "pooler": BertPooler,
    },
    {
        "embeddings": "embeddings",
        "encoder": "encoder",
        _INSIDE: "layer",
        "pooler": "pooler",
    },
)
