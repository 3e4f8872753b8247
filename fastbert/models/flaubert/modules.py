"""FlauBERT's modules, with the names, arguments and results of transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.branches.bert import ActivationFunction
from fastbert.layers.parent import Parent
from fastbert.modeling.module_table import ModuleTable
from fastbert.modeling.parameter_names import EncoderShape


class MultiHeadAttention(Parent):
    """Self-attention with the projection of its result.

    Args:
        config: attention_dropout.
        shape: the sizes.
        layer: number of the layer.
    """

    settings: ClassVar[tuple[str, ...]] = ("head_dim", "dropout", "training")
    q_lin: Any
    k_lin: Any
    v_lin: Any
    out_lin: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__()
        self.layer_id = layer
        self.dim = shape.hidden
        self.n_heads = shape.heads
        self.head_dim = shape.head_dim
        self.dropout = config.attention_dropout

    def forward(
        self,
        input: Tensor,
        mask: Tensor,
        kv: Tensor | None = None,
        cache: Any = None,
        output_attentions: bool = False,
        head_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        """Attend from (batch, queries, dim), with a mask (batch, keys) or (batch, queries, keys).

        Returns:
            The hidden states, and the weights if wanted.
        """
        source = input if kv is None else kv
        q, k, v = (
            x.reshape(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for x in (self.q_lin(input), self.k_lin(source), self.v_lin(source))
        )
        if cache is not None:
            k, v = getattr(cache, "self_attention_cache", cache).update(k, v, self.layer_id)
        scores = (q / self.head_dim**0.5) @ k.transpose(2, 3)
        wide = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
        scores = scores.masked_fill(wide == 0, torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        if head_mask is not None:
            weights = weights * head_mask
        out: Tensor = self.out_lin((weights @ v).transpose(1, 2).flatten(2))
        return (out, weights) if output_attentions else (out,)


class TransformerFFN(Parent):
    """The feed-forward part.

    Args:
        config: dropout.
        shape: the sizes and the activation.
        layer: not used.
    """

    settings: ClassVar[tuple[str, ...]] = ("dropout", "act", "training")
    lin1: Any
    lin2: Any

    def __init__(self, config: Any, shape: EncoderShape, layer: int | None = None) -> None:
        super().__init__()
        self.dropout = config.dropout
        gelu = shape.activation == "gelu"
        self.act: Any = ActivationFunction("gelu") if gelu else F.relu
        self.chunk_size_feed_forward = getattr(config, "chunk_size_feed_forward", 0)
        self.seq_len_dim = 1

    def forward(self, input: Tensor) -> Tensor:
        """Compute dropout(lin2(act(lin1(input)))) on (batch, length, dim)."""
        chunk = self.chunk_size_feed_forward
        parts = torch.split(input, chunk, self.seq_len_dim) if chunk else (input,)
        return torch.cat([self.ff_chunk(part) for part in parts], self.seq_len_dim)

    def ff_chunk(self, input: Tensor) -> Tensor:
        """Compute some columns."""
        out: Tensor = self.lin2(self.act(self.lin1(input)))
        return F.dropout(out, self.dropout, self.training)


FLAUBERT_MODULES = ModuleTable(
    {"attentions.N": MultiHeadAttention, "ffns.N": TransformerFFN},
    {
        "embeddings": "embeddings",
        "position_embeddings": "embeddings",
        "lang_embeddings": "embeddings",
        "layer_norm_emb": "embeddings",
        "attentions.N": "layer",
        "layer_norm1.N": "layer",
        "ffns.N": "layer",
        "layer_norm2.N": "layer",
    },
)
