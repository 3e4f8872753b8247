"""The parts of Apertus, each of which can be called, hooked and replaced as in transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastbert.layers.activation import XIELU, NamedActivation
from fastbert.layers.cache_view import Cache, check_grown
from fastbert.layers.decoder_block import DecoderBlock
from fastbert.layers.grouped_attention import Attending, attend
from fastbert.layers.linear import Linear, plan_of_pass, project
from fastbert.layers.parent import Parent
from fastbert.layers.rms_norm import RMSNorm, add_norm, untouched
from fastbert.models.apertus.config import ApertusConfig, head_dim

PositionEmbeddings = tuple[Tensor, Tensor]


class ApertusMLP(Parent):
    """down_proj(act_fn(up_proj(x))), without biases."""

    def __init__(self, config: ApertusConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)
        named = config.hidden_act
        self.act_fn: nn.Module = XIELU() if named == "xielu" else NamedActivation(named)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the feed-forward part, (..., hidden) to (..., hidden)."""
        plan = plan_of_pass(x)
        return project(self.down_proj, self.act_fn(project(self.up_proj, x, plan)), plan)


class ApertusAttention(Parent):
    """Attention with normalised, rotated queries and keys, and grouped key/value heads.

    Args:
        config: sizes.
        layer_idx: number of the layer, under which it stands in a cache.
    """

    # What a snapshot of a model compares.
    settings = ("layer_idx", "head_dim", "scaling")

    def __init__(self, config: ApertusConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = head_dim(config)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or 1
        self.num_key_value_groups = heads // kv_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        bias, hidden = config.attention_bias, config.hidden_size
        self.q_proj = Linear(hidden, heads * self.head_dim, bias=bias)
        self.k_proj = Linear(hidden, kv_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(hidden, kv_heads * self.head_dim, bias=bias)
        self.o_proj = Linear(heads * self.head_dim, hidden, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: PositionEmbeddings | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        *,
        attending: Attending | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to all tokens that the mask and the cache show.

        Args:
            hidden_states: (batch, length, hidden), normalised.
            position_embeddings: cos and sin, (batch or 1, length, head_dim) each, as rotary_emb of
                the model gives them.
            attention_mask: as `fastbert.layers.masks.lay_out` takes it; None is causal.
            past_key_values: a cache, which is extended.
            attending: what the model's pass knows of the mask, in its place.
            output_attentions: whether to return the weights.

        Returns:
            (batch, length, hidden), and the weights (batch, heads, length, keys) or None.

        Raises:
            TypeError: without position_embeddings.
            ValueError: for a cache of another batch, or one that does not just append.
        """
        if position_embeddings is None:
            raise TypeError(
                "Attention needs position_embeddings, the cos and sin that the model's rotary_emb "
                "computes: rotary_emb(hidden_states, position_ids)."
            )
        plan = plan_of_pass(hidden_states)
        shape = hidden_states.shape[:-1]
        q, k, v = (
            self._heads(project(part, hidden_states, plan))
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self._positioned(q, k, position_embeddings)
        past = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
        if attending is None:
            attending = Attending.of_mask(attention_mask, hidden_states, past, self.is_causal)
            attending.weights = [] if output_attentions else None
        if past_key_values is not None:
            k, v = self._cached(k, v, past_key_values, past)
        width = q.shape[2] * self.head_dim
        context, weights = attend(
            q.flatten(0, 1),
            k.flatten(0, 1),
            v.flatten(0, 1),
            attending,
            self.scaling,
            self.attention_dropout if self.training else 0.0,
            plan,
        )
        return project(self.o_proj, context.reshape(*shape, width), plan), weights

    def _heads(self, projected: Tensor) -> Tensor:
        """Split (batch, length, width) into (batch, length, heads, head_dim)."""
        *shape, width = projected.shape
        return projected.reshape(*shape, width // self.head_dim, self.head_dim)

    def _positioned(
        self, q: Tensor, k: Tensor, rotation: PositionEmbeddings
    ) -> tuple[Tensor, Tensor]:
        """Normalise and rotate queries and keys, (batch, length, heads, head_dim) each."""
        q_norm, k_norm = self.q_norm, self.k_norm
        halves = getattr(rotation, "halves", None)
        alike = untouched(q_norm) and untouched(k_norm)
        if halves is None or not alike or q_norm.variance_epsilon != k_norm.variance_epsilon:
            return _rotated(q_norm(q.transpose(1, 2)), k_norm(k.transpose(1, 2)), rotation)
        cos, sin = (half.expand(*q.shape[:2], -1).flatten(0, 1) for half in halves)
        rows, keys = plan_of_pass(q).qk_norm_rope(
            q.flatten(0, 1),
            k.flatten(0, 1),
            q_norm.weight,
            k_norm.weight,
            q_norm.variance_epsilon,
            cos,
            sin,
        )
        return rows.reshape(q.shape), keys.reshape(k.shape)

    def _cached(self, k: Tensor, v: Tensor, store: Any, past: int) -> tuple[Tensor, Tensor]:
        """Append keys and values (batch, length, kv_heads, head_dim); return all of them."""
        cache = Cache(store)
        cache.check(k.transpose(1, 2), self.layer_idx)
        keys, values = cache.update(k.transpose(1, 2), v.transpose(1, 2), self.layer_idx)
        check_grown(keys, past + k.shape[1])
        return keys.transpose(1, 2), values.transpose(1, 2)


def _rotated(q: Tensor, k: Tensor, rotation: PositionEmbeddings) -> tuple[Tensor, Tensor]:
    """Rotate (batch, heads, length, head_dim) by whole cos and sin; heads go behind the length."""
    cos, sin = (part[:, None] for part in rotation)
    turned = []
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        turned.append(x * cos + torch.cat((-second, first), dim=-1) * sin)
    return turned[0].transpose(1, 2), turned[1].transpose(1, 2)


class ApertusDecoderLayer(Parent):
    """One layer: attention and feed-forward part, each behind a norm and around a residual.

    Args:
        config: sizes.
        layer_idx: number of the layer.
    """

    def __init__(self, config: ApertusConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = ApertusAttention(config, layer_idx)
        self.mlp = ApertusMLP(config)
        self.attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def block(self) -> DecoderBlock:
        """Return the layer's parameters, as an engine reads them."""
        attention, mlp = self.self_attn, self.mlp
        dim = attention.head_dim
        activation = mlp.act_fn
        assert isinstance(activation, (XIELU, NamedActivation))
        return DecoderBlock(
            self.attention_layernorm,
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.q_norm,
            attention.k_norm,
            attention.o_proj,
            self.feedforward_layernorm,
            mlp.up_proj,
            mlp.down_proj,
            activation,
            attention.q_proj.out_features // dim,
            attention.k_proj.out_features // dim,
            dim,
            attention.scaling,
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: PositionEmbeddings | None = None,
        *,
        attending: Attending | None = None,
        **options: Any,
    ) -> Tensor:
        """Compute the layer, (batch, length, hidden) to the same.

        Args:
            hidden_states: (batch, length, hidden).
            attention_mask: see ApertusAttention, as for all that follows.
            position_ids: handed on to a self_attn that someone else made.
            past_key_values: a cache, which is extended.
            use_cache: handed on likewise.
            position_embeddings: cos and sin.
            attending: what the model's pass knows of the mask.
            **options: handed on to self_attn.
        """
        attention = self.self_attn
        if attending is not None and takes_attending(attention, ApertusAttention):
            options["attending"] = attending
        elif attending is not None:
            attention_mask = attending.as_mask(hidden_states.dtype)
        attended, weights = attention(
            hidden_states=self.attention_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **options,
        )
        if attending is not None and attending.weights is not None and weights is not None:
            attending.weights.append(weights)
        plan = plan_of_pass(hidden_states)
        normed, total = add_norm(self.feedforward_layernorm, attended, hidden_states, plan)
        fed: Tensor = self.mlp(normed)
        return total + fed


def takes_attending(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a part computes as its class does, so that it knows what Attending is.

    Whatever someone else put there, in place of the part or of its forward, gets the arguments that
    transformers would give it.
    """
    return type(part).forward is kind.forward and "forward" not in vars(part)
