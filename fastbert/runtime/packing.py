"""Packed batches: the real tokens of a padded (batch, seqlen) grid, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.runtime.tracing import untraced

# A masked key that stays in the batch gets this bias: its weight underflows to zero beside any
# other key, and a sequence that has no other key still has a finite softmax.
MASKED = torch.finfo(torch.float32).min
# Bytes; parts of one copy begin at multiples of it, as kernels like their operands.
_ALIGNMENT = 16


@dataclass(frozen=True)
class PackedBatch:
    """Where each sequence of a packed tensor (total, ...) begins and where its rows came from.

    Attributes:
        cu_seqlens: int32 (batch + 1,), starts at 0; sequence b is rows cu_seqlens[b] up to
            cu_seqlens[b + 1].
        max_seqlen: length of the longest sequence, 0 when there is none.
        indices: int64 (total,), the position b * seqlen + l of every row in the padded grid; None
            when nothing was removed.
        batch_size: number of sequences.
        seqlen: width of the padded grid.
        key_bias: float32 (total,), added to every attention score of that key; None for no bias.
        min_seqlen: length of the shortest sequence, 0 when there is none.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    indices: Tensor | None
    batch_size: int
    seqlen: int
    key_bias: Tensor | None = None
    min_seqlen: int = 0

    @property
    def total(self) -> int:
        """Number of rows of a packed tensor."""
        if self.indices is None:
            return self.batch_size * self.seqlen
        return self.indices.shape[0]

    @classmethod
    def dense(
        cls,
        batch_size: int,
        seqlen: int,
        device: torch.device | str = "cpu",
        key_mask: Tensor | None = None,
    ) -> PackedBatch:
        """A batch from which nothing is removed.

        Args:
            key_mask: (batch_size, seqlen), zero where a token must not be attended to; such tokens
                keep their rows and get a key_bias.
        """
        cu_seqlens = torch.arange(batch_size + 1, dtype=torch.int32, device=device) * seqlen
        key_bias = None
        if key_mask is not None:
            _check_mask(key_mask, batch_size, seqlen)
            key_bias = _key_bias(key_mask.to(device).reshape(-1) != 0)
        length = seqlen if batch_size else 0
        return cls(cu_seqlens, length, None, batch_size, seqlen, key_bias, length)

    @classmethod
    def from_mask(
        cls,
        mask: Tensor | None,
        batch_size: int,
        seqlen: int,
        device: torch.device | str = "cpu",
        keep_first_column: bool = False,
    ) -> PackedBatch:
        """The batch of the tokens that a mask keeps.

        It is worked out where the mask is. A mask on the host never waits for the device; one on
        an accelerator costs one wait, for the number of tokens. `from_lengths` never waits.

        Args:
            mask: (batch_size, seqlen) of any dtype, non-zero where a token is kept: padding on
                either side, holes and empty rows are all the same to it. None keeps everything.
            keep_first_column: column 0 of every row stays in the batch even where it is masked
                (for poolers that read it); there it is masked as a key, through key_bias.

        Raises:
            ValueError: when the mask has another shape.
        """
        if mask is None:
            return cls.dense(batch_size, seqlen, device)
        if torch.compiler.is_compiling():
            return _untraced_from_mask(cls, mask, batch_size, seqlen, device, keep_first_column)
        _check_mask(mask, batch_size, seqlen)
        if mask.device.type == "cpu" and bool(mask.all()):
            return cls.dense(batch_size, seqlen, device)
        kept = visible = mask != 0
        if keep_first_column and seqlen > 0:
            kept = visible.clone()
            kept[:, 0] = True
        lengths = kept.sum(dim=1, dtype=torch.int32)
        cu_seqlens = _offsets(lengths)
        # What the host must know, in one look: on an accelerator each one waits for the device.
        total = shortest = longest = only_kept = 0
        if batch_size:
            facts = [lengths.min(), lengths.max(), cu_seqlens[-1]]
            if kept is not visible:
                facts.append((kept != visible).sum(dtype=torch.int32))
            shortest, longest, total, *rest = torch.stack(facts).tolist()
            only_kept = sum(rest)
        indices = _places(kept, total) if shortest < seqlen else None
        key_bias = None
        if only_kept:
            rows = visible.reshape(-1)
            key_bias = _key_bias(rows if indices is None else rows[indices])
        to = torch.device(device)
        if to.type != "cpu" or mask.device.type != "cpu":
            cu_seqlens, indices, key_bias = in_one_copy((cu_seqlens, indices, key_bias), to)
        return cls(cu_seqlens, longest, indices, batch_size, seqlen, key_bias, shortest)

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu", seqlen: int | None = None
    ) -> PackedBatch:
        """The batch of sequences whose first `lengths[b]` columns of a (batch, seqlen) grid are
        real. seqlen defaults to the longest length. The host does not wait for the device.

        Raises:
            ValueError: when a length is negative or exceeds seqlen.
        """
        batch_size = len(lengths)
        longest = max(lengths, default=0)
        shortest = min(lengths, default=0)
        width = longest if seqlen is None else seqlen
        if shortest < 0 or longest > width:
            raise ValueError(
                f"Sequence lengths must lie between 0 and the width {width}, "
                f"but they reach from {shortest} to {longest}."
            )
        on_host = torch.tensor(lengths, dtype=torch.int32)
        indices = None
        if shortest < width:
            indices = _places(torch.arange(width) < on_host[:, None], sum(lengths))
        parts = in_one_copy((_offsets(on_host), indices), torch.device(device))
        return cls(parts[0], longest, parts[1], batch_size, width, None, shortest)

    def pack(self, x: Tensor) -> Tensor:
        """(batch, seqlen, ...) -> (total, ...)."""
        if x.shape[:2] != (self.batch_size, self.seqlen):
            raise ValueError(
                f"This batch packs tensors that begin with ({self.batch_size}, {self.seqlen}), "
                f"but it was given one of shape {tuple(x.shape)}."
            )
        flat = x.reshape(self.batch_size * self.seqlen, *x.shape[2:])
        return flat if self.indices is None else flat.index_select(0, self.indices)

    def pad(self, x: Tensor, fill: float = 0) -> Tensor:
        """(total, ...) -> (batch, seqlen, ...), `fill` where a token was removed."""
        if x.shape[0] != self.total:
            raise ValueError(
                f"This batch holds {self.total} tokens, but the tensor to pad has shape "
                f"{tuple(x.shape)}."
            )
        if self.indices is not None:
            grid = x.new_full((self.batch_size * self.seqlen, *x.shape[1:]), fill)
            x = grid.index_copy(0, self.indices, x)
        return x.reshape(self.batch_size, self.seqlen, *x.shape[1:])

    def first_token_rows(self) -> Tensor:
        """int64 (batch,): the row of the first token of every sequence.

        Raises:
            ValueError: when a sequence is empty and so has no first token.
        """
        if self.batch_size and self.min_seqlen == 0:
            raise ValueError(
                "A sequence of this batch has no token, so it has no first one; build the batch "
                "with keep_first_column=True, or leave empty sequences out."
            )
        return self.cu_seqlens[:-1].to(torch.int64)


