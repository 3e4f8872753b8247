"""Packed batches: the real tokens of a padded (batch, seqlen) grid, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.kernels.openmp import on_one_thread
from fastbert.ops.operands import batched
from fastbert.runtime.devices import capturing
from fastbert.runtime.tracing import untraced

# A masked key that stays in the batch gets this bias: beside any other key its weight underflows to
# zero, and a sequence without another key still has a finite softmax.
MASKED = torch.finfo(torch.float32).min
# Bytes; the tensors of one copy begin at multiples of it, since kernels need aligned operands.
_ALIGNMENT = 16


@dataclass(frozen=True)
class PackedBatch:
    """The layout of packed tensors (total, ...): where sequences begin and tokens came from.

    Attributes:
        cu_seqlens: int32 (batch + 1,), starts at 0; the tokens of sequence b are cu_seqlens[b] up
            to cu_seqlens[b + 1], exclusive.
        max_seqlen: length of the longest sequence, 0 when there is none.
        indices: int64 (total,), the position b * seqlen + l of every token in the padded grid; None
            when nothing was removed.
        batch_size: number of sequences.
        seqlen: width of the padded grid.
        key_bias: float32 (total,), added to every attention score of that key; None adds nothing.
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
        """Number of tokens in a packed tensor."""
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
        """Make a batch from which nothing is removed.

        Args:
            batch_size: number of sequences.
            seqlen: width of the padded grid, the length of every sequence.
            device: where the batch goes.
            key_mask: (batch_size, seqlen), zero where a token must not be attended to; such tokens
                stay in the batch and get a key_bias.

        Raises:
            ValueError: when the mask has another shape.
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
        """Make the batch of the tokens that a mask keeps.

        The batch is computed on the mask's device. With a mask on the host, the host never waits
        for the device; one on an accelerator costs one wait, for the number of tokens.
        `from_lengths` never waits.

        Args:
            mask: (batch_size, seqlen) of any dtype, non-zero where a token is kept. Padding may
                stand on either side, and holes and empty sequences are allowed. None keeps every
                token.
            batch_size: number of sequences.
            seqlen: width of the padded grid.
            device: where the batch goes.
            keep_first_column: column 0 of every sequence stays in the batch even where it is masked
                (for poolers that read it); there it is masked as a key, through key_bias.

        Raises:
            ValueError: when the mask has another shape.
        """
        if mask is None:
            return cls.dense(batch_size, seqlen, device)
        if torch.compiler.is_compiling():
            return _untraced_from_mask(cls, mask, batch_size, seqlen, device, keep_first_column)
        _check_mask(mask, batch_size, seqlen)
        if batched(mask):
            raise NotImplementedError(
                "torch.vmap maps over attention_mask, so that each text would have another number "
                "of tokens; map over texts of one length without a mask, or give the whole batch "
                "to one call."
            )
        if mask.device.type == "cpu" and bool(mask.all()):
            return cls.dense(batch_size, seqlen, device)
        kept = visible = mask != 0
        if keep_first_column and seqlen > 0:
            kept = visible.clone()
            kept[:, 0] = True
        lengths = kept.sum(dim=1, dtype=torch.int32)
        cu_seqlens = _offsets(lengths)
        # The host reads all that it must know at once: on an accelerator every read waits for the
        # device.
        total = shortest = longest = only_kept = 0
        if batch_size:
            facts = [lengths.min(), lengths.max(), cu_seqlens[-1]]
            if kept is not visible:
                facts.append((kept != visible).sum(dtype=torch.int32))
            shortest, longest, total, *rest = torch.stack(facts).tolist()
            only_kept = sum(rest)
        indices = _token_indices(kept, total) if shortest < seqlen else None
        key_bias = None
        if only_kept:
            flat = visible.reshape(-1)
            key_bias = _key_bias(flat if indices is None else flat[indices])
        to = torch.device(device)
        if to.type != "cpu" or mask.device.type != "cpu":
            cu_seqlens, indices, key_bias = in_one_copy((cu_seqlens, indices, key_bias), to)
        return cls(cu_seqlens, longest, indices, batch_size, seqlen, key_bias, shortest)

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu", seqlen: int | None = None
    ) -> PackedBatch:
        """Make the batch of sequences of given lengths, which begin at column 0 of the padded grid.

        The host does not wait for the device.

        Args:
            lengths: number of tokens of every sequence.
            device: where the batch goes.
            seqlen: width of the padded grid; None for the longest length.

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
        host = torch.device("cpu")  # whatever the process' default is
        on_host = torch.tensor(lengths, dtype=torch.int32, device=host)
        indices = None
        if shortest < width:
            columns = torch.arange(width, device=host)
            indices = _token_indices(columns < on_host[:, None], sum(lengths))
        parts = in_one_copy((_offsets(on_host), indices), torch.device(device))
        return cls(parts[0], longest, parts[1], batch_size, width, None, shortest)

    def pack(self, x: Tensor) -> Tensor:
        """Pack a padded tensor: (batch, seqlen, ...) -> (total, ...).

        Raises:
            ValueError: when the tensor does not begin with (batch, seqlen).
        """
        if x.shape[:2] != (self.batch_size, self.seqlen):
            raise ValueError(
                f"This batch packs tensors that begin with ({self.batch_size}, {self.seqlen}), "
                f"but it was given one of shape {tuple(x.shape)}."
            )
        flat = x.reshape(self.batch_size * self.seqlen, *x.shape[2:])
        return flat if self.indices is None else flat.index_select(0, self.indices)

    def pad(self, x: Tensor, fill: float = 0) -> Tensor:
        """Pad a packed tensor: (total, ...) -> (batch, seqlen, ...).

        Args:
            x: (total, ...).
            fill: the value where a token was removed.

        Raises:
            ValueError: when the tensor does not begin with (total,).
        """
        if x.shape[0] != self.total:
            raise ValueError(
                f"This batch holds {self.total} tokens, but the tensor to pad has shape "
                f"{tuple(x.shape)}."
            )
        if self.indices is not None:
            with on_one_thread(x):
                grid = x.new_full((self.batch_size * self.seqlen, *x.shape[1:]), fill)
                x = grid.index_copy(0, self.indices, x)
        return x.reshape(self.batch_size, self.seqlen, *x.shape[1:])

    def first_token_rows(self) -> Tensor:
        """Return the index of every sequence's first token in a packed tensor, int64 (batch,).

        Raises:
            ValueError: when a sequence is empty and so has no first token.
        """
        if self.batch_size and self.min_seqlen == 0:
            raise ValueError(
                "A sequence of this batch has no token, so it has no first one; build the batch "
                "with keep_first_column=True, or leave empty sequences out."
            )
        return self.cu_seqlens[:-1].to(torch.int64)


