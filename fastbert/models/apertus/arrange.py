"""From the arguments of a forward to what is computed: tokens, positions, what each sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.layers.grouped_attention import Attending
from fastbert.layers.masks import Layout, lay_out
from fastbert.modeling.encoding import EncoderInputs
from fastbert.runtime.packing import PackedBatch


@dataclass
class Arranged:
    """What a forward's arguments mean.

    Attributes:
        layout: the tokens that are computed.
        attending: what they see.
        positions: int64 (batch or 1, length), or (1, tokens) where padding was removed.
        cache: the cache that the pass extends and the caller gets back.
    """

    layout: Layout
    attending: Attending
    positions: Tensor
    cache: Any


@dataclass(frozen=True)
class Asked:
    """What decides beside the arguments.

    Attributes:
        shape: (batch, length) of the input.
        heads: number of the queries' heads.
        dtype: of the hidden states.
        device: where the model computes.
        causal: whether later tokens are hidden.
        keep_padding: masked tokens are computed too, and only hidden as keys.
        weights: takes the attention weights; None where they are not wanted.
    """

    shape: tuple[int, int]
    heads: int
    dtype: torch.dtype
    device: torch.device
    causal: bool
    keep_padding: bool
    weights: list[Tensor] | None


def arranged(inputs: EncoderInputs, cache: Any, asked: Asked) -> Arranged:
    """Decide which tokens are computed, what they see, and where they stand.

    Args:
        inputs: the arguments of the forward.
        cache: the cache that the pass is to extend, None without one.
        asked: what decides beside them.

    Raises:
        TypeError: for a mask that is no tensor, or positions that are no integers.
        ValueError: for a mask or positions of another shape, or a cache behind several texts.
    """
    mask = inputs.attention_mask
    positions = _given(inputs.position_ids, asked)
    if mask is None and inputs.past_key_values is None and positions is not None:
        starts = _starts(positions, inputs.use_cache is False or cache is None)
        if starts is not None:
            return _several(starts, positions, bool(inputs.use_cache and cache is not None), asked)
    past = None if cache is None else cache.get_seq_length()
    layout = lay_out(
        mask,
        asked.shape,
        asked.device,
        dtype=asked.dtype,
        past=past,
        causal=asked.causal,
        keep_padding=asked.keep_padding,
    )
    if positions is None:
        positions = _counted(mask, past or 0, asked)
    _check_heads(layout.bias, asked.heads)
    if layout.batch.indices is not None:
        positions = layout.batch.pack(positions.expand(asked.shape))[None]
    return Arranged(layout, Attending.of(layout, asked.weights), positions, cache)


def _several(starts: Tensor, positions: Tensor, cached: bool, asked: Asked) -> Arranged:
    """Arrange rows in which several texts stand."""
    if cached:
        raise ValueError(
            "The position_ids begin anew within a row, so several texts stand in it, which no "
            "cache can continue; pass use_cache=False, or an attention_mask."
        )
    attending = Attending.of_parts(starts.expand(asked.shape), asked.causal, asked.weights)
    layout = Layout(PackedBatch.dense(*asked.shape, asked.device), causal=asked.causal)
    return Arranged(layout, attending, positions, None)


def _given(positions: Tensor | None, asked: Asked) -> Tensor | None:
    if positions is None:
        return None
    if not isinstance(positions, Tensor):
        raise TypeError(f"position_ids must be a torch tensor, not a {type(positions).__name__}.")
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise TypeError(f"position_ids must be integers, but the tensor holds {positions.dtype}.")
    wide = positions.to(asked.device, torch.long)
    wide = wide[None] if wide.dim() == 1 else wide
    batch, length = asked.shape
    if wide.dim() != 2 or wide.shape[1] != length or wide.shape[0] not in (1, batch):
        raise ValueError(
            f"position_ids must have the shape {asked.shape} or {(1, length)}, but have "
            f"{tuple(positions.shape)}."
        )
    return wide


def _check_heads(bias: Tensor | None, heads: int) -> None:
    if bias is not None and bias.shape[1] not in (1, heads):
        raise ValueError(
            f"An attention_mask with four dimensions is for one head or for all {heads}, but this "
            f"one is for {bias.shape[1]}."
        )


def _starts(positions: Tensor, any_jump: bool) -> Tensor | None:
    """Return bool (batch or 1, length), where texts begin within rows; None where none does.

    Without a cache every jump begins a text, as in transformers. Where a cache was not refused,
    only rows that begin anew at 0 with every jump say so beyond doubt.
    """
    jumps = positions.diff(dim=1) != 1
    if not bool(jumps.any()) or not (any_jump or bool((positions[:, 1:][jumps] == 0).all())):
        return None
    return torch.cat([torch.ones_like(jumps[:, :1]), jumps], dim=1)


def _counted(mask: Tensor | None, past: int, asked: Asked) -> Tensor:
    """Count positions, from the first token that a mask (batch, past + length) shows."""
    columns = torch.arange(past, past + asked.shape[1], device=asked.device)[None]
    if mask is None or mask.dim() != 2 or not mask.shape[1]:
        return columns
    first = (mask.to(asked.device) != 0).int().argmax(dim=1, keepdim=True)
    return (columns - first).clamp(min=0)