@untraced  # its shapes depend on the mask's values
def _untraced_from_mask(kind: type[PackedBatch], *args: Any) -> PackedBatch:
    return kind.from_mask(*args)


def in_one_copy(tensors: Sequence[Tensor | None], device: torch.device) -> list[Any]:
    """Tensors (None stays None) on a device, by a single copy that the host does not wait for.

    Tensors that are there already are returned as they are. From the host they go through one
    piece of page-locked memory; a plain copy of each would wait for everything queued before it.

    Raises:
        RuntimeError: within a recording of a CUDA graph, whose replays would read that memory when
            it holds something else.
    """
    if device.type == "cpu":
        return [tensor if tensor is None or tensor.is_cpu else tensor.cpu() for tensor in tensors]
    if device == torch.device("cuda"):
        device = torch.device("cuda", torch.cuda.current_device())
    given = [tensor for tensor in tensors if tensor is not None]
    if all(tensor.device == device for tensor in given):
        return list(tensors)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "A mask or lengths on the host cannot become part of a CUDA graph: its replays would "
            "not see them. Record the model without an attention_mask, for texts of one length."
        )
    starts, end = [], 0
    for tensor in given:
        starts.append(end)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    staged = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, start in zip(given, starts, strict=True):
        _part(staged, start, tensor).copy_(tensor)
    there = staged.to(device, non_blocking=True)
    places = iter(starts)
    return [None if tensor is None else _part(there, next(places), tensor) for tensor in tensors]


def _part(staged: Tensor, start: int, like: Tensor) -> Tensor:
    return staged[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _offsets(lengths: Tensor) -> Tensor:
    """int32 (batch,) -> int32 (batch + 1,), the sums before each."""
    offsets = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, dim=0, out=offsets[1:])
    return offsets


def _places(kept: Tensor, total: int) -> Tensor:
    """int64 (total,): the flat positions of what is kept, in order."""
    flat = kept.reshape(-1)
    if flat.device.type == "cpu":
        return torch.nonzero(flat).squeeze(1)
    return _places_without_counting(flat, total)


def _places_without_counting(flat: Tensor, total: int) -> Tensor:
    """What torch.nonzero gives, which has to ask the device how many there are."""
    # Every removed token goes to one place behind the last, which is cut off.
    places = torch.where(flat, flat.cumsum(0) - 1, total)
    every = torch.arange(flat.shape[0], device=flat.device)
    return every.new_empty(total + 1).scatter_(0, places, every)[:total]


def _check_mask(mask: Tensor, batch_size: int, seqlen: int) -> None:
    if tuple(mask.shape) != (batch_size, seqlen):
        raise ValueError(
            f"An attention mask of shape ({batch_size}, {seqlen}) was expected, one value for "
            f"every token, but it has shape {tuple(mask.shape)}."
        )


def _key_bias(visible: Tensor) -> Tensor:
    bias = torch.zeros(visible.shape, dtype=torch.float32, device=visible.device)
    return bias.masked_fill_(~visible, MASKED)
