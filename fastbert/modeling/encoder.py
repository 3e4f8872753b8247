"""What all encoders do around their layers, whatever their parameters are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.engine.encoder_cache import EncoderCache, ModelSnapshot, retrying
from fastbert.engine.gpu_encoder import GpuEncoder
from fastbert.engine.recompute import recomputed
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables, check_input, embed
from fastbert.layers.encoder import CrossInput, Encoded, ForwardOptions, encode
from fastbert.layers.kv_cache import Cache
from fastbert.layers.linear import Linear, project
from fastbert.layers.masks import Layout
from fastbert.modeling import pruning
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoding import Encoding
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan


@dataclass(frozen=True)
class ForwardContext:
    """The arguments of a forward that are alike in all families, settled with the configuration."""

    plan: Plan
    view: ModelSnapshot
    attentions: bool
    hidden_states: bool
    return_dict: bool
    head_mask: Tensor | None
    differentiable: bool
    chunks: int


class EncoderModel(PreTrainedModel):
    """An encoder without a head. A family gives blocks(), tables() and compute()."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder_cache = EncoderCache()

    def tables(self) -> EmbeddingTables:
        """The embedding tables."""
        raise NotImplementedError

    def pooling(self) -> Linear | None:
        """The projection of column 0 that a tanh follows, in encoders that have a pooler."""
        return None

    def encode(self, *args: Any, **kwargs: Any) -> Encoding:
        """Embeddings and all layers.

        Args: as of the model's forward, and
            first_column: column 0 of every row must be computed, even where it is masked; it is
                pooled, where there is a pooler.
            keep_padding: masked tokens must be computed, only hidden as keys.
            padded: the padded hidden states are wanted, not the packed rows.
        """
        if torch.compiler.is_compiling():
            # Without gradients one native call does it all, and there is nothing to trace.
            grad = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
            return self.compute(*args, **kwargs) if grad else _untraced(self, args, kwargs)
        return retrying(self, self.compute, *args, **kwargs)

    def compute(self, *args: Any, **kwargs: Any) -> Encoding:
        """What encode() does, on a view of the model that may turn out to be stale."""
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

    def check_positions(self, positions: Tensor | None, batch: PackedBatch, columns: int) -> None:
        """Refuse texts beyond the model's positions.

        Padding may make a grid wider than any text; only then are the positions looked at.

        Args:
            positions: (batch, length); None where there is no table of positions, so that columns
                count.
            batch: the tokens that are computed.
            columns: width of the grid, what the cache holds included.

        Raises:
            ValueError: saying how many tokens there are and how many fit.
        """
        longest = self.longest()
        if columns <= longest:
            return
        first = int(self.config.max_position_embeddings) - longest
        if positions is not None:
            positions = batch.pack(positions)
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
    ) -> ForwardContext:
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
        view, plan, grad = _settled(self, inputs)
        return ForwardContext(
            plan,
            view,
            bool(config.output_attentions if attentions is None else attentions),
            bool(config.output_hidden_states if states is None else states),
            bool(config.return_dict if return_dict is None else return_dict),
            _head_mask(head_mask, len(view.blocks), view.dtype),
            grad,
            shape[1] // chunk if chunk else 1,
        )

    def over_grid(
        self, shape: tuple[int, int], request: ForwardContext, indices: Tensor | None
    ) -> Tensor | None:
        """Indices broadcastable to (batch, length) as int64 (batch, length)."""
        if indices is None:
            return None
        device = request.view.device
        if indices.shape == shape and indices.dtype is torch.long and indices.device == device:
            return indices
        indices = indices.to(device, torch.long)
        try:
            return indices.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"A tensor of indices must have shape {shape}, but has {tuple(indices.shape)}."
            ) from error

    def run(
        self,
        rows: EmbeddingInput,
        layout: Layout,
        request: ForwardContext,
        *,
        cache: Cache | None = None,
        cross: CrossInput | None = None,
        row_scale: Tensor | None = None,
        padded: bool = False,
        pooled: bool = False,
    ) -> Encoded:
        """Embeddings, their dropout and projection, all layers, and, in the prepared encoder, the
        pooler.

        Raises:
            StaleModel: when the request's view of the model holds no more.
        """
        hidden_dropout, attention_dropout, layer_dropout = (
            self.dropouts() if self.training else (0.0, 0.0, 0.0)
        )
        recompute = (
            self._recompute_options if self.gradient_checkpointing and self.training else None
        )
        asked = ForwardOptions(
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
        )
        view, batch = request.view, layout.batch
        traced = torch.compiler.is_compiling()
        if asked.plain and not request.differentiable:
            done = self._prepared(rows, batch, request.view, request.plan, padded, pooled)
            if done is not None:
                return done
        if not traced and not view.holds():
            raise self.encoder_cache.stale(view)
        if asked.plain and request.differentiable and not (traced or self.training):
            done = self._recomputed(rows, batch, request, asked, padded, pooled)
            if done is not None:
                return done
        return self._layer_by_layer(rows, batch, request, asked)

    def _layer_by_layer(
        self,
        rows: EmbeddingInput,
        batch: PackedBatch,
        request: ForwardContext,
        asked: ForwardOptions,
    ) -> Encoded:
        """The pass op by op."""
        tables, plan = request.view.tables, request.plan
        hidden = embed(tables, rows.packed(batch), plan)
        if asked.hidden_dropout > 0.0:
            hidden = F.dropout(hidden, asked.hidden_dropout, training=True)
        if tables.projection is not None:
            hidden = project(tables.projection, hidden, plan)
        if asked.row_scale is not None:
            hidden = hidden * asked.row_scale
        return encode(request.view.blocks, hidden, batch, plan, asked)

    def _recomputed(
        self,
        rows: EmbeddingInput,
        batch: PackedBatch,
        request: ForwardContext,
        asked: ForwardOptions,
        padded: bool,
        pooled: bool,
    ) -> Encoded | None:
        """The pass as one native call whose gradients are computed layer by layer; None where there
        is no prepared encoder, or its weights have changed: packing them again for every step of a
        training loop would cost more than it gives."""
        view, plan = request.view, _plan(self, request.view, needs_grad=False)
        if view.device.type != "cpu" or not self.encoder_cache.ready(view, plan):
            return None
        pooled = pooled and self.encoder_cache.pools(view, plan)

        def compute() -> tuple[Tensor, ...]:
            done = self._prepared(rows, batch, view, plan, padded, pooled)
            if done is None:
                raise self.encoder_cache.stale(view)
            values = (done.grid if padded else done.rows, done.pooled)
            return tuple(value for value in values if value is not None)

        def again() -> tuple[Tensor, ...]:
            if list(map(id, self.parameters())) != list(map(id, view.parameters)):
                raise RuntimeError(
                    f"A weight of this {type(self).__name__} was replaced between its forward and "
                    "its backward pass, so that the gradients of the forward pass are lost."
                )
            values = self._layer_by_layer(rows, batch, request, asked).rows
            assert values is not None
            found = (batch.pad(values) if padded else values,)
            if not pooled:
                return found
            first = values.index_select(0, batch.first_token_rows())
            assert view.pooler is not None
            return (*found, project(view.pooler, first, request.plan, "tanh"))

        leaves = [*view.parameters, *([] if rows.embeds is None else [rows.embeds])]
        values = recomputed(compute, again, leaves)
        first = values[1] if pooled else None
        return (
            Encoded(None, grid=values[0], pooled=first)
            if padded
            else Encoded(values[0], pooled=first)
        )

    def _prepared(
        self,
        rows: EmbeddingInput,
        batch: PackedBatch,
        view: ModelSnapshot,
        plan: Plan,
        padded: bool,
        pooled: bool,
    ) -> Encoded | None:
        """The pass as one native call; None where there is no prepared encoder for it."""
        encoder = self.encoder_cache.encoder(view, plan)
        if encoder is None or torch.jit.is_tracing():
            return None
        hidden: Tensor | None = None
        if isinstance(encoder, GpuEncoder) or not encoder.embeds:
            hidden = embed(view.tables, rows.packed(batch), plan)
            if view.tables.projection is not None:
                hidden = project(view.tables.projection, hidden, plan)
            if isinstance(encoder, GpuEncoder):
                if not view.holds(contents=True):
                    raise self.encoder_cache.stale(view)
                return Encoded(encoder(hidden, batch))
        try:
            done = encoder.run(
                rows if hidden is None else hidden,
                batch,
                view.dtype if hidden is None else hidden.dtype,
                grid=padded,
                pooled=pooled and encoder.pooled is not None,
                watch=view.watch,
            )
        except IndexError:
            # In the caller's words rather than the table's.
            check_input(view.tables, rows.packed(batch))
            raise
        if done is None:
            raise self.encoder_cache.stale(view)
        if padded:
            return Encoded(None, grid=done.rows, pooled=done.pooled)
        return Encoded(done.rows, pooled=done.pooled)

    def encoding(
        self, encoded: Encoded, batch: PackedBatch, request: ForwardContext, cache: Any
    ) -> Encoding:
        """What the heads take."""
        return Encoding(
            batch,
            request.plan,
            request.return_dict,
            encoded.rows,
            encoded.grid,
            encoded.pooled,
            cache,
            encoded.hidden_states,
            encoded.attentions,
            encoded.cross_attentions,
        )


