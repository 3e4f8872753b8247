"""Parts that are called as modules, on the padded grid, in the place of what kernels compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.layers.embeddings import EmbeddingInput
from fastbert.layers.linear import Linear
from fastbert.runtime.packing import PackedBatch


@dataclass(frozen=True)
class LayerInputs:
    """What a layer gets beside the hidden states, as transformers gives it.

    Attributes:
        mask: (batch, 1 or heads, queries, keys), added to the scores.
        states: (batch, keys, hidden), of the encoder that cross-attention attends to.
        states_mask: (batch, 1 or heads, queries, keys), added to the scores of cross-attention.
        cache: keys and values of earlier tokens.
        head_mask: multiplies the attention weights.
        attentions: whether attention weights are wanted.
        position_bias: (batch, heads, queries, keys), added to the scores beside the mask.
    """

    mask: Tensor
    states: Tensor | None = None
    states_mask: Tensor | None = None
    cache: Any = None
    head_mask: Tensor | None = None
    attentions: bool = False
    position_bias: Tensor | None = None


@dataclass(frozen=True)
class CalledLayer:
    """A layer that is called as torch would call it.

    Attributes:
        call: takes hidden states (batch, seqlen, hidden) and LayerInputs; returns the new ones.
    """

    call: Callable[[Tensor, LayerInputs], Tensor]


@dataclass(frozen=True)
class StackAnswer:
    """What a whole stack of layers answered: hidden states, and those of every layer if wanted."""

    hidden: Tensor
    states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class CalledStack:
    """All layers at once, called as torch would call the module that holds them.

    Attributes:
        call: takes embeddings (batch, seqlen, width), LayerInputs, and whether the hidden states of
            every layer are wanted.
        projects: whether it projects the embeddings to the hidden width by itself.
    """

    call: Callable[[Tensor, LayerInputs, bool], StackAnswer]
    projects: bool = False


@dataclass(frozen=True)
class CalledEmbeddings:
    """The embeddings, called as torch would call them.

    Attributes:
        call: takes what the caller gave, over the padded grid, and the number of cached tokens
            before it; returns (batch, seqlen, width), after dropout.
        projection: from the width of the tables to the hidden width, where they differ.
    """

    call: Callable[[EmbeddingInput, int], Tensor]
    projection: Linear | None = None


@dataclass(frozen=True)
class CalledPooler:
    """A pooler, called as torch would call it.

    Attributes:
        call: takes the last hidden states (batch, seqlen, hidden).
    """

    call: Callable[[Tensor], Tensor]


def additive_mask(
    queries: PackedBatch,
    keys: PackedBatch,
    bias: Tensor | None,
    causal: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Write the mask of a pass as what is added to the scores.

    Args:
        queries: a batch from which nothing was removed.
        keys: likewise; its key_bias hides keys.
        bias: as in ForwardOptions.
        causal: whether later keys are hidden; queries and keys are aligned at the end.
        dtype: of the result.

    Returns:
        (batch, 1 or heads, queries, keys), the lowest finite value where a key is hidden.
    """
    batch, rows, columns = queries.batch_size, queries.seqlen, keys.seqlen
    device = queries.cu_seqlens.device
    low = torch.finfo(dtype).min
    hidden = torch.zeros(batch, 1, rows, columns, dtype=torch.bool, device=device)
    if keys.key_bias is not None:
        hidden = hidden | (keys.key_bias != 0).reshape(batch, 1, 1, columns)
    if causal:
        place = torch.arange(columns, device=device)
        hidden = hidden | (place[None, :] > place[columns - rows :, None])
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, low)
    if bias is None:
        return mask
    return torch.where(hidden, low, bias.to(dtype).expand(batch, -1, rows, columns))
