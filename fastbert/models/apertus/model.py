"""Apertus without a head: from ids to hidden states, on its modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, Unpack

import torch
from torch import Tensor, nn

from fastbert.engine.decoder import DecoderReading, DecoderWanted
from fastbert.engine.decoder_cache import DecoderCache, DecoderSnapshot
from fastbert.engine.encoder import PACKED, Wanted
from fastbert.engine.encoder_cache import retrying
from fastbert.layers.activation import XIELU, NamedActivation
from fastbert.layers.cache_checks import check_layers
from fastbert.layers.cache_places import check_skipped
from fastbert.layers.cache_view import as_cache
from fastbert.layers.encoder import EncoderOutput
from fastbert.layers.grouped_attention import Attending
from fastbert.layers.hooks import hooked
from fastbert.layers.linear import Int8Linear, Linear, running_on
from fastbert.layers.rms_norm import RMSNorm
from fastbert.layers.rotary import RotaryEmbedding
from fastbert.layers.unfilled import weights_device
from fastbert.modeling.encoder import checked_input
from fastbert.modeling.encoding import EncoderInputs, Encoding, check_devices
from fastbert.models.apertus.arrange import Arranged, Asked, arranged
from fastbert.models.apertus.base import ApertusOptions, ApertusPreTrainedModel
from fastbert.models.apertus.config import ApertusConfig, head_dim
from fastbert.models.apertus.modules import (
    ApertusAttention,
    ApertusDecoderLayer,
    ApertusMLP,
    takes_attending,
)
from fastbert.models.apertus.prepared import (
    ScoredEncoding,
    decoder_input,
    last_columns,
    on_grid,
)
from fastbert.ops.operands import NotPlain
from fastbert.outputs import BaseModelOutputWithPast, finish
from fastbert.runtime.packing import PackedBatch
from fastbert.runtime.plan import Plan
from fastbert.runtime.tracing import refuse_export, untraced


@dataclass(frozen=True)
class Scored:
    """What an engine may score of the vocabulary.

    Attributes:
        head: the projection to the vocabulary.
        columns: the last columns that are wanted; 0 for all.
        wanted: whether scores are all that is read; else the head is made known only.
    """

    head: nn.Module
    columns: int = 0
    wanted: bool = True


@dataclass(frozen=True)
class Form:
    """What is read of a pass."""

    wanted: Wanted
    scored: Scored | None = None


class ApertusModel(ApertusPreTrainedModel):
    """The layers of Apertus, with its embeddings and last norm."""

    def __init__(self, config: ApertusConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, self.padding_idx, device=weights_device()
        )
        self.layers = nn.ModuleList(
            ApertusDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config.rope_parameters or {}, head_dim(config))
        self.decoder_cache = DecoderCache()
        self.post_init()

    def _replicate_for_data_parallel(self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        # The one that it has so far speaks of the original's weights.
        replica.decoder_cache = DecoderCache()
        return replica

    def input_embeddings_place(self) -> tuple[nn.Module, str]:
        """See PreTrainedModel.input_embeddings_place."""
        return self, "embed_tokens"

    def read(self) -> DecoderReading:
        """Read the parts that an engine computes; see DecoderReading."""
        norm, words = self.norm, self.embed_tokens
        if any(type(part) not in _OWN or hooked(part) for part in self.modules()):
            return DecoderReading((), words, norm, "a part was hooked, or somebody put one in")
        layers: Any = self.layers[: self.config.num_hidden_layers]
        if [layer.self_attn.layer_idx for layer in layers] != list(range(len(layers))):
            return DecoderReading((), words, norm, "the layers are not in their order")
        return DecoderReading(tuple(layer.block() for layer in layers), words, norm)

    def how_passes_run(self) -> str:
        """Say, in a clause, whether a pass without gradients is one call of an engine."""
        view = self.decoder_cache.decoder_view(self)
        if not view.holds():
            self.decoder_cache.stale(view)
            view = self.decoder_cache.decoder_view(self)
        plan = view.plan(self.backend, self.strict, False, self.batch_invariant)
        reason = view.refused(plan)
        if reason is None:
            return "one native call: embedding, all layers, norm and head"
        return f"modules, one by one: {reason}"

    def longest(self) -> int:
        """Return the number of tokens that the model was made for; longer texts run too."""
        return int(self.config.max_position_embeddings)

    def positions_from_mask(self, mask: Tensor) -> Tensor:
        """Count the positions (batch, length) of real tokens by a mask with padding on the left."""
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **options: Unpack[ApertusOptions],
    ) -> BaseModelOutputWithPast:
        """Compute the hidden states.

        Args:
            input_ids: int64 (batch, length).
            attention_mask: (batch, cached + length), non-zero for tokens to attend to; or a mask
                with three or four dimensions, which replaces the causal one, as
                `fastbert.layers.masks.lay_out` takes it.
            position_ids: int64 (batch, length) or (1, length); None counts from the first token
                that the mask shows. Where they begin anew within a row, and neither mask nor cache
                is given, several texts stand in it, which do not see each other.
            past_key_values: a cache, which is extended, or tuples over layers of keys and values.
            inputs_embeds: (batch, length, hidden), in place of input_ids.
            use_cache: whether to return a cache; None for config.use_cache.
            **options: those of ApertusOptions.

        Returns:
            BaseModelOutputWithPast, or its tuple with return_dict=False.

        Raises:
            TypeError: for an option that does not exist, or inputs of the wrong kind.
            ValueError: for inputs that do not fit together.
            IndexError: for an id outside of the vocabulary.
        """
        inputs = EncoderInputs(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            options=options,
        )
        encoding = self.encode(inputs)
        return finish(BaseModelOutputWithPast(encoding.padded()), encoding)

    def encode(
        self, inputs: EncoderInputs, wanted: Wanted = PACKED, scored: Scored | None = None
    ) -> Encoding:
        """Compute the hidden states; what a head starts from.

        Args:
            inputs: the arguments of a forward.
            wanted: which hidden states are read.
            scored: what an engine may score of the vocabulary, in place of the hidden states.

        Returns:
            The hidden states, or a ScoredEncoding.
        """
        form = Form(wanted, scored)
        if torch.compiler._is_exporting_flag:
            refuse_export()
        if torch.compiler.is_compiling():
            return _untraced(self, inputs, form)
        return retrying(self, self.compute, inputs, form)

    def compute(self, inputs: EncoderInputs, form: Form) -> Encoding:
        """Do what encode() does, on a snapshot of the model that may turn out to be stale.

        Raises:
            StaleModel: when the snapshot holds no more.
        """
        wanted = form.wanted
        options: Any = inputs.options
        self._check_options(options)
        shape = self._grid(inputs.input_ids, inputs.inputs_embeds)
        asked = {
            name: getattr(self.config, name) if options.get(name) is None else options[name]
            for name in ("output_attentions", "output_hidden_states", "return_dict")
        }
        scored = form.scored
        view = self.decoder_cache.decoder_view(self, None if scored is None else scored.head)
        embeds = inputs.inputs_embeds
        differentiable = _differentiable(embeds, view.parameters)
        plan = view.plan(self.backend, self.strict, differentiable, self.batch_invariant)
        check_devices(inputs, view.device, plan, type(self).__name__)
        weights: list[Tensor] | None = [] if asked["output_attentions"] else None
        mask = inputs.attention_mask
        keep = wanted.keep_padding or options.get("keep_padding") or weights is not None
        causal = options.get("is_causal")
        given = arranged(
            inputs,
            self._cache(inputs, every=not view.reading.called),
            Asked(
                shape,
                self.config.num_attention_heads,
                view.dtype if embeds is None else embeds.dtype,
                view.device if embeds is None else embeds.device,
                bool(getattr(self.config, "is_causal", True) if causal is None else causal),
                bool(keep) or (mask is not None and view.reading.called),
                weights,
            ),
        )
        states: list[Tensor] | None = [] if asked["output_hidden_states"] else None
        check_skipped(given.cache, mask)
        # An engine leaves padding out, also where a cache has room for its keys.
        padding = bool(keep) and mask is not None
        if weights is None and states is None and not (self.training or differentiable or padding):
            found = self._prepared(inputs, given, shape, form, view, plan)
            if found is not None:
                batch, output, logits = found
                rest = {"past_key_values": given.cache, "hidden_states": None, "attentions": None}
                finished = (batch, plan, asked["return_dict"], output, rest)
                if logits is None:
                    return Encoding(*finished)
                return ScoredEncoding(*finished, logits=logits)
        if not view.holds():
            raise self.decoder_cache.stale(view)
        hidden = embeds
        if hidden is None:
            assert inputs.input_ids is not None
            hidden = self._embedded(inputs.input_ids)
        batch = given.layout.batch
        if batch.indices is not None:
            hidden = batch.pack(hidden)[None]
        with running_on(plan):
            hidden = self._layers(hidden, given, plan, states)
        packed = hidden.reshape(batch.total, hidden.shape[-1])
        if differentiable:
            self.decoder_cache.gradients.follow(packed)
        rest = {
            "past_key_values": given.cache,
            "hidden_states": None if states is None else tuple(self._padded(batch, states)),
            "attentions": None if weights is None else self._weights(weights),
        }
        return Encoding(batch, plan, asked["return_dict"], EncoderOutput(packed=packed), rest)

    def _prepared(
        self,
        inputs: EncoderInputs,
        given: Arranged,
        shape: tuple[int, int],
        form: Form,
        view: DecoderSnapshot,
        plan: Plan,
    ) -> tuple[PackedBatch, EncoderOutput, Tensor | None] | None:
        """Compute a pass as one call of the engine, where that is possible.

        Returns:
            The tokens that were computed, their hidden states and the scores of the vocabulary,
            one of the two; None where the modules must be called.

        Raises:
            StaleModel: when the snapshot holds no more.
        """
        # An engine and its cache's places need a token; modules answer no texts as well.
        decoder = self.decoder_cache.decoder(view, plan) if math.prod(shape) else None
        if decoder is None:
            return None
        blocks = view.reading.blocks
        made = decoder_input(
            inputs, given, shape, blocks[0], len(blocks), self.rotary_emb, view.dtype
        )
        if isinstance(made, str):
            return None
        source, batch = made
        scored = form.scored
        scores = scored is not None and scored.wanted and decoder.scores
        asked, real = DecoderWanted(), None
        if scored is not None and scores:
            asked, real = last_columns(batch, scored.columns)
        try:
            with suppress(NotPlain):  # by modules; their ops say which is not
                out = decoder.decode(source, asked, view.watch)
                if out is None:
                    raise self.decoder_cache.stale(view)
                if not scores:
                    return batch, EncoderOutput(packed=out), None
                columns = batch.seqlen if real is None else real.shape[1]
                count = asked.tokens
                if real is None and count is not None:
                    columns = count.shape[0] // max(batch.batch_size, 1)
                return batch, EncoderOutput(), on_grid(out, real, (batch.batch_size, columns))
        except IndexError:
            # In the caller's words rather than the table's.
            if inputs.input_ids is not None:
                self._check_ids(inputs.input_ids)
            raise
        return None

    def _layers(
        self, hidden: Tensor, given: Arranged, plan: Plan, states: list[Tensor] | None
    ) -> Tensor:
        """Compute all layers and the last norm; `states` takes what goes into each of them."""
        rotation = self.rotary_emb(hidden, position_ids=given.positions)
        shared = {
            "position_ids": given.positions,
            "past_key_values": given.cache,
            "use_cache": given.cache is not None,
            "position_embeddings": rotation,
        }
        recompute = self._recompute if self.training and self.gradient_checkpointing else None
        for index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            if states is not None:
                states.append(hidden)
            # Bound to the plan, since a layer that is recomputed runs after the pass.
            run = partial(_run_layer, layer, given.attending, plan, shared)
            if recompute is None or index % recompute.every:
                hidden = run(hidden)
            else:
                hidden = recompute(run, hidden)
        hidden = self.norm(hidden)
        if states is not None:
            states.append(hidden)
        return hidden

    def _padded(self, batch: PackedBatch, states: Sequence[Tensor]) -> list[Tensor]:
        if batch.indices is None:
            return list(states)
        return [batch.pad(state[0]) for state in states]

    def _weights(self, weights: list[Tensor]) -> tuple[Tensor, ...]:
        if len(weights) < len(self.layers):
            raise ValueError(
                "A part that was put in place of a layer or its attention returns no weights, so "
                "output_attentions cannot be answered."
            )
        return tuple(weights[: len(self.layers)])

    def _embedded(self, ids: Tensor) -> Tensor:
        self._check_ids(ids)
        embedded: Tensor = self.embed_tokens(ids.long())
        return embedded

    def _check_ids(self, ids: Tensor) -> None:
        if ids.device.type == "cpu" and ids.numel():
            rows = getattr(self.embed_tokens, "num_embeddings", self.config.vocab_size)
            least, most = int(ids.min()), int(ids.max())
            if least < 0 or most >= rows:
                raise IndexError(
                    f"input_ids reach from {least} to {most}, but the vocabulary has {rows} words."
                )

    def _check_options(self, options: ApertusOptions) -> None:
        unknown = options.keys() - ApertusOptions.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"The forward of this {type(self).__name__} has no argument "
                f"{', '.join(repr(name) for name in sorted(unknown))}."
            )
        if options.get("head_mask") is not None:
            raise ValueError("Apertus takes no head_mask.")

    def _grid(self, input_ids: Tensor | None, embeds: Tensor | None) -> tuple[int, int]:
        if (input_ids is None) == (embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        if input_ids is not None:
            given = checked_input("input_ids", input_ids, "integers", "(batch, length)")
        else:
            shape = "(batch, length, hidden)"
            given = checked_input("inputs_embeds", embeds, "floating", shape)
            if given.shape[2] != self.config.hidden_size:
                raise ValueError(
                    f"inputs_embeds {shape} has {given.shape[2]} columns, but this model's hidden "
                    f"size is {self.config.hidden_size}."
                )
        return given.shape[0], given.shape[1]

    def _cache(self, inputs: EncoderInputs, every: bool) -> Any:
        """Return the cache that the pass extends, None without one.

        Args:
            inputs: the arguments of the forward.
            every: see check_layers.

        Raises:
            ValueError: for a cache where layers are computed twice, or that another model filled.
        """
        recomputes = self.training and self.gradient_checkpointing
        if recomputes and inputs.past_key_values is not None:
            raise ValueError(
                "Layers that are recomputed in the backward pass would extend past_key_values a "
                "second time; call gradient_checkpointing_disable() or model.eval() first."
            )
        wanted = self.config.use_cache if inputs.use_cache is None else inputs.use_cache
        if inputs.past_key_values is None and (recomputes or not wanted):
            return None
        cache = as_cache(inputs.past_key_values, cross=False)
        if inputs.past_key_values is not None:
            check_layers(cache, len(self.layers[: self.config.num_hidden_layers]), every)
        return cache


_OWN = (
    ApertusModel,
    ApertusDecoderLayer,
    ApertusAttention,
    ApertusMLP,
    RMSNorm,
    RotaryEmbedding,
    XIELU,
    NamedActivation,
    Linear,
    Int8Linear,
    nn.Embedding,
    nn.ModuleList,
)


def _run_layer(
    layer: nn.Module, attending: Attending, plan: Plan, shared: dict[str, Any], hidden: Tensor
) -> Tensor:
    known: dict[str, Any] = {"attending": attending}
    if not takes_attending(layer, ApertusDecoderLayer):
        known = {"attention_mask": attending.as_mask(hidden.dtype)}
    with running_on(plan):
        out = layer(hidden, **known, **shared)
    result: Tensor = out[0] if isinstance(out, tuple) else out
    return result


def _differentiable(embeds: Tensor | None, parameters: Sequence[Tensor]) -> bool:
    """Return whether gradients will flow."""
    if not torch.is_grad_enabled():
        return False
    asked = embeds is not None and embeds.requires_grad
    return asked or any(parameter.requires_grad for parameter in parameters)


@untraced
def _untraced(model: ApertusModel, inputs: EncoderInputs, form: Form) -> Encoding:
    return retrying(model, model.compute, inputs, form)
