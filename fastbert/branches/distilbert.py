"""DistilBERT's modules, with the names, arguments and results of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbert.branches.bert import ActivationFunction, BertEmbeddings, BertSelfAttention, Branch
from fastbert.layers.calling import call, hidden_of, tell
from fastbert.layers.recomputing import recomputable
from fastbert.modeling.module_table import ModuleTable
from fastbert.modeling.parameter_names import EncoderShape
from fastbert.outputs import BaseModelOutput


class Embeddings(BertEmbeddings):
    """Words and positions, LayerNorm, dropout."""

    hidden_dropout = "dropout"

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Embed tokens: (batch, length) to (batch, length, dim)."""
        return super().forward(input_ids, None, position_ids, inputs_embeds)


class DistilBertSelfAttention(BertSelfAttention):
    """Self-attention with the projection of its result."""

    attention_dropout = "attention_dropout"
    q_lin: Any
    k_lin: Any
    v_lin: Any
    out_lin: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape, layer)
        self.n_heads, self.dim = shape.heads, shape.hidden

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend among hidden states (batch, length, dim); return those and the weights."""
        parts = (self.q_lin, self.k_lin, self.v_lin)
        q, k, v = (self.heads(part(hidden_states)) for part in parts)
        context, weights = self.attend(q, k, v, attention_mask, head_mask)
        return self.out_lin(context), weights


class FFN(Branch):
    """The feed-forward part, without its residual."""

    lin1: Any
    lin2: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.dropout = nn.Dropout(config.dropout)
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.seq_len_dim = 1
        self.activation = ActivationFunction(shape.activation)

    def forward(self, input: Tensor) -> Tensor:
        """Compute dropout(lin2(activation(lin1(input)))) on (batch, length, dim)."""
        chunk = self.chunk_size_feed_forward
        parts = torch.split(input, chunk, self.seq_len_dim) if chunk else (input,)
        return torch.cat([self.ff_chunk(part) for part in parts], self.seq_len_dim)

    def ff_chunk(self, input: Tensor) -> Tensor:
        """Compute some columns."""
        out: Tensor = self.dropout(self.lin2(self.activation(self.lin1(input))))
        return out


class TransformerBlock(Branch):
    """One layer."""

    attention: Any
    sa_layer_norm: Any
    ffn: Any
    output_layer_norm: Any

    @recomputable
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Compute the layer on hidden states (batch, length, dim)."""
        following = {"attention_mask": attention_mask}
        answer = call(self.attention, hidden_states, None, **following, **kwargs)
        if isinstance(answer, tuple) and len(answer) > 1:
            tell(answer[1], False)
        attended = self.sa_layer_norm(hidden_of(answer) + hidden_states)
        out: Tensor = self.output_layer_norm(hidden_of(call(self.ffn, attended)) + attended)
        return out


class Transformer(Branch):
    """All layers, one after the other."""

    layer: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Compute all layers; head_mask, if given, has one entry a layer."""
        kwargs.pop("return_dict", None)
        head_mask = kwargs.pop("head_mask", None)
        states = [hidden_states]
        for index, layer in enumerate(self.layer):
            answer = call(
                layer,
                hidden_states,
                {"attention_mask": attention_mask},
                head_mask=None if head_mask is None else head_mask[index],
                **kwargs,
            )
            hidden_states = hidden_of(answer)
            states.append(hidden_states)
        kept = tuple(states) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=kept)


DISTILBERT_MODULES = ModuleTable(
    {
        "embeddings": Embeddings,
        "transformer": Transformer,
        "transformer.layer.N": TransformerBlock,
        "transformer.layer.N.attention": DistilBertSelfAttention,
        "transformer.layer.N.ffn": FFN,
    },
    {
        "embeddings": "embeddings",
        "transformer": "encoder",
        "transformer.layer.N": "layer",
    },
)
