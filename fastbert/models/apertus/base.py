"""The base of Apertus models: loading, initialisation and what the choice of kernels depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from fastbert.layers.activation import XIELU
from fastbert.layers.rms_norm import RMSNorm
from fastbert.modeling.base import PreTrainedModel
from fastbert.modeling.encoding import Options
from fastbert.models.apertus.config import ApertusConfig, check_buildable, head_dim
from fastbert.runtime.plan import Traits


class ApertusOptions(Options, total=False):
    """Keyword arguments that every forward of Apertus takes besides its own.

    Attributes:
        is_causal: False shows every token those after it too; None for the configuration's value.
        keep_padding: True computes tokens that the mask removes too; a head whose labels stand
            there asks for it.
    """

    is_causal: bool | None
    keep_padding: bool


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
        """See PreTrainedModel.is_core; without its slopes an activation has those of a new one."""
        return super().is_core(name) and ".act_fn." not in name

    def traits(self) -> Traits:
        """See PreTrainedModel.traits."""
        config: Any = self.config
        plain = config.hidden_act == "xielu"
        return Traits(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim(config),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            embedding_size=config.hidden_size,
            activation=None if plain else config.hidden_act,
            ops=(
                "rms_norm",
                "linear",
                "qk_norm_rope",
                "attention_grouped",
                "xielu" if plain else "bias_act",
            ),
        )

    def torch_parts(self) -> list[str]:
        """See PreTrainedModel.torch_parts: the Plan's ops are all there is."""
        return []

    def prune_heads(self, heads_to_prune: dict[int, Sequence[int]]) -> None:
        """Refuse: see blocks.

        Raises:
            ValueError: always.
        """
        self.blocks()

    def blocks(self) -> NoReturn:
        """Refuse: Apertus computes by its modules.

        Raises:
            ValueError: always; int8, which asks for them, has no kernels for Apertus yet.
        """
        raise ValueError(
            "int8 weights and pruned heads are for BERT-like encoders: Apertus has neither yet. "
            "Load it with dtype=torch.bfloat16 to halve its memory."
        )
