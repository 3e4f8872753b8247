"""What all encoders do around their layers, whatever their parameters are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.backend import Plan
from fastbert.cache import Cache
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables, embed
from fastbert.layers.encoder import CrossInput, Encoded, Pass, encode
from fastbert.layers.masks import Layout
from fastbert.models import pruning
from fastbert.models.base import PreTrainedModel
from fastbert.models.encoding import Encoding
from fastbert.packing import PackedBatch
from fastbert.prepared import Preparation


@dataclass(frozen=True)
class Request:
    """The arguments of a forward that are alike in all families, settled with the configuration."""

    plan: Plan
    attentions: bool
    hidden_states: bool
    return_dict: bool
    head_mask: Tensor | None
    differentiable: bool
    chunks: int


class EncoderModel(PreTrainedModel):
    """An encoder without a head. A family gives blocks(), tables() and encode()."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.preparation = Preparation()

    def tables(self) -> EmbeddingTables:
        """The embedding tables."""
        raise NotImplementedError

    def encode(self, *args: Any, **kwargs: Any) -> Encoding:
        """Embeddings and all layers, from the arguments of forward."""
        raise NotImplementedError

    def dropouts(self) -> tuple[float, float, float]:
        """Probabilities for hidden states, attention weights and whole layers, in training."""
        config = self.config
        return config.hidden_dropout_prob, config.attention_probs_dropout_prob, 0.0

    def prune(self, heads_to_prune: dict[int, Sequence[int]]) -> None:
        """Remove attention heads; see PreTrainedModel.prune_heads."""
        pruning.prune_heads(self, heads_to_prune)

    def prune_as_configured(self) -> None:
        """Remove the heads that a saved configuration says were removed."""
        pruned = {int(k): v for k, v in (getattr(self.config, "pruned_heads", None) or {}).items()}
        if pruned:
            self.config.pruned_heads = {}
            pruning.prune_heads(self, pruned)

    def grid(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int]:
        """(batch, length) of the input.

        Raises:
            ValueError: when both or neither of the two are given, or a shape is wrong.
            TypeError: for what is no tensor, or has the wrong kind of values.
            NotImplementedError: under torch.jit.trace.
        """
        if torch.jit.is_tracing():
            raise NotImplementedError(
                "torch.jit.trace would record which tokens of this one input are padding, and "
                "answer for all others as if theirs were the same; use torch.compile."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if input_ids is not None:
            source = _checked("input_ids", input_ids, "integers", "(batch, length)")
        else:
            source = _checked("inputs_embeds", inputs_embeds, "floating", "(batch, length, width)")
        return source.shape[0], source.shape[1]

    def longest(self) -> int:
        """Number of tokens that the position table has room for."""
        return int(self.config.max_position_embeddings)

    def check_positions(self, positions: Tensor | None, columns: int) -> None:
        """Refuse texts beyond the model's positions.

        Padding may make a grid wider than any text; only then are the positions looked at.

        Args:
            positions: packed, of the tokens that are computed; None where there is no table of
                positions, so that columns count.
            columns: width of the grid, what the cache holds included.

        Raises:
            ValueError: saying how many tokens there are and how many fit.
        """
        longest = self.longest()
        if columns <= longest:
            return
        first = int(self.config.max_position_embeddings) - longest
        if positions is not None:
            columns = int(positions.max()) + 1 - first if positions.numel() else 0
        if columns > longest:
            raise ValueError(
                f"The input is {columns} tokens long, but this {type(self).__name__} has positions "
                f"for {longest}; truncate it (truncation=True, max_length={longest} in the "
                "tokenizer)."
            )

    def positions_from_mask(self, mask: Tensor) -> Tensor:
        """Positions (batch, length) of real tokens, counted by a mask with padding on the left."""
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)

    def request(
        self, shape: tuple[int, int], options: dict[str, Any], *inputs: Tensor | None
    ) -> Request:
        """Settle the common options, and choose the plan.

        Args:
            inputs: floating inputs, which may ask for gradients themselves.

        Raises:
            TypeError: for an option that does not exist.
            ValueError: for a feed-forward chunk size that does not divide the length.
        """
        config, options = self.config, dict(options)
        attentions = options.pop("output_attentions", None)
        states = options.pop("output_hidden_states", None)
        return_dict = options.pop("return_dict", None)
        head_mask = options.pop("head_mask", None)
        options.pop("cache_position", None)
        if options:
            raise TypeError(
                f"The forward of this {type(self).__name__} has no argument "
                f"{', '.join(repr(name) for name in sorted(options))}."
            )
        chunk = config.chunk_size_feed_forward or 0
        if chunk and shape[1] % chunk:
            raise ValueError(
                f"The length {shape[1]} must be a multiple of chunk_size_feed_forward ({chunk})."
            )
        grad = torch.is_grad_enabled() and (
            any(x is not None and x.requires_grad for x in inputs)
            or any(parameter.requires_grad for parameter in self.parameters())
        )
        return Request(
            self.plan(needs_grad=grad),
            bool(config.output_attentions if attentions is None else attentions),
            bool(config.output_hidden_states if states is None else states),
            bool(config.return_dict if return_dict is None else return_dict),
            _head_mask(head_mask, self.config.num_hidden_layers, self.dtype),
            grad,
            shape[1] // chunk if chunk else 1,
        )

    def packed(self, batch: PackedBatch, indices: Tensor | None) -> Tensor | None:
        """Indices broadcastable to (batch, length) as packed int64."""
        if indices is None:
            return None
        shape = (batch.batch_size, batch.seqlen)
        try:
            wide = indices.to(self.device, torch.long).expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"A tensor of indices must have shape {shape}, but has {tuple(indices.shape)}."
            ) from error
        return batch.pack(wide)

    def run(
        self,
        tables: EmbeddingTables,
        rows: EmbeddingInput,
        layout: Layout,
        request: Request,
        *,
        cache: Cache | None = None,
        cross: CrossInput | None = None,
        row_scale: Tensor | None = None,
    ) -> Encoded:
        """Embeddings, their dropout and projection, and all layers."""
        hidden_dropout, attention_dropout, layer_dropout = (
            self.dropouts() if self.training else (0.0, 0.0, 0.0)
        )
        plan = request.plan
        hidden = embed(tables, rows, plan)
        if hidden_dropout > 0.0:
            hidden = F.dropout(hidden, hidden_dropout, training=True)
        if tables.projection is not None:
            hidden = tables.projection(hidden, plan)
        if row_scale is not None:
            hidden = hidden * row_scale
        recompute = (
            self._recompute_options if self.gradient_checkpointing and self.training else None
        )
        return encode(
            self.blocks(),
            hidden,
            layout.batch,
            plan,
            Pass(
                keys=layout.keys,
                causal=layout.causal,
                bias=layout.bias,
                head_mask=request.head_mask,
                cross=cross,
                cache=cache,
                attentions=request.attentions,
                hidden_states=request.hidden_states,
                hidden_dropout=hidden_dropout,
                attention_dropout=attention_dropout,
                layer_dropout=layer_dropout,
                chunks=request.chunks,
                row_scale=row_scale,
                recompute=recompute,
                differentiable=request.differentiable,
            ),
            self.preparation,
        )

    def encoding(
        self, encoded: Encoded, batch: PackedBatch, request: Request, cache: Any
    ) -> Encoding:
        """What the heads take."""
        return Encoding(
            encoded.rows,
            batch,
            request.plan,
            request.return_dict,
            cache,
            encoded.hidden_states,
            encoded.attentions,
            encoded.cross_attentions,
        )


