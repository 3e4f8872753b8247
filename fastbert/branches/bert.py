"""The modules of BERT and of the families that compute what it computes.

Names, arguments and results are those of transformers 5. Masks are floating and are added to the
scores: (batch, 1 or heads, queries, keys).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.layers.calling import call, hidden_of, tell
from fastbert.layers.methods import as_defined
from fastbert.layers.parent import Parent
from fastbert.layers.recomputing import recomputable
from fastbert.modeling.module_table import ModuleTable
from fastbert.modeling.parameter_names import EncoderShape
from fastbert.ops.activations import Activation, activate
from fastbert.outputs import BaseModelOutputWithPastAndCrossAttentions


@as_defined
class ActivationFunction(nn.Module):
    """An activation by its name.

    Attributes:
        kind: as in `fastbert.ops.activations`.
    """

    settings: ClassVar[tuple[str, ...]] = ("kind",)

    def __init__(self, kind: str | Activation) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return activate(x, self.kind)

    def extra_repr(self) -> str:
        """Name the activation."""
        return str(self.kind)


class Branch(Parent):
    """Base of the branches: its children are planted from outside, under checkpoints' names.

    Args:
        config: the model's configuration.
        shape: its sizes.
        layer: number of the layer; None outside of layers.

    Class attributes:
        settings: attributes that decide what is computed and that kernels do not ask for.
        hidden_dropout: name of the probability for hidden states in the configuration.
        attention_dropout: the same for attention weights.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    hidden_dropout: ClassVar[str] = "hidden_dropout_prob"
    attention_dropout: ClassVar[str] = "attention_probs_dropout_prob"
    # The children, whatever stands there.
    dense: Any
    LayerNorm: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__()
        self.config = config


class BertEmbeddings(Branch):
    """Sum of the tables, LayerNorm, dropout."""

    settings: ClassVar[tuple[str, ...]] = ("absolute",)
    word_embeddings: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.absolute = shape.position_type == "absolute"
        self.padding_idx = shape.padding
        self.dropout = nn.Dropout(getattr(config, self.hidden_dropout))

    def positions(self, input_ids: Tensor | None, inputs_embeds: Tensor, past: int) -> Tensor:
        """Return the positions of tokens, broadcastable to (batch, length)."""
        length = inputs_embeds.shape[1]
        return torch.arange(past, past + length, device=inputs_embeds.device)[None]

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
    ) -> Tensor:
        """Embed tokens: (batch, length) to (batch, length, width)."""
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        hidden: Tensor = inputs_embeds
        token_type = getattr(self, "token_type_embeddings", None)
        if token_type is not None:
            if token_type_ids is None:
                shape = hidden.shape[:2]
                token_type_ids = torch.zeros(shape, dtype=torch.long, device=hidden.device)
            hidden = hidden + token_type(token_type_ids)
        position = getattr(self, "position_embeddings", None)
        if position is not None and self.absolute:
            if position_ids is None:
                position_ids = self.positions(input_ids, inputs_embeds, past_key_values_length)
            hidden = hidden + position(position_ids)
        out: Tensor = self.dropout(self.LayerNorm(hidden))
        return out


