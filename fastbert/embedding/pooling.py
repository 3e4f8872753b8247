"""Pooling: from the hidden states of a text to one vector.

Everything works on packed hidden states and sums those of a text in the order of its tokens, so
that the vector of a text does not depend on the texts beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.ops.segment_sums import weighted_sums
from fastbert.runtime.plan import Plan

# In the order in which several modes of one model are concatenated.
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def modes_of(config: Mapping[str, Any], source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the pooling modes that the config.json of a Pooling module asks for.

    Args:
        config: the content of the file; modes are named, or flagged one by one as before
            sentence-transformers 5.4. Without either it is the mean.
        source: the name of the file in error messages.

    Raises:
        ValueError: for a mode that does not exist, or a flag that is no boolean.
    """
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        if not isinstance(given, str | list):
            raise ValueError(f"{source} has the pooling_mode {given!r}; expected a name or a list.")
        return check_modes((given,) if isinstance(given, str) else given, source)
    flags = {flag: config[flag] for flag in FLAGS if flag in config}
    wrong = [flag for flag, value in flags.items() if not isinstance(value, bool)]
    if wrong:
        raise ValueError(f"{source} has {wrong[0]} = {flags[wrong[0]]!r}; expected true or false.")
    return tuple(mode for flag, mode in FLAGS.items() if flags.get(flag)) or ("mean",)


def check_modes(
    modes: Sequence[str], source: str | os.PathLike[str] = "The caller"
) -> tuple[str, ...]:
    """Check that pooling modes exist and return them as a tuple.

    Args:
        modes: their names.
        source: who asks for them, in error messages.

    Raises:
        ValueError: for a mode that does not exist, or none at all.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ValueError(
            f"{source} asks for pooling {', '.join(map(repr, unknown)) or 'by no mode'}, which is "
            f"unknown; choose from {', '.join(MODES)}."
        )
    return tuple(modes)


def pool(
    rows: Tensor, cu_seqlens: Tensor, modes: Sequence[str], plan: Plan, skipped: int = 0
) -> Tensor:
    """Compute one vector for each packed sequence.

    Args:
        rows: hidden states (tokens, hidden) of any float dtype.
        cu_seqlens: (batch + 1,) integers, as in PackedBatch. An empty sequence pools to zeros.
        modes: names from MODES; several are concatenated in the order given.
        plan: whose `segment_sums` adds the rows.
        skipped: tokens at the beginning of every sequence that are left out, those of a prompt. A
            sequence without others pools to zeros, and by `cls` to its first token.

    Returns:
        float32 (batch, hidden * len(modes)). Sums are float32, in the order of the tokens.
    """
    span = _Span(rows, cu_seqlens.to(torch.int64), 0)
    kept = span.after(skipped) if skipped else span
    pooled = [
        _first(span, skipped) if mode == "cls" else _POOLERS[mode](kept, plan)
        for mode in check_modes(modes)
    ]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


@dataclass(frozen=True)
class _Span:
    """Packed rows (tokens, hidden) with the bounds of their sequences.

    Attributes:
        rows: the hidden states.
        bounds: int64 (batch + 1,).
        skipped: tokens of every sequence before the first row.
    """

    rows: Tensor
    bounds: Tensor
    skipped: int

    def owners(self) -> Tensor:
        """Return the sequence of every row: int64 (tokens,)."""
        # Told how many rows there are, torch need not ask the device.
        every = torch.arange(self.bounds.shape[0] - 1, device=self.bounds.device)
        return every.repeat_interleave(self.bounds.diff(), output_size=self.rows.shape[0])

    def places(self) -> Tensor:
        """Return the place of every row in its sequence, from 0: int64 (tokens,)."""
        order = torch.arange(self.rows.shape[0], device=self.rows.device)
        return order - self.bounds[self.owners()] + self.skipped

    def lengths(self) -> Tensor:
        """Return float32 (batch,), at least 1."""
        return _lengths(self.bounds)

    def after(self, skipped: int) -> _Span:
        """Return the span without the first rows of every sequence."""
        kept = self.rows[self.places() >= skipped]
        lengths = (self.bounds.diff() - skipped).clamp(min=0)
        return _Span(kept, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), skipped)


def _lengths(bounds: Tensor) -> Tensor:
    return bounds.diff().clamp(min=1).to(torch.float32)


def _mean(span: _Span, plan: Plan) -> Tensor:
    return plan.segment_sums(span.rows, span.bounds, span.lengths())


def _mean_sqrt_len(span: _Span, plan: Plan) -> Tensor:
    return plan.segment_sums(span.rows, span.bounds, span.lengths().sqrt())


def _weighted_mean(span: _Span, plan: Plan) -> Tensor:
    weights = (span.places() + 1).to(torch.float32)
    count = span.lengths()[:, None]
    total = count * (count + 1) / 2 + count * span.skipped
    return weighted_sums(span.rows, span.bounds, weights) / total


def _max(span: _Span, plan: Plan) -> Tensor:
    # 64 texts of 64 rows take 43 % of the time of an amax for each of them.
    rows = span.rows.float()
    none = rows.new_zeros(span.bounds.shape[0] - 1, rows.shape[1])
    owners = span.owners()[:, None].expand_as(rows)
    return none.scatter_reduce(0, owners, rows, "amax", include_self=False)


def _edge_rows(span: _Span, at: Tensor) -> Tensor:
    rows, bounds = span.rows, span.bounds
    if rows.shape[0] == 0:
        return rows.new_zeros(bounds.shape[0] - 1, rows.shape[1], dtype=torch.float32)
    # For an empty sequence the row of another is picked, and not used: an index by a mask would
    # wait for the device.
    picked = rows.index_select(0, at.clamp(0, rows.shape[0] - 1)).float()
    return torch.where((bounds.diff() > 0)[:, None], picked, 0.0)


def _first(span: _Span, skipped: int) -> Tensor:
    starts = span.bounds[:-1]
    return _edge_rows(span, torch.where(span.bounds.diff() > skipped, starts + skipped, starts))


def _last(span: _Span, plan: Plan) -> Tensor:
    return _edge_rows(span, span.bounds[1:] - 1)


_POOLERS: dict[str, Callable[[_Span, Plan], Tensor]] = {
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
