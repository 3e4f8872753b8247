"""Removing attention heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastbert.layers.linear import Linear, Projection

if TYPE_CHECKING:
    from fastbert.modeling.base import PreTrainedModel


@torch.no_grad()
def prune_heads(model: PreTrainedModel, heads_to_prune: dict[int, Sequence[int]]) -> None:
    """Cut heads out of the projections of an encoder, and note them in config.pruned_heads.

    Args:
        model: the encoder.
        heads_to_prune: layer -> heads, numbered as in the unpruned model; those that are gone
            already are left alone.

    Raises:
        ValueError: for a head that never was, or the last heads of a layer.
        TypeError: for int8 weights.
    """
    config, blocks = model.config, model.blocks()
    gone = {
        int(layer): set(heads)
        for layer, heads in (getattr(config, "pruned_heads", None) or {}).items()
    }
    for layer, wanted in heads_to_prune.items():
        if not 0 <= layer < len(blocks):
            raise ValueError(f"There is no layer {layer}; they go from 0 to {len(blocks) - 1}.")
        block, before = blocks[layer], gone.get(layer, set())
        total = config.num_attention_heads
        new = set(wanted) - before
        if not new <= set(range(total)):
            raise ValueError(
                f"Layer {layer} has heads 0 to {total - 1}; {sorted(new)} are not all there."
            )
        kept = [head for head in range(total) if head not in before]
        if len(new) == len(kept):
            raise ValueError(f"Pruning {sorted(new)} would leave layer {layer} without a head.")
        places = [place for place, head in enumerate(kept) if head not in new]
        spans = [
            torch.arange(place * block.head_dim, (place + 1) * block.head_dim) for place in places
        ]
        rows = torch.cat(spans)
        for projection in (block.q, block.k, block.v):
            _select(projection, rows, 0)
        _select(block.out, rows, 1)
        gone[layer] = before | new
    config.pruned_heads = {layer: sorted(heads) for layer, heads in gone.items()}


def _select(projection: Projection, rows: Tensor, dim: int) -> None:
    if not isinstance(projection, Linear):
        raise TypeError("Heads of int8 weights cannot be pruned; prune before quantising.")
    weight = projection.weight
    rows = rows.to(weight.device)
    projection.weight = nn.Parameter(weight.index_select(dim, rows), weight.requires_grad)
    if dim == 1:
        projection.in_features = rows.numel()
        return
    projection.out_features = rows.numel()
    if projection.bias is not None:
        bias = projection.bias
        projection.bias = nn.Parameter(bias.index_select(0, rows), bias.requires_grad)