class BertSelfAttention(Branch):
    """Self-attention without the projection of its result."""

    settings = ("attention_head_size", "scaling", "training")
    query: Any
    key: Any
    value: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.num_attention_heads = shape.heads
        self.attention_head_size = shape.head_dim
        self.all_head_size = shape.hidden
        self.scaling = shape.head_dim**-0.5
        self.position_embedding_type = shape.position_type
        self.is_decoder = bool(getattr(config, "is_decoder", False))
        self.layer_idx = layer
        self.dropout = nn.Dropout(getattr(config, self.attention_dropout))

    def heads(self, x: Tensor) -> Tensor:
        """Turn (batch, length, width) into (batch, heads, length, head size)."""
        return x.reshape(*x.shape[:-1], -1, self.attention_head_size).transpose(1, 2)

    def dropped(self, weights: Tensor) -> Tensor:
        """Drop attention weights, in training."""
        return F.dropout(weights, self.dropout.p) if self.training else weights

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the context (batch, queries, width) and the weights."""
        scores = q @ k.transpose(2, 3)
        if self.position_embedding_type != "absolute":
            scores = scores + self._distances(q, k)
        scores = scores * self.scaling
        if mask is not None:
            scores = scores + mask
        weights = self.dropped(scores.softmax(dim=-1))
        if head_mask is not None:
            weights = weights * head_mask
        return (weights @ v).transpose(1, 2).flatten(2), weights

    def _distances(self, q: Tensor, k: Tensor) -> Tensor:
        """Score relative positions (Shaw 2018; with keys: Huang 2020, method 4)."""
        table: Any = self.distance_embedding
        queries, keys = q.shape[2], k.shape[2]
        first = (table.num_embeddings + 1) // 2 - 1
        rows = torch.arange(keys - queries, keys, device=q.device)[:, None]
        embedded = table(rows - torch.arange(keys, device=q.device) + first).to(q.dtype)
        scores = torch.einsum("bhld,lrd->bhlr", q, embedded)
        if self.position_embedding_type == "relative_key_query":
            scores = scores + torch.einsum("bhrd,lrd->bhlr", k, embedded)
        return scores

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        head_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend among hidden states (batch, length, hidden); return context and weights."""
        q, k, v = (self.heads(p(hidden_states)) for p in (self.query, self.key, self.value))
        if past_key_values is not None:
            store = getattr(past_key_values, "self_attention_cache", past_key_values)
            k, v = store.update(k, v, self.layer_idx)
        return self.attend(q, k, v, attention_mask, head_mask)