def _checked(name: str, source: Any, kind: str, shape: str) -> Tensor:
    """`source` itself, if it is a tensor of this kind and as many dimensions."""
    if not isinstance(source, Tensor):
        raise TypeError(f"{name} must be a torch tensor, not a {type(source).__name__}.")
    if source.is_floating_point() != (kind == "floating"):
        raise TypeError(f"{name} must be {kind}, but the tensor holds {source.dtype}.")
    dimensions = shape.count(",") + 1
    if source.dim() != dimensions:
        raise ValueError(
            f"{name} {shape} has {dimensions} dimensions, but the shape {tuple(source.shape)} was "
            "given."
        )
    return source


def _head_mask(mask: Tensor | None, layers: int, dtype: torch.dtype) -> Tensor | None:
    """(heads,) or (layers, heads) -> (layers, 1, heads, 1, 1)."""
    if mask is None:
        return None
    if mask.dim() == 1:
        mask = mask[None].expand(layers, -1)
    if mask.dim() == 2:
        mask = mask[:, None, :, None, None]
    if mask.dim() != 5 or mask.shape[0] != layers:
        raise ValueError(
            f"head_mask must have shape (heads,) or (layers, heads) with {layers} layers, but has "
            f"{tuple(mask.shape)}."
        )
    return mask.to(dtype)
