"""Rotary positions: the angle of every pair of columns at every position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastbert.layers.methods import as_defined

# What each scaling needs beside rope_type and rope_theta.
REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_BY_LONGEST = (
    "its angles depend on the longest text of a batch, so no text would have a result of its own"
)
REFUSED: dict[str, str] = {
    "dynamic": _BY_LONGEST,
    "longrope": _BY_LONGEST,
    "proportional": "no model of this kind uses it",
}


def frequencies(parameters: Mapping[str, Any], dim: int) -> tuple[Tensor, float]:
    """Return the angle per position of every pair, and what multiplies cos and sin.

    Args:
        parameters: rope_parameters of a configuration, complete.
        dim: columns of a head.

    Returns:
        float32 (dim / 2,) on the CPU, computed in float32 as checkpoints were trained; the factor.

    Raises:
        ValueError: for a scaling that is not here, saying why.
    """
    kind = parameters["rope_type"]
    if kind not in REQUIRED:
        why = REFUSED.get(kind, "it is unknown")
        raise ValueError(
            f"rope_type {kind!r} is not supported: {why}; choose one of {', '.join(REQUIRED)}."
        )
    # Explicitly on the CPU: a model that is being loaded is built on the device "meta".
    steps = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
    wavelengths: Tensor = float(parameters["rope_theta"]) ** (steps / dim)
    if kind == "linear":
        return 1.0 / wavelengths / parameters["factor"], 1.0
    if kind == "llama3":
        return _llama3(1.0 / wavelengths, parameters), 1.0
    if kind == "yarn":
        return _yarn(wavelengths, parameters, dim), _yarn_factor(parameters)
    return 1.0 / wavelengths, 1.0


def _llama3(plain: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """Divide long waves by the factor, leave short ones alone, and go over smoothly between."""
    factor = parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    context = parameters["original_max_position_embeddings"]
    wavelength = 2 * math.pi / plain
    smooth = (context / wavelength - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(wavelength > context / low, plain / factor, plain)
    middle = (wavelength >= context / high) & (wavelength <= context / low)
    return torch.where(middle, between, scaled)


def _yarn(wavelengths: Tensor, parameters: Mapping[str, Any], dim: int) -> Tensor:
    """Interpolate pairs that turn seldom, and go over to those that turn often by a ramp.

    Source: Peng et al. 2023, "YaRN: efficient context window extension of large language models".
    """
    context, base = parameters["original_max_position_embeddings"], parameters["rope_theta"]

    def pair_that_turns(times: float) -> float:
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(base))

    low = pair_that_turns(parameters.get("beta_fast") or 32)
    high = pair_that_turns(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((pairs - low) / (high - low)).clamp(0, 1)
    return 1.0 / (float(parameters["factor"]) * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept


def _yarn_factor(parameters: Mapping[str, Any]) -> float:
    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    factor = parameters["factor"]

    def scale(by: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    one, other = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(one) / scale(other) if one and other else scale()


class Rotation(tuple[Tensor, Tensor]):
    """cos and sin (batch or 1, length, dim) in the model's dtype, both halves alike.

    A plain pair for whoever takes transformers' `position_embeddings`.

    Attributes:
        halves: the same in float32, (batch or 1, length, dim / 2) each; None in a copy that
            someone else made of the pair.
    """

    halves: tuple[Tensor, Tensor] | None = None

    def __new__(cls, pair: Iterable[Tensor]) -> Self:
        """Make a pair, as tuple() does."""
        return super().__new__(cls, pair)


@as_defined
class RotaryEmbedding(nn.Module):
    """The angles of a model's positions.

    The frequencies are no buffer: they stay float32 whatever the model is converted to, since
    rounded ones are wrong by whole turns within a few hundred positions.

    Args:
        parameters: rope_parameters of a configuration.
        dim: columns of a head.

    Attributes:
        inv_freq: float32 (dim / 2,).
        attention_scaling: multiplies cos and sin.
    """

    def __init__(self, parameters: Mapping[str, Any], dim: int) -> None:
        super().__init__()
        self.rope_type = parameters["rope_type"]
        self.inv_freq, self.attention_scaling = frequencies(parameters, dim)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> Rotation:
        """Compute cos and sin of every position's angles.

        Args:
            x: gives dtype and device.
            position_ids: integer (batch or 1, length).
        """
        halves = self.halves(position_ids.to(x.device))
        rotation = Rotation(torch.cat((half, half), dim=-1).to(x.dtype) for half in halves)
        rotation.halves = halves
        return rotation

    @torch.no_grad()
    def halves(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute cos and sin of the angles of every pair, float32 (..., dim / 2) each.

        Args:
            positions: integer (...).
        """
        if self.inv_freq.device != positions.device:
            self.inv_freq = self.inv_freq.to(positions.device)
        # In float32 whatever the model is: models were trained with the rounding of this product.
        angles = positions[..., None].float() * self.inv_freq.float()
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
