"""Models that fastbert saved in int8, loaded by transformers itself, through its registry.

The loaded model is transformers' own, but for its layers' projections, which are ours;
`fastbert.accelerate` lets its whole encoder run on kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import fastbert
from fastbert.integrations.building import structure
from fastbert.layers.linear import FLOAT32_BUFFERS, Int8Linear
from fastbert.modeling.quantization import METHOD, as_quantization, replace_linears


class Int8Config(QuantizationConfigMixin):
    """What `quantization_config` in config.json says of a model in int8.

    Args:
        bits: always 8.
        **others: what earlier versions wrote.
    """

    def __init__(self, bits: int = 8, **others: Any) -> None:
        as_quantization({**others, "quant_method": METHOD, "bits": bits})
        self.quant_method: Any = METHOD
        self.bits = bits

    def get_loading_attributes(self) -> dict[str, Any]:
        """Return none: nothing is chosen at loading."""
        return {}


class Quantizer(HfQuantizer):
    """Puts int8 projections where the saved model has them."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise ValueError(
                "transformers reads int8 weights that fastbert saved; to make some, load the model "
                "with fastbert and quantization='int8', or accelerate(model, quantization='int8')."
            )
        self._dtype: torch.dtype | None = None

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember the precision of the floating weights."""
        self._dtype = dtype
        return dtype

    def update_torch_dtype(self, torch_dtype: torch.dtype) -> torch.dtype:
        """Do the same under its name in transformers 4."""
        return self.update_dtype(torch_dtype)

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> None:
        """Read every tensor as it is stored: scales stay float32 in a model of any precision."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        ours: Any = getattr(fastbert, type(model).__name__, None)
        if ours is None:
            raise ValueError(
                f"fastbert has no {type(model).__name__}, so it has not saved this int8 "
                "checkpoint; load it with the class that it was saved with."
            )
        values = model.config.to_dict()
        values.pop("quantization_config", None)
        twin = structure(lambda: ours(ours.config_class.from_dict(values)))
        with torch.device("meta"):
            replace_linears(twin)
        for path, part in list(twin.named_modules()):
            if isinstance(part, Int8Linear):
                owner, _, name = path.rpartition(".")
                setattr(model.get_submodule(owner), name, part)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    kept = isinstance(module, Int8Linear) and name in FLOAT32_BUFFERS
                    if tensor is not None and tensor.is_floating_point() and not kept:
                        tensor.data = tensor.data.to(self._dtype)
        return model

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Say that the model can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that int8 weights take no gradients."""
        return False


def register() -> None:
    """Make both known to transformers, once."""
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.AUTO_QUANTIZER_MAPPING[METHOD] = Quantizer
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = Int8Config
