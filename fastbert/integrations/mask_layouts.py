"""What a mask of attention scores hides, read from its values: padding, later tokens, other texts.

transformers hands masks of shape (batch, 1, queries, keys) to its attention functions. Kernels take
sequences instead. A mask is compared, whole, with the one that a layout stands for; so whoever made
it, and for what model, the layout hides just what the mask hides.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

# Where a mask keeps what was read from it, and the count of writes at that time.
_PLACE = "_fastbert_layout"


@dataclass(frozen=True)
class KeyLayout:
    """Which keys the queries of an attention see; arguments of `attention_varlen`.

    Attributes:
        causal: whether later keys are hidden.
        cu_seqlens_q: int32; offsets of the sequences, over rows of all texts.
        cu_seqlens_k: the same for keys.
        key_bias: float32 (batch * keys,), -inf for hidden keys; None adds nothing.
        keys: bool (batch, keys), those that are not padding; None for all.
        blind: whether a query sees no key.
    """

    causal: bool
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    key_bias: Tensor | None = None
    keys: Tensor | None = None
    blind: bool = False

    def on_grid(self, shape: tuple[int, int, int]) -> KeyLayout | None:
        """Return the same with each row of the batch as one sequence, or None where that is not so.

        Args:
            shape: (batch, queries, keys).
        """
        if self.keys is None:
            return self if len(self.cu_seqlens_q) == shape[0] + 1 else None
        whole = unmasked(shape, self.causal, self.cu_seqlens_q.device)
        return KeyLayout(
            self.causal, whole.cu_seqlens_q, whole.cu_seqlens_k, _bias(self.keys), self.keys,
            self.blind,
        )  # fmt: skip


@functools.lru_cache(maxsize=64)
def unmasked(shape: tuple[int, int, int], causal: bool, device: torch.device) -> KeyLayout:
    """Return the layout in which nothing but later keys is hidden.

    Args:
        shape: (batch, queries, keys).
        causal: whether those are.
        device: of the attention.
    """
    batch, queries, keys = shape
    with torch.inference_mode(False):
        rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
        cu_seqlens_q = rows * queries
        return KeyLayout(causal, cu_seqlens_q, cu_seqlens_q if queries == keys else rows * keys)


def read_mask(mask: Tensor, shape: tuple[int, int, int]) -> KeyLayout | str:
    """Return the layout that hides what a mask hides, or why there is none, as a clause.

    What was read is kept with the mask and used again until somebody writes to it.

    Args:
        mask: (batch or 1, 1, queries or 1, keys); bool, True where a key is seen, or floating
            numbers that are added to the scores.
        shape: (batch, queries, keys).
    """
    writes = None if mask.is_inference() else (mask._version, shape)
    seen = getattr(mask, _PLACE, None)
    if seen is not None and writes is not None and seen[0] == writes:
        found: KeyLayout | str = seen[1]
        return found
    with torch.no_grad(), torch.inference_mode(False):
        layout = _read(mask.detach(), shape)
    if writes is not None:
        setattr(mask, _PLACE, (writes, layout))
    return layout


def _read(mask: Tensor, shape: tuple[int, int, int]) -> KeyLayout | str:
    batch, queries, keys = shape
    sizes = ((1, batch), (1,), (1, queries), (keys,))
    if mask.dim() != 4 or any(n not in ok for n, ok in zip(mask.shape, sizes, strict=True)):
        return f"its mask has the shape {tuple(mask.shape)}"
    visible = _visible(mask)
    if isinstance(visible, str):
        return visible
    rows = visible[:, 0].expand(batch, -1, -1)
    last = rows[:, -1]
    if torch.equal(rows, last[:, None].expand_as(rows)):
        return _hiding_keys(last, shape, False, rows)
    if torch.equal(rows, last[:, None] & _earlier(rows)):
        return _hiding_keys(last, shape, True, rows)
    several = _several(rows) if queries == keys else None
    return "its mask hides keys in a pattern of its own" if several is None else several


def _visible(mask: Tensor) -> Tensor | str:
    """Return where keys are seen, bool, or why the mask does not say just that."""
    if mask.dtype is torch.bool:
        return mask
    if not mask.is_floating_point():
        return f"its mask is {mask.dtype}"
    visible = mask == 0
    if not bool((visible | (mask <= torch.finfo(mask.dtype).min)).all()):
        return "its mask adds numbers to the scores"
    # Beside a key that is seen the lowest number hides; alone it makes all keys equal.
    if not bool(visible.any(-1).all()):
        return "its mask leaves a query no key"
    return visible


def _earlier(rows: Tensor) -> Tensor:
    queries, keys = rows.shape[1:]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=rows.device)
    return ones.tril(keys - queries)


def _hiding_keys(
    keys: Tensor, shape: tuple[int, int, int], causal: bool, rows: Tensor
) -> KeyLayout:
    """Lay out a mask that hides the same keys from all queries, and perhaps later ones."""
    whole = unmasked(shape, causal, keys.device)
    if bool(keys.all()):
        return whole
    blind = not bool(rows.any(-1).all())
    if not causal:
        parts = _parts(keys, shape)
        if parts is not None:
            return KeyLayout(False, *parts, keys=keys, blind=blind)
    return KeyLayout(
        causal, whole.cu_seqlens_q, whole.cu_seqlens_k, _bias(keys), keys=keys, blind=blind
    )


def _parts(keys: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor] | None:
    """Return offsets that leave out keys before and behind the seen ones; None if those have holes.

    What is left out becomes sequences of keys without queries, so that no key is copied.
    """
    _, queries, length = shape
    counts = keys.sum(1)
    first = keys.to(torch.uint8).argmax(1)
    places = torch.arange(length, device=keys.device)
    inside = (places >= first[:, None]) & (places < (first + counts)[:, None])
    if not torch.equal(inside, keys):
        return None
    of_keys = torch.stack([first, counts, length - first - counts], 1)
    of_queries = torch.zeros_like(of_keys)
    of_queries[:, 1] = queries
    return _offsets(of_queries.flatten()), _offsets(of_keys.flatten())


def _several(rows: Tensor) -> KeyLayout | None:
    """Lay out several texts that stand one behind the other in a row; None if that is not so."""
    length = rows.shape[1]
    places = torch.arange(length, device=rows.device)
    starts = rows.to(torch.uint8).argmax(2) == places
    text = starts.cumsum(1)
    same = text[:, :, None] == text[:, None, :]
    earlier = _earlier(rows)
    for causal, expected in ((True, same & earlier), (False, same)):
        if torch.equal(rows, expected):
            begins = starts.flatten().nonzero().squeeze(1)
            offsets = torch.cat([begins, begins.new_tensor([starts.numel()])]).to(torch.int32)
            return KeyLayout(causal, offsets, offsets)
    return None


def _offsets(lengths: Tensor) -> Tensor:
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets


def _bias(keys: Tensor) -> Tensor:
    bias = torch.zeros(keys.numel(), dtype=torch.float32, device=keys.device)
    return bias.masked_fill_(~keys.reshape(-1), float("-inf"))
