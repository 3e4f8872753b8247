"""The encoder of FlauBERT (Le et al. 2019, arXiv:1912.05372): XLM's, trained on French."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.engine.encoder import Wanted
from fastbert.engine.encoder_cache import ModelSnapshot
from fastbert.layers.cache_checks import check_layers
from fastbert.layers.cache_view import Cache, as_cache
from fastbert.layers.called import CalledStack, LayerInputs
from fastbert.layers.calling import call, hidden_of, tell
from fastbert.layers.embeddings import EmbeddingInput, EmbeddingTables
from fastbert.layers.encoder import Layers
from fastbert.layers.masks import Layout, for_all, lay_out
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoder import EncoderPass, keeps_padding
from fastbert.modeling.encoding import EncoderInputs, RareOptions
from fastbert.modeling.module_table import Difference, Region
from fastbert.modeling.named_encoder import NamedEncoder
from fastbert.modeling.parameter_names import AttentionNames, EncoderShape, ParameterNames
from fastbert.modeling.parts import build_tables
from fastbert.models.flaubert.config import FlaubertConfig
from fastbert.models.flaubert.modules import FLAUBERT_MODULES
from fastbert.outputs import BaseModelOutput, finish
from fastbert.runtime.packing import PackedBatch


def create_sinusoidal_embeddings(n_pos: int, dim: int, out: Tensor) -> Tensor:
    """Fill `out` (n_pos, dim) with sinusoidal positions (Vaswani et al. 2017, section 3.5).

    Column 2i of position p is sin(p / 10000^(2i / dim)), column 2i + 1 the cosine, both computed in
    float64.

    Returns:
        `out`, which gets no gradient.
    """
    import numpy

    columns = numpy.arange(dim)
    angles = numpy.arange(n_pos)[:, None] / numpy.power(10000, 2 * (columns // 2) / dim)
    out.requires_grad_(False)
    with torch.no_grad():
        out[:, 0::2] = torch.from_numpy(numpy.sin(angles[:, 0::2])).to(out)
        out[:, 1::2] = torch.from_numpy(numpy.cos(angles[:, 1::2])).to(out)
    return out


@dataclass
class FlaubertInputs(EncoderInputs):
    """The arguments of FlaubertModel.forward.

    Attributes:
        langs: int64 (batch, length), the language of each token.
        lengths: int64 (batch,), number of real tokens, in place of attention_mask.
    """

    PER_TOKEN: ClassVar[tuple[str, ...]] = (*EncoderInputs.PER_TOKEN, "langs")

    langs: Tensor | None = None
    lengths: Tensor | None = None

    @classmethod
    def given(
        cls,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        langs: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        lengths: Tensor | None,
        cache: object,
        inputs_embeds: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        rare: RareOptions,
    ) -> FlaubertInputs:
        """Gather the arguments of a forward, in the order of FlauBERT's forwards."""
        return cls(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            past_key_values=cache,
            options={
                "output_attentions": output_attentions,
                "output_hidden_states": output_hidden_states,
                "return_dict": return_dict,
                **rare,
            },
            langs=langs,
            lengths=lengths,
        )

    def named(self) -> dict[str, Any]:
        """Return what was given, by the names of FlaubertModel.forward."""
        given = super().named()
        given["cache"] = given.pop("past_key_values")
        return given

    @classmethod
    def of(cls, inputs: EncoderInputs) -> FlaubertInputs:
        """Return the inputs with the fields that other families lack."""
        if isinstance(inputs, FlaubertInputs):
            return inputs
        return cls(**vars(inputs))


