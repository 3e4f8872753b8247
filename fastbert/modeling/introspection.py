"""What a model says of itself to the tools around it, under transformers' names."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastbert.layers.linear import Int8Linear
from fastbert.layers.replicas import first_parameter_within, parameters_within
from fastbert.modeling.config import PreTrainedConfig

# All of them name the same result here: the Plan chooses what computes it.
ATTENTIONS = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)


def check_attention(name: str | dict[str, Any] | None) -> None:
    """Refuse the name of an attention implementation that does not exist.

    Raises:
        ValueError: naming those that do.
    """
    for one in name.values() if isinstance(name, dict) else [name]:
        if isinstance(one, dict):
            check_attention(one)
            continue
        # Kernels of the hub are named by their repositories.
        if one is not None and one not in ATTENTIONS and "/" not in one:
            raise ValueError(
                f'Specified `attn_implementation="{one}"` is not supported. The names are '
                f"{', '.join(ATTENTIONS)}; all of them compute the same here."
            )


class Described(nn.Module):
    """The part of a model that answers questions about it.

    Attributes:
        config: the configuration.
        main_input_name: name of the first input.
    """

    config: PreTrainedConfig
    main_input_name: ClassVar[str] = "input_ids"
    _no_split_modules: ClassVar[list[str]] = []
    _keep_in_fp32_modules: ClassVar[set[str]] = set()
    _keep_in_fp32_modules_strict: ClassVar[set[str]] = set()
    _supports_sdpa: ClassVar[bool] = True

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        first = first_parameter_within(self)
        return next(parameters_within(self)).device if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the floating parameters, float32 in a model without any."""
        for parameter in parameters_within(self):
            if parameter.is_floating_point():
                return parameter.dtype
        return torch.float32

    @property
    def vocab_size(self) -> int:
        """Number of words in the vocabulary."""
        return int(self.config.vocab_size)

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Inputs of forward for a trial pass."""
        return {"input_ids": torch.tensor([[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]])}

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the parameters, each once; an int8 weight counts as the weight it stands for.

        Args:
            only_trainable: whether to count only parameters that require gradients.
            exclude_embeddings: whether to leave out all embedding tables.
        """
        skip = set()
        if exclude_embeddings:
            tables = (m for m in self.modules() if isinstance(m, nn.Embedding))
            skip = {id(table.weight) for table in tables}
        count = sum(
            parameter.numel()
            for parameter in self.parameters()
            if id(parameter) not in skip and (parameter.requires_grad or not only_trainable)
        )
        if only_trainable:
            return count
        # The repeated columns of int8 weights are not counted a second time.
        quantised = (module for module in self.modules() if isinstance(module, Int8Linear))
        return count + sum(part.in_features * part.out_features for part in quantised)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Count the bytes of the parameters, each once, without what kernels pack from them.

        Args:
            return_buffers: whether buffers count too.
        """
        tensors: list[Tensor] = list(self.parameters())
        if return_buffers:
            tensors += self.buffers()
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    @property
    def qconfig(self) -> Any:
        """The mark that torch.ao.quantization leaves on modules: none here.

        Raises:
            AttributeError: always.
        """
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        raise ValueError(
            f"torch.ao.quantization finds no nn.Linear in a {type(self).__name__}, whose "
            "projections are classes of their own, so it would leave all of them as they are. For "
            "int8 weights load the model with quantization='int8'."
        )

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether generate() works on this class."""
        return False

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return False

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], **_: Any) -> None:
        """Set the name in the configuration, for compatibility with transformers.

        Nothing else changes: the Plan chooses the implementation, and all choices compute the same.

        Args:
            attn_implementation: for the configuration and all within it; or names by part, such as
                {"text_config": "eager"}, with "" for the configuration itself.

        Raises:
            ValueError: for a name that transformers does not have either.
        """
        check_attention(attn_implementation)
        self.config._attn_implementation = attn_implementation
