"""What all encoders do around their layers, whatever their parameters are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastbert.engine.cpu_support import on_cpu
from fastbert.engine.encoder import PACKED, ForwardContext, Wanted
from fastbert.engine.encoder_cache import EncoderCache, ModelSnapshot, retrying
from fastbert.engine.reading import Reading
from fastbert.engine.recompute import recomputed_pass
from fastbert.layers.bucket_bias import DistanceBias
from fastbert.layers.cache_view import Cache
from fastbert.layers.called import CalledStack
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables
from fastbert.layers.encoder import CrossInput, EncoderOutput, ForwardOptions, Layers, encode_inputs
from fastbert.layers.linear import Linear, project, running_on
from fastbert.layers.masks import Layout
from fastbert.modeling import pruning
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoding import EncoderInputs, Encoding, Options, check_devices
from fastbert.ops.operands import NotPlain, transformed
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan, tell_of_torch
from fastbert.runtime.tracing import refuse_export, untraced

# Whether a head that calls its encoder through somebody's wrapper needs the tokens that are masked.
_keep_padding: ContextVar[bool] = ContextVar("keep padding", default=False)


def keeps_padding() -> bool:
    """Return whether masked tokens are computed too; the first thing that a forward asks."""
    if torch.compiler._is_exporting_flag:
        refuse_export()
    return _keep_padding.get()


@contextmanager
def keeping_padding(wanted: bool) -> Iterator[None]:
    """Have encoders that are called within the block compute masked tokens too, if wanted."""
    token = _keep_padding.set(wanted)
    try:
        yield
    finally:
        _keep_padding.reset(token)


@dataclass
class EncoderPass:
    """What a family makes of the arguments of a forward, beside what it looks up.

    Attributes:
        layout: which tokens are computed, and what they may see.
        past: number of tokens in the cache.
        cache: keys and values of earlier tokens, which the pass extends.
        cross: input of the cross-attention.
        row_scale: (total, 1), multiplies the hidden states after every layer.
        returned_cache: the cache object that the caller gets back.
    """

    layout: Layout
    past: int = 0
    cache: Cache | None = None
    cross: CrossInput | None = None
    row_scale: Tensor | None = None
    returned_cache: Any = None


class EncoderModel(PreTrainedModel):
    """An encoder without a head. A family gives blocks(), tables(), arrange() and look_up().

    Attributes:
        first_position: that of the first token of a text; rows before it are no token's.
    """

    first_position: int = 0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder_cache = EncoderCache()
        # As it was built: what a configuration says later changes no dropout, as in transformers.
        self._dropouts = (0.0, 0.0, 0.0)

    def _replicate_for_data_parallel(self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        # The one that it has so far speaks of the original's weights.
        replica.encoder_cache = EncoderCache()
        return replica

    def tables(self) -> EmbeddingTables:
        """Return the embedding tables."""
        raise NotImplementedError

    def torch_parts(self) -> list[str]:
        """Say, in clauses, what torch computes in every pass, whatever the Plan says."""
        return list(ModelSnapshot(self).torch_parts())

    def how_passes_run(self) -> str | None:
        """Say, for `explain`, why even a plain pass goes op by op; None where it is one call."""
        if on_cpu(self.device) or self.read().position_bias is None:
            return None
        return (
            "goes op by op: each layer's attention adds what distances say, for which the prepared "
            f"encoder of a {self.device.type} device has no room"
        )

    def beside(self) -> Sequence[nn.Module]:
        """Return modules that no pass calls, and whose changes make it read the model again."""
        return ()

    def watched(self) -> list[dict[Any, Any]]:
        """Return further dictionaries whose changes do so; values are compared by identity."""
        return []

    def read(self) -> Reading:
        """Read the parts that kernels compute, and say which are called as modules instead."""
        return Reading(list(self.blocks()), self.tables(), self.pooling())

    def arrange(
        self,
        inputs: EncoderInputs,
        shape: tuple[int, int],
        snapshot: ModelSnapshot,
        wanted: Wanted,
    ) -> EncoderPass:
        """Decide which tokens are computed, and what they attend to.

        Args:
            inputs: the arguments of the forward.
            shape: (batch, length) of the input.
            snapshot: the parts of the model that the pass uses.
            wanted: which tokens must be computed.

        Raises:
            ValueError: for arguments that do not fit together.
        """
        raise NotImplementedError

    def look_up(
        self,
        inputs: EncoderInputs,
        shape: tuple[int, int],
        given: EncoderPass,
        snapshot: ModelSnapshot,
    ) -> EmbeddingInput:
        """Complete the indices that the embedding tables are read with, over the padded grid.

        Args:
            inputs: the arguments of the forward.
            shape: (batch, length) of the input.
            given: what arrange() returned for it.
            snapshot: the parts of the model that the pass uses.

        Raises:
            ValueError: for indices of the wrong shape, or texts beyond the model's positions.
        """
        raise NotImplementedError

    def pooling(self) -> Linear | None:
        """Return the projection of column 0 that a tanh follows; None without a pooler."""
        return None

    def pool(self, encoding: Encoding) -> Tensor | None:
        """Compute tanh(dense(column 0)), (batch, pooler width); None without a pooler."""
        if encoding.output.pooled is not None:
            return encoding.output.pooled
        dense = self.pooling()
        if dense is None:
            return None
        pooled = project(dense, encoding.first_tokens(), encoding.plan, "tanh")
        # It may be trained alone, and a prepared encoder holds it too.
        if not torch.compiler.is_compiling():
            self.encoder_cache.gradients.follow(pooled)
        elif torch.is_grad_enabled():
            self.encoder_cache.gradients.traced = True
        return pooled

    def pooled(self, encoding: Encoding) -> Tensor:
        """Compute what a head over the pooler reads, (batch, pooler width).

        Raises:
            ValueError: for an encoder without a pooler.
        """
        pooled = encoding.output.pooled
        if pooled is None:
            pooled = self.pool(encoding)
        if pooled is None:
            raise ValueError(
                f"This head reads the pooler's output, but this {type(self).__name__} was built "
                "without one; build it with add_pooling_layer=True. A head of a family that has "
                "none sets pooled = False, and overrides build_head and classify."
            )
        return pooled

    def encode(self, inputs: EncoderInputs, wanted: Wanted = PACKED) -> Encoding:
        """Compute embeddings and all layers.

        Args:
            inputs: the arguments of a forward.
            wanted: which hidden states are read, and in which form.

        Returns:
            The hidden states, and everything needed to finish the output of a forward.

        Raises:
            TypeError: for an option that does not exist, or inputs of the wrong kind.
            ValueError: for inputs that do not fit together or exceed the model's positions.
            IndexError: for an id outside its table.
        """
        if torch.compiler._is_exporting_flag:
            refuse_export()
        if torch.compiler.is_compiling():
            # Without gradients one native call does it all, and there is nothing to trace.
            grad = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
            return self.compute(inputs, wanted) if grad else _untraced(self, inputs, wanted)
        return retrying(self, self.compute, inputs, wanted, self.encoder_cache.outdated)

    def compute(self, inputs: EncoderInputs, wanted: Wanted) -> Encoding:
        """Do what encode() does, on a snapshot of the model that may turn out to be stale.

        Raises:
            StaleModel: when the snapshot holds no more.
        """
        shape = self.grid(inputs.input_ids, inputs.inputs_embeds)
        options = inputs.options
        chunks = self._check_options(options, shape[1])
        context = _context(self, (inputs.inputs_embeds, inputs.encoder_hidden_states))
        snapshot = context.snapshot
        device = snapshot.device
        elsewhere = device.type == "meta"
        for tensor in vars(inputs).values():
            if isinstance(tensor, Tensor) and tensor.device != device:
                elsewhere = True
        if elsewhere:
            check_devices(inputs, device, context.plan, type(self).__name__)
        given = self.arrange(inputs, shape, snapshot, wanted)
        batch = given.layout.batch
        every = snapshot.on_grid and not wanted.keep_padding and batch.indices is not None
        if every:
            # Whatever is called may look at any token.
            given = self.arrange(inputs, shape, snapshot, replace(wanted, keep_padding=True))
        lookup = self.look_up(inputs, shape, given, snapshot)
        asked = self._forward_options(given, options, chunks, context)
        output = self._run(lookup, given.layout.batch, asked, wanted, context)
        if every:
            output = _without_padding(output, given.layout.batch, batch)
        return_dict = options.get("return_dict")
        if return_dict is None:
            return_dict = self.config.return_dict
        rest = {
            "hidden_states": output.hidden_states,
            "past_key_values": given.returned_cache,
            "attentions": output.attentions,
            "cross_attentions": output.cross_attentions,
        }
        return Encoding(batch, context.plan, return_dict, output, rest)

    def dropouts(self) -> tuple[float, float, float]:
        """Return the probabilities for hidden states, attention weights and whole layers."""
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
        """Return (batch, length) of the input.

        Raises:
            ValueError: when both or neither of the two are given, or a shape is wrong.
            TypeError: for what is no tensor, or has the wrong kind of values.
            NotImplementedError: under torch.jit.trace.
        """
        if torch._C._get_tracing_state() is not None:
            raise NotImplementedError(
                "torch.jit.trace would record which tokens of this one input are padding, and "
                "answer for all others as if theirs were the same; use torch.compile."
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if input_ids is not None:
            source = checked_input("input_ids", input_ids, "integers", "(batch, length)")
        else:
            source = checked_input(
                "inputs_embeds", inputs_embeds, "floating", "(batch, length, width)"
            )
        return source.shape[0], source.shape[1]

    def longest(self) -> int:
        """Return the number of tokens that the position table has room for."""
        return int(self.config.max_position_embeddings)

    def check_positions(
        self, positions: Tensor | None, batch: PackedBatch, columns: int, tables: EmbeddingTables
    ) -> None:
        """Refuse texts beyond the model's positions.

        Padding may make a grid wider than any text; only then are the positions looked at.

        Args:
            positions: (batch, length); None where there is no table of positions, so that columns
                count.
            batch: the tokens that are computed.
            columns: width of the grid, what the cache holds included.
            tables: that of positions says how many there are.

        Raises:
            ValueError: saying how many tokens there are and how many fit.
        """
        table, first = tables.position, self.first_position
        if table is not None and columns + first <= len(table.weight):
            return
        longest = self.longest()
        if columns <= longest:
            return
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
        """Count the positions (batch, length) of real tokens by a mask with padding on the left."""
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)

    def over_grid(
        self, shape: tuple[int, int], device: torch.device, indices: Tensor | None
    ) -> Tensor | None:
        """Expand indices that are broadcastable to (batch, length) to int64 of that shape."""
        if indices is None:
            return None
        if indices.shape == shape and indices.dtype is torch.long and indices.device == device:
            return indices
        indices = indices.to(device, torch.long)
        try:
            return indices.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"A tensor of indices must have shape {shape}, but has {tuple(indices.shape)}."
            ) from error

    def _check_options(self, options: Options, length: int) -> int:
        """Refuse unknown options; return the number of parts of the feed-forward layers."""
        unknown = options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"The forward of this {type(self).__name__} has no argument "
                f"{', '.join(repr(name) for name in sorted(unknown))}."
            )
        chunk = self.config.chunk_size_feed_forward or 0
        if chunk and length % chunk:
            raise ValueError(
                f"The length {length} must be a multiple of chunk_size_feed_forward ({chunk})."
            )
        return length // chunk if chunk else 1

    def _forward_options(
        self, given: EncoderPass, options: Options, chunks: int, context: ForwardContext
    ) -> ForwardOptions:
        config, layout, snapshot = self.config, given.layout, context.snapshot
        training = self.training
        buckets = snapshot.reading.position_bias
        dropouts = self._dropouts if training else (0.0, 0.0, 0.0)
        head_mask = options.get("head_mask")
        attentions = options.get("output_attentions")
        states = options.get("output_hidden_states")
        return ForwardOptions(
            keys=layout.keys,
            causal=layout.causal,
            bias=layout.bias,
            head_mask=(
                None
                if head_mask is None
                else _head_mask(head_mask, _count(snapshot.layers, config), snapshot.dtype)
            ),
            cross=given.cross,
            cache=given.cache,
            attentions=bool(config.output_attentions if attentions is None else attentions),
            hidden_states=bool(config.output_hidden_states if states is None else states),
            hidden_dropout=dropouts[0],
            attention_dropout=dropouts[1],
            layer_dropout=dropouts[2],
            chunks=chunks,
            row_scale=given.row_scale,
            recompute=self._recompute if training and self.gradient_checkpointing else None,
            differentiable=context.differentiable,
            past=given.past,
            position_bias=None if buckets is None else DistanceBias(buckets, layout.batch),
        )

    def _tell_of_torch(self, snapshot: ModelSnapshot, options: ForwardOptions, plan: Plan) -> None:
        """Raise or warn where a pass would leave the kernels that were asked for."""
        found = list(snapshot.torch_parts())
        for name, given in (
            ("head_mask was given", options.head_mask is not None),
            ("output_attentions asks for weights, which kernels do not keep", options.attentions),
            ("attention weights are dropped in training", options.attention_dropout > 0.0),
        ):
            found += [name] if given else []
        if found and not plan.by_reference:
            tell_of_torch(found, self.strict, self.batch_invariant)

    def _run(
        self,
        inputs: EmbeddingInput,
        batch: PackedBatch,
        options: ForwardOptions,
        wanted: Wanted,
        context: ForwardContext,
    ) -> EncoderOutput:
        """Compute the pass: as one call of the prepared encoder where that is possible.

        Raises:
            StaleModel: when the context's snapshot holds no more.
        """
        snapshot = context.snapshot
        traced = torch.compiler.is_compiling()
        called = snapshot.reading.called
        prepared = not called and self.encoder_cache.computes(options, snapshot.device)
        if prepared and not context.differentiable:
            encoder = self.encoder_cache.encoder(snapshot, context.plan)
            if encoder is not None:
                adds = options.bias is not None or options.position_bias is not None
                bias = options.score_bias() if adds else None
                with suppress(NotPlain):  # op by op; their ops say which is not
                    output = encoder.encode(inputs, batch, wanted, context, bias)
                    if output is None:
                        raise self.encoder_cache.stale(snapshot)
                    return output
        if not traced and not snapshot.holds():
            raise self.encoder_cache.stale(snapshot)
        if self.strict or self.batch_invariant:
            self._tell_of_torch(snapshot, options, context.plan)
        if prepared and context.differentiable and not (traced or self.training or transformed()):
            kernels = ForwardContext(snapshot, _plan(self, snapshot, needs_grad=False))
            with suppress(NotPlain):
                output = recomputed_pass(
                    self, self.encoder_cache, inputs, batch, options, wanted, context, kernels
                )
                if output is not None:
                    return output
        output = encode_inputs(
            snapshot.tables, snapshot.layers, inputs, batch, context.plan, options
        )
        pooler = snapshot.reading.called_pooler
        if pooler is not None:
            assert output.packed is not None
            with running_on(context.plan):
                output.pooled = pooler.call(batch.pad(output.packed))
        if context.differentiable and not traced:
            more = (output.hidden_states, output.attentions, output.cross_attentions)
            others = (tensor for layers in more for tensor in layers or ())
            self.encoder_cache.gradients.follow(output.packed, output.grid, output.pooled, *others)
        return output


def words_adapted(model: PreTrainedModel) -> bool:
    """Return whether a model ties weights to a table of words that may not be the one built."""
    base: Any = model.base_model
    if not model.tied_weights():
        return False
    if not isinstance(base, EncoderModel):
        return True
    owner, name = base.input_embeddings_place()
    return type(getattr(owner, name)) is not nn.Embedding


def _count(layers: Layers, config: Any) -> int:
    return int(config.num_hidden_layers) if isinstance(layers, CalledStack) else len(layers)


def _without_padding(output: EncoderOutput, full: PackedBatch, batch: PackedBatch) -> EncoderOutput:
    """Remove the tokens that only a called part needed, as every other pass does.

    Args:
        output: of a pass over all tokens.
        full: the batch of that pass.
        batch: the tokens that remain.
    """
    assert output.packed is not None
    states = output.hidden_states
    if states is not None:
        states = tuple(batch.pad(batch.pack(grid)) for grid in states)
    return replace(output, packed=batch.pack(full.pad(output.packed)), hidden_states=states)


def checked_input(name: str, source: Any, kind: str, shape: str) -> Tensor:
    """Return `source` if it is a tensor of this kind with as many dimensions.

    Args:
        name: of the argument.
        source: what was given.
        kind: "integers" or "floating".
        shape: names of its dimensions, such as "(batch, length)".

    Raises:
        TypeError: for what is no dense tensor, or has other values.
        ValueError: for another number of dimensions.
    """
    if not isinstance(source, Tensor):
        raise TypeError(f"{name} must be a torch tensor, not a {type(source).__name__}.")
    if source.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, but its layout is {source.layout}.")
    if source.is_floating_point() != (kind == "floating") or source.dtype is torch.bool:
        raise TypeError(f"{name} must be {kind}, but the tensor holds {source.dtype}.")
    dimensions = shape.count(",") + 1
    if source.dim() != dimensions:
        raise ValueError(
            f"{name} {shape} has {dimensions} dimensions, but the shape {tuple(source.shape)} was "
            "given."
        )
    return source


@untraced
def _untraced(model: EncoderModel, inputs: EncoderInputs, wanted: Wanted) -> Encoding:
    return retrying(model, model.compute, inputs, wanted, model.encoder_cache.outdated)


def _context(model: EncoderModel, inputs: Sequence[Tensor | None]) -> ForwardContext:
    """Settle snapshot and plan of a pass, and whether gradients will flow.

    Args:
        model: the encoder.
        inputs: floating inputs, which may ask for gradients themselves.
    """
    if torch.compiler.is_compiling():
        return _context_between_graphs(model, inputs)
    snapshot = model.encoder_cache.view(model)
    grad = torch.is_grad_enabled() and (
        any(x is not None and x.requires_grad for x in inputs)
        or any(parameter.requires_grad for parameter in snapshot.parameters)
    )
    if (grad or model.training) and not snapshot.as_trained(grad):
        raise model.encoder_cache.stale(snapshot)
    return ForwardContext(snapshot, _plan(model, snapshot, grad), grad)


def _plan(model: EncoderModel, snapshot: ModelSnapshot, needs_grad: bool) -> Plan:
    return snapshot.plan(model.backend, model.strict, needs_grad, model.batch_invariant)


@untraced  # reads context variables and caches
def _context_between_graphs(model: EncoderModel, inputs: Sequence[Tensor | None]) -> ForwardContext:
    snapshot = model.encoder_cache.view(model)
    if not (snapshot.holds() and snapshot.as_trained(True)):
        model.encoder_cache.stale(snapshot)
    context = _context(model, inputs)
    if context.differentiable:
        model.encoder_cache.gradients.traced = True
    return context


def _head_mask(mask: Tensor | None, layers: int, dtype: torch.dtype) -> Tensor | None:
    """Turn (heads,) or (layers, heads) into (layers, 1, heads, 1, 1)."""
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
