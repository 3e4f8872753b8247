"""Masks: the packed batches and score biases that stand for the masks callers pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastbert.runtime.packing import PackedBatch


@dataclass(frozen=True)
class Layout:
    """The tokens that a pass computes, and the keys that they may see.

    Attributes:
        batch: the tokens of this pass.
        keys: the tokens that they attend to; None where those are the batch itself.
        bias: (batch or 1, heads or 1, queries, keys), added to the scores; None adds nothing.
        causal: whether later tokens are hidden; False under a mask with three or four dimensions,
            which alone says what is hidden.
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
    """Choose the tokens of one pass and the keys that they see.

    Args:
        mask: None, which hides nothing; (batch, past + length) of any dtype, non-zero for tokens
            to attend to; (batch, length, keys) of any dtype, non-zero where a query may see a key;
            or (batch or 1, heads or 1, length, keys), boolean or integer likewise, floating values
            added to the scores.
        shape: (batch, length) of the new tokens.
        device: where the model computes.
        dtype: precision of the model.
        past: number of tokens in the cache, None without a cache.
        causal: whether the model is a decoder.
        keep_padding: whether masked tokens are computed too, and only hidden as keys.
        keep_first_column: whether column 0 is computed even where it is masked.

    Returns:
        The layout, on the device.

    Raises:
        TypeError: for a mask that is no tensor.
        ValueError: for a mask of another shape, or one to be added where none such can be.
    """
    batch_size, length = shape
    total = length + (past or 0)
    usual = isinstance(mask, Tensor) and mask.dim() > 1 and not mask.is_floating_point()
    if mask is not None and not usual:
        _check_kind(mask)
    if mask is not None and (mask.dim() == 1 or mask.shape[0] != batch_size):
        mask = for_all(mask, batch_size)
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


def _check_kind(mask: Tensor) -> None:
    """Refuse what is no mask. One that is added to scores would show what it is to hide."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a torch tensor, not a {type(mask).__name__}.")
    if mask.dim() == 0:
        raise ValueError(
            "attention_mask (batch, length) has 2 dimensions, or 4, but this one has none."
        )
    if mask.is_floating_point() and mask.dim() <= 2 and not bool((mask >= 0).all()):
        raise ValueError(
            "An attention_mask (batch, length) holds zero for padding and another number for every "
            "other token; this one holds negative numbers or NaN, like masks that are added to the "
            "scores: those have 4 dimensions, (batch, heads, queries, keys)."
        )


def for_all(mask: Tensor, batch_size: int) -> Tensor:
    """Expand a mask (length,) or (1, length) to all sequences; return others as they are."""
    if mask.dim() == 1 or (mask.dim() == 2 and mask.shape[0] == 1):
        return mask.expand(batch_size, mask.shape[-1])
    return mask


def mask_bias(mask: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Turn a mask with three or four dimensions into a bias of the scores.

    Hidden keys get the lowest finite value, so that a query that sees none has a uniform softmax.

    Args:
        mask: (batch or 1, queries or 1, keys) or (batch or 1, heads or 1, queries or 1, keys), as
            `lay_out` takes them.
        shape: (batch, queries, keys) of the pass.
        dtype: of the bias.

    Returns:
        (batch or 1, heads or 1, queries, keys), on the mask's device.

    Raises:
        ValueError: for a mask of another shape.
    """
    batch_size, queries, keys = shape
    wide = mask[:, None] if mask.dim() == 3 else mask
    if wide.shape[2] == 1:
        wide = wide.expand(-1, -1, queries, -1)  # the same for all queries
    if tuple(wide.shape[2:]) != (queries, keys) or wide.shape[0] not in (1, batch_size):
        raise ValueError(
            f"An attention_mask with {mask.dim()} dimensions must cover {queries} queries and "
            f"{keys} keys of {batch_size} sequences, but it has shape {tuple(mask.shape)}."
        )
    if mask.dim() == 4 and mask.is_floating_point():
        return wide.to(dtype)
    bias = torch.zeros(wide.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(wide == 0, torch.finfo(dtype).min)


def cross_keys(
    mask: Tensor | None,
    shape: tuple[int, int],
    queries: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PackedBatch, Tensor | None]:
    """Lay out an encoder's tokens as the keys of cross-attention.

    Args:
        mask: None; (batch, length), non-zero for tokens to attend to; or a mask with three or four
            dimensions, as `mask_bias` takes it.
        shape: (batch, length) of the encoder's hidden states.
        queries: number of the decoder's new tokens in every sequence.
        device: where the model computes.
        dtype: precision of the model.

    Returns:
        The batch of the keys, and the bias (batch or 1, heads or 1, queries, length) of a mask with
        three or four dimensions, else None.

    Raises:
        ValueError: for a mask of another shape.
    """
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
    """Return whether a token that the mask removes has a label, and so must be computed.

    Args:
        labels: (batch, length), -100 where there is none, or the same numbers in another shape,
            since losses read them flat; None has no labels.
        mask: (batch, length), zero where a token is removed; other masks remove nothing.
        shift: how many columns later the label of a token stands (1 for next-token prediction).

    Raises:
        TypeError: for labels or a mask that are no tensors.
        ValueError: for a mask that is none.
    """
    if labels is None or mask is None:
        return False
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch tensor, not a {type(labels).__name__}.")
    _check_kind(mask)
    length = mask.shape[-1] if mask.dim() in (1, 2) else 0
    if not length or labels.numel() % length:
        return False
    if shift:
        labels = nn.functional.pad(labels, (0, shift), value=-100)[..., shift:]
    wanted = labels.reshape(-1, length) != -100
    mask = for_all(mask, wanted.shape[0])
    return mask.shape == wanted.shape and bool((wanted & (mask == 0)).any())
