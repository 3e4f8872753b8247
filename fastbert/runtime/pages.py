"""Memory for what is needed for a moment."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from fastbert.kernels import native

# Below it, pages of its own are not worth their faults: the allocator has room for so much.
_LEAST = 1 << 16


# Of a huge page.
_HUGE = 1 << 21


def lasting(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an empty tensor whose memory on a CPU lies on huge pages, where it fills some.

    The hardware's prefetch ends with a page, and small pages need more addresses than a processor
    keeps at hand. The memory is the allocator's, which gives it to the next one that is made: new
    pages would be cleared first.

    Args:
        shape: of the tensor.
        dtype: of its elements.
        device: where it is.
    """
    made = torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if device.type == "cpu" and size >= _HUGE and native.reason() is None:
        native.library.ask_for_huge_pages(made.data_ptr(), size)
    return made


def passing(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make an empty tensor whose memory goes back to the system as soon as the tensor is gone.

    What torch frees, the C library's allocator may keep for the process: up to 64 MB at its end,
    and everything that lies below something in use.

    Args:
        shape: of the tensor.
        dtype: of its elements.
        device: where it is; pages are taken on the CPU only.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LEAST:
        return torch.empty(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)