class BertCrossAttention(BertSelfAttention):
    """Attention to another encoder's hidden states."""

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape, layer)
        self.position_embedding_type = "absolute"

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        head_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend from hidden states to the encoder's; return context and weights."""
        q = self.heads(self.query(hidden_states))
        store = getattr(past_key_values, "cross_attention_cache", None)
        if store is not None and past_key_values.is_updated.get(self.layer_idx):
            k, v = store.layers[self.layer_idx].keys, store.layers[self.layer_idx].values
        else:
            k, v = (self.heads(p(encoder_hidden_states)) for p in (self.key, self.value))
            if store is not None:
                k, v = store.update(k, v, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True
        return self.attend(q, k, v, attention_mask, head_mask)


class DroppingByModule(BertSelfAttention):
    """Attention that calls its module of dropout, whatever that is; BERT's reads its `p` alone."""

    def dropped(self, weights: Tensor) -> Tensor:
        """Drop attention weights as `self.dropout` does."""
        out: Tensor = self.dropout(weights)
        return out


class _Output(Branch):
    """A projection, dropout, the residual and LayerNorm."""

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.dropout = nn.Dropout(getattr(config, self.hidden_dropout))

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Compute LayerNorm(dropout(dense(hidden_states)) + input_tensor)."""
        out: Tensor = self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)
        return out


class BertSelfOutput(_Output):
    """What stands behind attention."""


class BertOutput(_Output):
    """What stands behind the feed-forward part."""


class BertAttention(Branch):
    """Attention with what follows it.

    Class attributes:
        returns_weights: whether forward returns (hidden states, weights) or the former alone.
    """

    returns_weights: ClassVar[bool] = True
    is_cross_attention: ClassVar[bool] = False
    output: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attend, project, add and normalise."""
        cross = self.is_cross_attention
        answer = call(
            self.self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask if cross else attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        weights = answer[1] if isinstance(answer, tuple) and len(answer) > 1 else None
        tell(weights, cross)
        hidden = hidden_of(call(self.output, hidden_of(answer), {"input_tensor": hidden_states}))
        return (hidden, weights) if self.returns_weights else hidden


class BertAttentionAcross(BertAttention):
    """BertAttention to another encoder's hidden states."""

    is_cross_attention = True


class BertIntermediate(Branch):
    """The projection up, and the activation."""

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.intermediate_act_fn = ActivationFunction(shape.activation)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Compute activation(dense(hidden_states))."""
        out: Tensor = self.intermediate_act_fn(self.dense(hidden_states))
        return out


class BertLayer(Branch):
    """One layer.

    Class attributes:
        returns_tuple: whether forward returns a tuple that begins with the hidden states.
    """

    returns_tuple: ClassVar[bool] = False
    attention: Any
    crossattention: Any
    intermediate: Any
    output: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.chunk_size_feed_forward = getattr(config, "chunk_size_feed_forward", 0)
        self.seq_len_dim = 1
        self.is_decoder = bool(getattr(config, "is_decoder", False))
        self.add_cross_attention = shape.cross_attention

    @recomputable
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Compute the layer on hidden states (batch, length, hidden)."""
        following = {"attention_mask": attention_mask}
        answer = call(
            self.attention, hidden_states, following, past_key_values=past_key_values, **kwargs
        )
        hidden, rest = hidden_of(answer), _rest(answer)
        if self.is_decoder and encoder_hidden_states is not None:
            if not hasattr(self, "crossattention"):
                raise ValueError(
                    "encoder_hidden_states were given, but this layer has no cross-attention; "
                    "build the model with is_decoder=True and add_cross_attention=True."
                )
            following = {
                "attention_mask": None,
                "encoder_hidden_states": encoder_hidden_states,
                "encoder_attention_mask": encoder_attention_mask,
            }
            crossed = call(
                self.crossattention, hidden, following, past_key_values=past_key_values, **kwargs
            )
            hidden, rest = hidden_of(crossed), rest + _rest(crossed)
        chunk = self.chunk_size_feed_forward
        parts = torch.split(hidden, chunk, self.seq_len_dim) if chunk else (hidden,)
        done = [self.feed_forward_chunk(part) for part in parts]
        hidden = done[0] if len(done) == 1 else torch.cat(done, self.seq_len_dim)
        return (hidden, *rest) if self.returns_tuple else hidden

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        """Compute the feed-forward part of some columns."""
        inner = hidden_of(call(self.intermediate, attention_output))
        return hidden_of(call(self.output, inner, {"input_tensor": attention_output}))


def _rest(answer: Any) -> tuple[Any, ...]:
    return tuple(answer[1:]) if isinstance(answer, tuple) else ()


class BertEncoder(Branch):
    """All layers, one after the other."""

    layer: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Compute all layers; head_mask, if given, has one entry a layer."""
        kwargs.pop("return_dict", None)
        head_mask = kwargs.pop("head_mask", None)
        mapping = getattr(self, "embedding_hidden_mapping_in", None)
        if mapping is not None:
            hidden_states = mapping(hidden_states)
        states = [hidden_states]
        for index, layer in enumerate(self.layer):
            following = {
                "attention_mask": attention_mask,
                "encoder_hidden_states": encoder_hidden_states,
            }
            answer = call(
                layer,
                hidden_states,
                following,
                encoder_attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                head_mask=None if head_mask is None else head_mask[index],
                **kwargs,
            )
            hidden_states = hidden_of(answer)
            states.append(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class BertPooler(Branch):
    """tanh(dense(column 0))."""

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__(config, shape)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pool (batch, length, hidden) to (batch, hidden)."""
        out: Tensor = self.activation(self.dense(hidden_states[:, 0]))
        return out


def bert_modules(
    embeddings: type[BertEmbeddings] = BertEmbeddings,
    layer: type[BertLayer] = BertLayer,
    attention: type[BertAttention] = BertAttention,
    self_attention: type[BertSelfAttention] = BertSelfAttention,
    across: type[BertAttention] = BertAttentionAcross,
    cross_attention: type[BertSelfAttention] = BertCrossAttention,
    encoder: type[BertEncoder] = BertEncoder,
) -> ModuleTable:
    """Return the modules of a family whose paths are BERT's, with classes of its own."""
    inside = "encoder.layer.N"
    return ModuleTable(
        {
            "embeddings": embeddings,
            "encoder": encoder,
            inside: layer,
            f"{inside}.attention": attention,
            f"{inside}.attention.self": self_attention,
            f"{inside}.attention.output": BertSelfOutput,
            f"{inside}.crossattention": across,
            f"{inside}.crossattention.self": cross_attention,
            f"{inside}.crossattention.output": BertSelfOutput,
            f"{inside}.intermediate": BertIntermediate,
            f"{inside}.output": BertOutput,
            "pooler": BertPooler,
        },
        {
            "embeddings": "embeddings",
            "encoder": "encoder",
            inside: "layer",
            "pooler": "pooler",
        },
    )
