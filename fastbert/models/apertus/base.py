"""The base of Apertus models: loading, initialisation and what the choice of kernels depends on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fastbert.layers.activation import XIELU
from fastbert.layers.linear import Int8Linear, Linear
from fastbert.layers.rms_norm import RMSNorm
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoding import Options
from fastbert.modeling.quantization import Group
from fastbert.models.apertus.config import ApertusConfig, check_buildable, head_dim
from fastbert.runtime.plan import Traits

_PROJECTIONS = {Linear: "linear", Int8Linear: "linear_w8a16"}


class ApertusOptions(Options, total=False):
    """Keyword arguments that every forward of Apertus takes besides its own.

    Attributes:
        is_causal: False shows every token those after it too; None for the configuration's value.
        keep_padding: True computes tokens that the mask removes too; a head whose labels stand
            there asks for it.
        token_type_ids: read by nobody, as in transformers; some tokenizers return them.
    """

    is_causal: bool | None
    keep_padding: bool
    token_type_ids: Tensor | None


class ApertusPreTrainedModel(PreTrainedModel):
    """Base of Apertus models."""

    config_class = ApertusConfig
    base_model_prefix = "model"
    checkpoint_prefixes = ("model.language_model.",)
    _no_split_modules = ["ApertusDecoderLayer"]
    # Constants, which exporters drop: a new model has the right ones.
    _keys_to_ignore_on_load_missing = ["act_fn.beta", "act_fn.eps"]

    def __init__(self, config: ApertusConfig) -> None:
        super().__init__(config)
        check_buildable(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, XIELU):
            module.reset_parameters()

    def is_core(self, name: str) -> bool:
        """See PreTrainedModel.is_core; the slopes of activations were learned as all else was."""
        return super().is_core(name) and not name.endswith((".act_fn.beta", ".act_fn.eps"))

    def traits(self) -> Traits:
        """See PreTrainedModel.traits."""
        config: Any = self.config
        plain = config.hidden_act == "xielu"
        # A decoder by itself gets a head that it does not know of, in the same precision or plain.
        kinds = {Linear, *map(type, self.modules())}
        return Traits(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim(config),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            embedding_size=config.hidden_size,
            activation=None if plain else config.hidden_act,
            quantized=Int8Linear in kinds,
            ops=(
                "rms_norm",
                *(op for kind, op in _PROJECTIONS.items() if kind in kinds),
                "qk_norm_rope",
                "attention_grouped",
                "xielu" if plain else "bias_act",
            ),
        )

    def get_decoder(self) -> nn.Module:
        """Return the layers without a head."""
        decoder: nn.Module = self.base_model
        return decoder

    def torch_parts(self) -> list[str]:
        """See PreTrainedModel.torch_parts: the Plan's ops are all there is."""
        return []

    def prune_heads(self, heads_to_prune: dict[int, Sequence[int]]) -> None:
        """Refuse: see blocks.

        Raises:
            ValueError: always.
        """
        self.blocks()

    def int8_groups(self) -> Iterator[Group]:
        """See PreTrainedModel.int8_groups: all products, whose rows keep 16 bits.

        Reading weights is what decoding costs, and what stands behind xIELU has a few values far
        larger than the others, of which 8 bits would leave little. A head that was tied to the
        embeddings becomes one of its own, which they do not follow.
        """
        decoder = self.base_model
        parts = [
            part
            for name, part in decoder.named_modules()
            if name.startswith("layers.") and isinstance(part, (Linear, Int8Linear))
        ]
        head = self.get_output_embeddings()
        if isinstance(head, (Linear, Int8Linear)):
            parts.append(head)
        for part in parts:
            yield Group((part,), repeats=False, wide_rows=True)

    def blocks(self) -> NoReturn:
        """Refuse: Apertus computes by its modules.

        Raises:
            ValueError: always; pruned heads, which ask for them, have no form in grouped heads.
        """
        raise ValueError(
            "Heads are pruned in BERT-like encoders: those of Apertus share keys and values."
        )