class FlaubertPreTrainedModel(PreTrainedModel):
    """Base of the FlauBERT models."""

    config_class = FlaubertConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Embedding):
            super()._init_weights(module)
        elif self.config.sinusoidal_embeddings and module is self.base_model.position_embeddings:
            create_sinusoidal_embeddings(module.num_embeddings, module.embedding_dim, module.weight)
        else:
            module.weight.normal_(0.0, self.config.embed_init_std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()


class FlaubertModel(FlaubertPreTrainedModel, NamedEncoder):
    """The encoder without a head."""

    parameter_names = ParameterNames(
        word="embeddings",
        position="position_embeddings",
        # Token types are looked up among the words: the published models were used that way.
        token_type="embeddings",
        language="lang_embeddings",
        embedding_norm="layer_norm_emb",
        attention=AttentionNames(
            query="attentions.N.q_lin",
            key="attentions.N.k_lin",
            value="attentions.N.v_lin",
            output="attentions.N.out_lin",
            norm="layer_norm1.N",
        ),
        cross_attention=None,
        intermediate="ffns.N.lin1",
        output="ffns.N.lin2",
        output_norm="layer_norm2.N",
        pooler=None,
    )
    module_table = FLAUBERT_MODULES
    position_embeddings: nn.Embedding

    def __init__(self, config: FlaubertConfig) -> None:
        super().__init__(config)
        self.causal = config.causal
        self.pad_index = config.pad_index
        if config.sinusoidal_embeddings:
            self.position_embeddings.weight.requires_grad_(False)

    def encoder_shape(self) -> EncoderShape:
        """Read the sizes from the configuration.

        Raises:
            NotImplementedError: for is_encoder=False.
            ValueError: for heads that do not divide emb_dim.
        """
        config = self.config
        if not config.is_encoder:
            raise NotImplementedError("FlauBERT is an encoder; is_encoder=False is not supported.")
        if config.emb_dim % config.n_heads:
            raise ValueError(
                f"emb_dim ({config.emb_dim}) must be a multiple of n_heads ({config.n_heads})."
            )
        return EncoderShape(
            vocabulary=config.n_words,
            positions=config.max_position_embeddings,
            languages=config.n_langs if self._has_languages() else 0,
            width=config.emb_dim,
            hidden=config.emb_dim,
            layers=config.n_layers,
            heads=config.n_heads,
            intermediate=4 * config.emb_dim,
            activation="gelu" if config.gelu_activation else "relu",
            norm_eps=config.layer_norm_eps,
            padding=config.pad_index,
            pre_norm=config.pre_norm,
        )

    def build_tables(self, shape: EncoderShape) -> None:
        """Build the embedding tables in the order of the published checkpoints' parameters."""
        order = ("position", "language", "word")
        build_tables(self, self.parameter_names, shape, order)

    def call_embeddings(self, inputs: EmbeddingInput, past: int) -> Tensor:
        """Call the tables and their norm as torch would: (batch, length, emb_dim)."""
        words: Any = self.embeddings
        hidden: Tensor = words(inputs.ids) if inputs.embeds is None else inputs.embeds
        hidden = hidden + self.position_embeddings(inputs.positions)
        if inputs.languages is not None:
            languages: Any = self.lang_embeddings
            hidden = hidden + languages(inputs.languages)
        if inputs.token_types is not None:
            hidden = hidden + words(inputs.token_types)
        norm: Any = self.layer_norm_emb
        return F.dropout(norm(hidden), self._dropouts[0], self.training)

    def call_layer(self, layer: int, hidden: Tensor, given: LayerInputs) -> Tensor:
        """Call the modules of a layer as torch would, on (batch, length, emb_dim)."""
        kinds = ("attentions", "layer_norm1", "ffns", "layer_norm2")
        attention, norm, feed, last = (self._modules[kind][layer] for kind in kinds)  # type: ignore
        first = self.pre_norm
        visible = given.mask == 0
        mask = visible[:, 0] if self.causal else visible[:, 0, 0]
        answer = call(
            attention,
            norm(hidden) if first else hidden,
            {"mask": mask},
            cache=given.cache,
            output_attentions=given.attentions or None,
            head_mask=given.head_mask,
        )
        if isinstance(answer, tuple) and len(answer) > 1:
            tell(answer[1], False)
        hidden = hidden + F.dropout(hidden_of(answer), self._dropouts[0], self.training)
        if first:
            return hidden + hidden_of(call(feed, last(hidden)))
        hidden = norm(hidden)
        out: Tensor = last(hidden + hidden_of(call(feed, hidden)))
        return out

    def _has_languages(self) -> bool:
        return bool(self.config.n_langs > 1 and self.config.use_lang_emb)

    def dropouts(self) -> tuple[float, float, float]:
        """Return the probabilities for hidden states, attention weights and whole layers."""
        config = self.config
        return config.dropout, config.attention_dropout, config.layerdrop

    @property
    def dropout(self) -> float:
        """Probability of dropout of embeddings and of what attention answers; may be set.

        The feed-forward modules have their own.
        """
        return self._dropouts[0]

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropouts = (value, *self._dropouts[1:])
        self.encoder_cache.clear()

    @property
    def layerdrop(self) -> float:
        """Probability with which training leaves out a layer; may be set."""
        return self._dropouts[2]

    @layerdrop.setter
    def layerdrop(self, value: float) -> None:
        self._dropouts = (*self._dropouts[:2], value)

    @property
    def pre_norm(self) -> bool:
        """Whether norms come before attention and feed-forward part; may be set."""
        return self.built_shape.pre_norm

    @pre_norm.setter
    def pre_norm(self, value: bool) -> None:
        self.built_shape = replace(self.built_shape, pre_norm=value)
        self.encoder_cache.clear()

    @property
    def n_layers(self) -> int:
        """How many of the layers are computed; may be set."""
        return self.built_shape.layers

    @n_layers.setter
    def n_layers(self, value: int) -> None:
        self.built_shape = replace(self.built_shape, layers=value)
        self.encoder_cache.clear()

    def _layers(self, regions: dict[tuple[Region, int | None], str]) -> Layers:
        layers = super()._layers(regions)
        assert not isinstance(layers, CalledStack)  # no module holds the layers
        return layers[: self.n_layers]

    def own_differences(self) -> Iterator[Difference]:
        """Name the layers as no longer what was built where `dropout` was set."""
        layer = self._built.get("ffns.N")
        built = self.dropout if layer is None else layer.settings["dropout"]
        if self.dropout != built:
            count = len(self.get_submodule("ffns")._modules)
            why = f"dropout is {self.dropout!r}, where {built!r} was expected"
            yield from (Difference("ffns.N", index, why) for index in range(count))

    def token_mask(self, inputs: FlaubertInputs) -> Tensor | None:
        """Say which tokens are real, (batch, length).

        The attention mask says so where it is given, else `lengths`, else the number of ids of a
        text that are not padding.

        Raises:
            ValueError: for a mask or lengths that do not fit the input.
        """
        input_ids, attention_mask, lengths = inputs.input_ids, inputs.attention_mask, inputs.lengths
        shape = self.grid(input_ids, inputs.inputs_embeds)
        if lengths is not None and (
            lengths.shape != (shape[0],) or bool((lengths > shape[1]).any())
        ):
            raise ValueError(
                f"lengths must hold {shape[0]} values of at most {shape[1]}, one for each text."
            )
        if attention_mask is not None:
            attention_mask = for_all(attention_mask, shape[0])
            if tuple(attention_mask.shape) != shape:
                raise ValueError(
                    f"FlauBERT takes an attention_mask of shape {shape} only, one value for every "
                    f"token, but it has shape {tuple(attention_mask.shape)}."
                )
            return attention_mask
        if lengths is None:
            if input_ids is None:
                return None
            lengths = (input_ids != self.pad_index).sum(dim=1)
        return torch.arange(shape[1], device=lengths.device) < lengths[:, None]

    def arrange(
        self,
        inputs: EncoderInputs,
        shape: tuple[int, int],
        snapshot: ModelSnapshot,
        wanted: Wanted,
    ) -> EncoderPass:
        """See EncoderModel.arrange.

        With keep_padding the hidden states of masked tokens are zero; first_column needs nothing,
        since column 0 may be zero too.
        """
        given = FlaubertInputs.of(inputs)
        mask = self.token_mask(given)
        for name, value in (("position_ids", given.position_ids), ("langs", given.langs)):
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} must have shape {shape}, not {tuple(value.shape)}.")
        cache, past = self._cache(given.past_key_values)
        layout, scale = self._layout(mask, shape, past, cache is not None, wanted.keep_padding)
        return EncoderPass(layout, past, cache=cache, row_scale=scale)

    def look_up(
        self,
        inputs: EncoderInputs,
        shape: tuple[int, int],
        given: EncoderPass,
        snapshot: ModelSnapshot,
    ) -> EmbeddingInput:
        """See EncoderModel.look_up."""
        langs, embeds = FlaubertInputs.of(inputs).langs, inputs.inputs_embeds
        length, device, batch = shape[1], snapshot.device, given.layout.batch
        new = slice(given.past, length) if inputs.input_ids is not None else slice(None)
        position_ids = inputs.position_ids
        if position_ids is None:
            position_ids = torch.arange(length, device=device)[None]

        def chosen(indices: Tensor | None) -> Tensor | None:
            grid = (batch.batch_size, batch.seqlen)
            return self.over_grid(grid, device, None if indices is None else indices[:, new])

        positions = chosen(position_ids)
        tables = snapshot.tables
        if isinstance(tables, EmbeddingTables):
            self.check_positions(positions, batch, length, tables)
        return EmbeddingInput(
            chosen(inputs.input_ids),
            positions,
            chosen(inputs.token_type_ids),
            chosen(langs) if self.built_shape.languages else None,
            None if embeds is None else embeds.to(device, snapshot.dtype),
        )

    def _cache(self, cache: Any) -> tuple[Cache | None, int]:
        if cache is None:
            return None, 0
        if not self.causal:
            raise ValueError(
                "A cache needs causal=True in the configuration: without it, earlier tokens would "
                "have to see later ones."
            )
        store = as_cache(cache, cross=False)
        check_layers(store, self.n_layers)
        return Cache(store), int(store.get_seq_length())

    def _layout(
        self,
        mask: Tensor | None,
        shape: tuple[int, int],
        past: int,
        cached: bool,
        keep_padding: bool,
    ) -> tuple[Layout, Tensor | None]:
        """Say which tokens are computed; and, where masked ones stay, what zeroes their rows."""
        batch_size, length = shape
        new = length - past
        device, scale = self.device, None
        if mask is not None and (keep_padding or self.causal):
            scale = (mask[:, past:] != 0).to(device, self.dtype).reshape(-1, 1)
            scale = None if bool(scale.all()) else scale
        if not self.causal:
            return lay_out(mask, shape, device, dtype=self.dtype, keep_padding=keep_padding), scale
        # Causal FlauBERT hides later tokens and nothing else: padding is seen, as zero rows.
        keys = PackedBatch.dense(batch_size, length, device) if cached else None
        return Layout(PackedBatch.dense(batch_size, new, device), keys, causal=True), scale

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **options: Unpack[RareOptions],
    ) -> BaseModelOutput:
        """Encode token ids, or embeddings in their place.

        Args:
            input_ids: int64 (batch, length); with a cache, all ids: those it holds are skipped.
            attention_mask: (batch, length), zero for padding.
            langs: int64 (batch, length), the language of each token, in multilingual models.
            token_type_ids: int64 (batch, length), looked up in the table of words.
            position_ids: int64 (batch, length).
            lengths: int64 (batch,), number of real tokens, in place of attention_mask.
            cache: a DynamicCache, filled in place; for causal models.
            inputs_embeds: (batch, length, emb_dim), in place of input_ids.
            output_attentions: as for the next two, see fastbert.modeling.encoding.Options.
            output_hidden_states: likewise.
            return_dict: likewise.
            **options: see fastbert.modeling.encoding.RareOptions.

        Returns:
            BaseModelOutput, or its tuple.
        """
        inputs = FlaubertInputs.given(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict,
            options,
        )
        encoding = self.encode(inputs, Wanted(padded=True, keep_padding=keeps_padding()))
        return finish(BaseModelOutput(encoding.padded()), encoding)