def _checked(name: str, source: Any, kind: str, shape: str) -> Tensor:
    """`source` itself, if it is a tensor of this kind and as many dimensions."""
    if not isinstance(source, Tensor):
        raise TypeError(f"{name} must be a torch tensor, not a {type(source).__name__}.")
    if source.is_floating_point() != (kind == "floating") or source.dtype is torch.bool:
        raise TypeError(f"{name} must be {kind}, but the tensor holds {source.dtype}.")
    dimensions = shape.count(",") + 1
    if source.dim() != dimensions:
        raise ValueError(
            f"{name} {shape} has {dimensions} dimensions, but the shape {tuple(source.shape)} was "
            "given."
        )
    return source


@torch.compiler.disable
def _untraced(model: EncoderModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Encoding:
    return retrying(model, model.compute, *args, **kwargs)


def _settled(
    model: EncoderModel, inputs: Sequence[Tensor | None]
) -> tuple[ModelSnapshot, Plan, bool]:
    """The view and plan of a pass, and whether gradients will flow."""
    if torch.compiler.is_compiling():
        return _settled_between_graphs(model, inputs)
    view = model.encoder_cache.view(model)
    grad = torch.is_grad_enabled() and (
        any(x is not None and x.requires_grad for x in inputs)
        or any(parameter.requires_grad for parameter in view.parameters)
    )
    return view, _plan(model, view, grad), grad


def _plan(model: EncoderModel, view: ModelSnapshot, needs_grad: bool) -> Plan:
    return view.plan(model.backend, model.strict, needs_grad, model.batch_invariant)


@torch.compiler.disable  # reads context variables and caches
def _settled_between_graphs(
    model: EncoderModel, inputs: Sequence[Tensor | None]
) -> tuple[ModelSnapshot, Plan, bool]:
    view = model.encoder_cache.view(model)
    if not view.holds():
        model.encoder_cache.stale(view)
    return _settled(model, inputs)


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
