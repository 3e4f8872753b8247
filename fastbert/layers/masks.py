"""From the masks that callers pass to packed batches and score biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastbert.runtime.packing import PackedBatch


@dataclass(frozen=True)
class Layout:
    """Which tokens are computed, and what they may see.

    Attributes:
        batch: the tokens of this pass.
        keys: the tokens they attend to, where those are others.
        bias: (batch or 1, heads or 1, queries, keys), added to the scores.
        causal: whether later tokens are hidden; False where the mask itself says all.
    """

    batch: PackedBatch
    keys: PackedBatch | None = None
    bias: Tensor | None = None
    causal: bool = False


def lay_out(
    mask: Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
    *,
    dtype: torch.dtype,
    past: int | None = None,
    causal: bool = False,
    keep_padding: bool = False,
    keep_first_column: bool = False,
) -> Layout:
    """The layout of one pass.

    Args:
        mask: None; (batch, past + length), non-zero for tokens to attend to, of any dtype;
            (batch, length, keys), non-zero where a query may see a key; or (batch or 1, heads or 1,
            length, keys), boolean or integer likewise, floating values added to the scores.
        shape: (batch, length) of the new tokens.
        dtype: precision of the model.
        past: number of tokens in the cache, None without a cache.
        causal: the model is a decoder.
        keep_padding: compute masked tokens too, only hiding them as keys.
        keep_first_column: compute column 0 even where it is masked.

    Raises:
        ValueError: for a mask of another shape.
    """
    batch_size, length = shape
    total = length + (past or 0)
    if mask is not None and mask.dim() in (3, 4):
        bias = mask_bias(mask, (batch_size, length, total), dtype).to(device)
        batch = PackedBatch.dense(batch_size, length, device)
        keys = None if past is None else PackedBatch.dense(batch_size, total, device)
        return Layout(batch, keys, bias)
    if mask is not None and tuple(mask.shape) != (batch_size, total):
        behind = f" behind a cache of {past} tokens" if past else ""
        raise ValueError(
            f"For {batch_size} sequences of {length} tokens{behind}, attention_mask must have "
            f"shape ({batch_size}, {total}), (batch, queries, keys) or (batch, heads, queries, "
            f"keys), but it has shape {tuple(mask.shape)}."
        )
    if past is not None:
        batch = PackedBatch.dense(batch_size, length, device)
        return Layout(batch, PackedBatch.dense(batch_size, total, device, mask), causal=causal)
    if keep_padding:
        return Layout(PackedBatch.dense(batch_size, length, device, mask), causal=causal)
    if mask is None:
        return Layout(PackedBatch.dense(batch_size, length, device), causal=causal)
    batch = PackedBatch.from_mask(mask, batch_size, length, device, keep_first_column)
    return Layout(batch, causal=causal)


def mask_bias(mask: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """The bias (batch or 1, heads or 1, queries, keys) of a mask with three or four dimensions.

    Hidden keys get the lowest finite value, so that a query that sees none has a uniform softmax.
    """
    batch_size, queries, keys = shape
    wide = mask[:, None] if mask.dim() == 3 else mask
    if tuple(wide.shape[2:]) != (queries, keys) or wide.shape[0] not in (1, batch_size):
        raise ValueError(
            f"An attention_mask with {mask.dim()} dimensions must cover {queries} queries and "
            f"{keys} keys of {batch_size} sequences, but it has shape {tuple(mask.shape)}."
        )
    if mask.dim() == 4 and mask.is_floating_point():
        return mask.to(dtype)
    bias = torch.zeros(wide.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(wide == 0, torch.finfo(dtype).min)


def cross_keys(
    mask: Tensor | None,
    shape: tuple[int, int],
    queries: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PackedBatch, Tensor | None]:
    """The batch of an encoder's tokens (batch, length) as keys, and the bias of a wider mask."""
    batch_size, length = shape
    if mask is not None and mask.dim() in (3, 4):
        bias = mask_bias(mask, (batch_size, queries, length), dtype).to(device)
        return PackedBatch.dense(batch_size, length, device), bias
    if mask is not None and tuple(mask.shape) != (batch_size, length):
        raise ValueError(
            f"encoder_attention_mask must have shape ({batch_size}, {length}), as "
            f"encoder_hidden_states have, but it has shape {tuple(mask.shape)}."
        )
    return PackedBatch.dense(batch_size, length, device, mask), None


def labelled_padding(labels: Tensor | None, mask: Tensor | None, shift: int = 0) -> bool:
    """Whether a label stands at a token that the mask removes, so that its row must be computed.

    Args:
        labels: (batch, length), -100 where there is none.
        mask: (batch, length); other masks remove nothing.
        shift: the label of a token stands this many columns later (1 for next-token prediction).
    """
    if labels is None or mask is None or mask.dim() != 2 or mask.shape != labels.shape:
        return False
    wanted = labels[:, shift:] != -100
    return bool((wanted & (mask[:, : mask.shape[1] - shift] == 0)).any())
