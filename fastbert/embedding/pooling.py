"""From hidden states to one vector a text: pooling and the small modules that may follow it.

Everything works on packed hidden states and sums those of a text in the order of its tokens, so
that the vector of a text does not depend on the texts beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.layers.linear import Linear
from fastbert.ops.segment_sums import weighted_sums
from fastbert.runtime.plan import Plan

# In the order in which several modes of one model are concatenated.
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "GELU": F.gelu,
    "ReLU": F.relu,
    "Sigmoid": torch.sigmoid,
}


def modes_of(config: Mapping[str, Any], source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the pooling modes that a 1_Pooling/config.json asks for, in either of its two forms.

    Args:
        config: the content of the file.
        source: the name of the file in error messages.

    Raises:
        ValueError: for a mode that does not exist, or pooling that leaves out the prompt.
    """
    if not config.get("include_prompt", True):
        raise ValueError(
            f"{source} leaves the prompt out of pooling (include_prompt is false), which is not "
            "supported; expected include_prompt to be true."
        )
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        return check_modes((given,) if isinstance(given, str) else given)
    return tuple(mode for flag, mode in _FLAGS.items() if config.get(flag)) or ("mean",)


def check_modes(modes: Sequence[str]) -> tuple[str, ...]:
    """Check that pooling modes exist and return them as a tuple.

    Raises:
        ValueError: for a mode that does not exist, or none at all.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(
            f"Pooling {', '.join(map(repr, unknown)) or 'by no mode'} is unknown; choose from "
            f"{', '.join(MODES)}."
        )
    return tuple(modes)


def pool(rows: Tensor, cu_seqlens: Tensor, modes: Sequence[str], plan: Plan) -> Tensor:
    """Compute one vector for each packed sequence.

    Args:
        rows: hidden states (tokens, hidden) of any float dtype.
        cu_seqlens: (batch + 1,) integers, as in PackedBatch. An empty sequence pools to zeros.
        modes: names from MODES; several are concatenated in the order given.
        plan: whose `segment_sums` adds the rows.

    Returns:
        float32 (batch, hidden * len(modes)). Sums are float32, in the order of the tokens.
    """
    bounds = cu_seqlens.to(torch.int64)
    pooled = [_POOLERS[mode](rows, bounds, plan) for mode in check_modes(modes)]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


def _lengths(bounds: Tensor) -> Tensor:
    return bounds.diff().clamp(min=1).to(torch.float32)


def _mean(rows: Tensor, bounds: Tensor, plan: Plan) -> Tensor:
    return plan.segment_sums(rows, bounds, _lengths(bounds))


def _mean_sqrt_len(rows: Tensor, bounds: Tensor, plan: Plan) -> Tensor:
    return plan.segment_sums(rows, bounds, _lengths(bounds).sqrt())


def _owners(rows: Tensor, bounds: Tensor) -> Tensor:
    """Return the sequence of every row: int64 (tokens,)."""
    # Told how many rows there are, torch need not ask the device.
    every = torch.arange(bounds.shape[0] - 1, device=bounds.device)
    return every.repeat_interleave(bounds.diff(), output_size=rows.shape[0])


def _weighted_mean(rows: Tensor, bounds: Tensor, plan: Plan) -> Tensor:
    starts = bounds[_owners(rows, bounds)]
    weights = (torch.arange(rows.shape[0], device=rows.device) - starts + 1).to(torch.float32)
    total = _lengths(bounds)[:, None]
    return weighted_sums(rows, bounds, weights) / (total * (total + 1) / 2)


def _max(rows: Tensor, bounds: Tensor, plan: Plan) -> Tensor:
    # 64 texts of 64 rows take 43 % of the time of an amax for each of them.
    rows = rows.float()
    none = rows.new_zeros(bounds.shape[0] - 1, rows.shape[1])
    owners = _owners(rows, bounds)[:, None].expand_as(rows)
    return none.scatter_reduce(0, owners, rows, "amax", include_self=False)


def _edge_rows(rows: Tensor, bounds: Tensor, at: Tensor) -> Tensor:
    if rows.shape[0] == 0:
        return rows.new_zeros(bounds.shape[0] - 1, rows.shape[1], dtype=torch.float32)
    # For an empty sequence the row of another is picked, and not used: an index by a mask would
    # wait for the device.
    picked = rows.index_select(0, at.clamp(0, rows.shape[0] - 1)).float()
    return torch.where((bounds.diff() > 0)[:, None], picked, 0.0)


def _first(rows: Tensor, bounds: Tensor, plan: Plan) -> Tensor:
    return _edge_rows(rows, bounds, bounds[:-1])


def _last(rows: Tensor, bounds: Tensor, plan: Plan) -> Tensor:
    return _edge_rows(rows, bounds, bounds[1:] - 1)


_POOLERS: dict[str, Callable[[Tensor, Tensor, Plan], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


def normalize(vectors: Tensor) -> Tensor:
    """Divide vectors (batch, dimension) by their Euclidean lengths; zeros stay zeros."""
    lengths = (vectors * vectors).sum(dim=1, keepdim=True).sqrt()
    return vectors / lengths.clamp(min=1e-12)


class Dense(nn.Module):
    """A `Dense` module of a saved model: activation(x @ weight.T + bias) on sentence vectors.

    Args:
        config: the content of the module's config.json.
        source: the name of that file in error messages.

    Attributes:
        linear: weight (out_features, in_features) and bias (out_features,).

    Raises:
        ValueError: for an unknown activation or a residual.
    """

    def __init__(self, config: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
        super().__init__()
        name = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
        if name not in _ACTIVATIONS or config.get("use_residual", False):
            raise ValueError(
                f"{source} describes a Dense module with activation {name!r} and use_residual="
                f"{config.get('use_residual', False)}, which is not supported; expected one of "
                f"{', '.join(_ACTIVATIONS)} without a residual."
            )
        self._activation = _ACTIVATIONS[name]
        self.linear = Linear(
            int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True))
        )

    def forward(self, vectors: Tensor, plan: Plan) -> Tensor:
        """Project vectors (batch, in_features) to float32 (batch, out_features)."""
        weight = self.linear.weight
        return self._activation(self.linear(vectors.to(weight.dtype), plan)).float()