@untraced  # the shapes of the batch depend on the values of the mask
def _untraced_from_mask(kind: type[PackedBatch], *args: Any) -> PackedBatch:
    return kind.from_mask(*args)


def in_one_copy(tensors: Sequence[Tensor | None], device: torch.device) -> list[Any]:
    """Copy tensors to a device, all in a single copy that the host does not wait for.

    From the host they go through one piece of page-locked memory; a plain copy of each would wait
    for all work queued before it.

    Args:
        tensors: the tensors; None stays None.
        device: where they go. If all are there already, they are returned as they are.

    Returns:
        One entry for every tensor, in their order.

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
    if device.type == "cuda" and capturing(device):
        raise RuntimeError(
            "A mask or lengths on the host cannot become part of a CUDA graph: its replays would "
            "not see them. Record the model without an attention_mask, for texts of one length."
        )
    starts, end = [], 0
    for tensor in given:
        starts.append(end)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    staged = torch.empty(end, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
    for tensor, start in zip(given, starts, strict=True):
        _part(staged, start, tensor).copy_(tensor)
    there = staged.to(device, non_blocking=True)
    offsets = iter(starts)
    return [None if tensor is None else _part(there, next(offsets), tensor) for tensor in tensors]


def _part(staged: Tensor, start: int, like: Tensor) -> Tensor:
    return staged[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _offsets(lengths: Tensor) -> Tensor:
    """Sum the lengths before each sequence: int32 (batch,) -> int32 (batch + 1,), from 0 on."""
    offsets = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    torch.cumsum(lengths, dim=0, out=offsets[1:])
    return offsets


def _token_indices(kept: Tensor, total: int) -> Tensor:
    """Return the flat positions of the kept tokens in order, int64 (total,).

    Args:
        kept: bool (batch, seqlen).
        total: number of kept tokens.
    """
    flat = kept.reshape(-1)
    if flat.device.type == "cpu":
        return torch.nonzero(flat).squeeze(1)
    return _token_indices_without_counting(flat, total)


def _token_indices_without_counting(flat: Tensor, total: int) -> Tensor:
    """Return the result of torch.nonzero, which would wait for the device to count the tokens.

    Args:
        flat: bool (batch * seqlen,).
        total: number of kept tokens.
    """
    # Every removed token goes to one slot behind the last, which is cut off.
    slots = torch.where(flat, flat.cumsum(0) - 1, total)
    every = torch.arange(flat.shape[0], device=flat.device)
    return every.new_empty(total + 1).scatter_(0, slots, every)[:total]


def _check_mask(mask: Tensor, batch_size: int, seqlen: int) -> None:
    if tuple(mask.shape) != (batch_size, seqlen):
        raise ValueError(
            f"An attention mask of shape ({batch_size}, {seqlen}) was expected, one value for "
            f"every token, but it has shape {tuple(mask.shape)}."
        )


def _key_bias(visible: Tensor) -> Tensor:
    bias = torch.zeros(visible.shape, dtype=torch.float32, device=visible.device)
    return bias.masked_fill_(~visible, MASKED)
