"""int8 weights: how they are chosen, and which modules hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastbert.layers.linear import Int8Linear, Linear

METHOD = "fastbert"
_LARGEST = 127
# Fractions of the largest magnitude at which a channel may be clipped. The best one is chosen for
# each channel; below a half the error of the clipped weights always dominates.
_FRACTIONS = tuple(1.0 - step / 40 for step in range(17))
# Rows quantised at once, so that temporaries stay below this many elements.
_CHUNK = 1 << 21


@dataclass(frozen=True)
class QuantizationConfig:
    """How the projections of a model's layers are quantised.

    Attributes:
        load_in_8bit: int8 weights with one scale per output channel, activations quantised per
            token as they come; embeddings, norms, poolers and heads keep their precision.
    """

    load_in_8bit: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        return {"quant_method": METHOD, "load_in_8bit": self.load_in_8bit}


def as_quantization(value: Any) -> QuantizationConfig | None:
    """What a caller's `quantization` means: None, "int8", a QuantizationConfig, or its dict.

    Raises:
        ValueError: for anything else, or another library's method.
    """
    if value is None or (isinstance(value, QuantizationConfig) and not value.load_in_8bit):
        return None
    if isinstance(value, QuantizationConfig):
        return value
    if value == "int8":
        return QuantizationConfig()
    if isinstance(value, dict) and value.get("quant_method") == METHOD:
        return QuantizationConfig() if value.get("load_in_8bit", True) else None
    if getattr(value, "load_in_8bit", False) is True:
        return QuantizationConfig()
    raise ValueError(
        "quantization is None, 'int8' or fastbert.QuantizationConfig(load_in_8bit=True); "
        f"{value!r} is none of them."
    )


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 with one scale per row, each row clipped where its squared error is least.

    A row with a value that is not finite gets the scale NaN, so that the fault shows in the output.

    Args:
        weight: (out_features, in_features), floating.

    Returns:
        int8 (out_features, in_features) in -127..127 and float32 (out_features,) scales, with
        weight about q * scale[:, None].
    """
    q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    step = max(1, _CHUNK // max(weight.shape[1], 1))
    for start in range(0, weight.shape[0], step):
        rows = weight[start : start + step].to(torch.float32)
        scale = _best_scales(rows)
        levels = torch.round(rows / scale[:, None]).clamp_(-_LARGEST, _LARGEST)
        q[start : start + step] = torch.nan_to_num(levels).to(torch.int8)
        scales[start : start + step] = scale
    return q, scales


def _best_scales(rows: Tensor) -> Tensor:
    top = rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    full = torch.where(top > 0, top / _LARGEST, torch.ones_like(top))
    best = full.clone()
    least = torch.full_like(top, float("inf"))
    for fraction in _FRACTIONS:
        scale = full * fraction
        levels = torch.round(rows / scale[:, None]).clamp_(-_LARGEST, _LARGEST)
        error = (levels.mul_(scale[:, None]).sub_(rows)).square_().sum(dim=1)
        better = error < least
        best = torch.where(better, scale, best)
        least = torch.where(better, error, least)
    return torch.where(torch.isfinite(top), best, torch.full_like(best, float("nan")))


def quantized_names(model: Any) -> Iterator[str]:
    """Names of the modules that int8 replaces: the projections of the encoder's layers."""
    wanted = set()
    for block in model.base_model.blocks():
        parts = [block.q, block.k, block.v, block.out, block.up, block.down]
        if block.cross is not None:
            parts += [block.cross.q, block.cross.k, block.cross.v, block.cross.out]
        wanted |= {id(part) for part in parts}
    for name, module in model.named_modules():
        if id(module) in wanted and isinstance(module, (Linear, Int8Linear)):
            yield name


def replace_linears(model: nn.Module) -> None:
    """Put an empty Int8Linear in the place of every Linear that int8 replaces."""
    for name in list(quantized_names(model)):
        owner, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        if isinstance(linear, Linear):
            with torch.device(linear.weight.device):
                empty = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None)
            setattr(model.get_submodule(owner), leaf, empty)


@torch.no_grad()
def quantize(model: Any) -> Any:
    """Quantise the layers of a model that is already in memory, one projection at a time.

    Args:
        model: a model; changed in place.

    Returns:
        The same model, whose layers hold Int8Linear.
    """
    for name in list(quantized_names(model)):
        owner, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        if not isinstance(linear, Linear):
            continue
        int8 = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None)
        int8.qweight, int8.weight_scale = quantize_weight(linear.weight)
        if linear.bias is not None:
            int8.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, int8)
    model.config.quantization_config = QuantizationConfig().to_dict()
    return model
