"""Whether a tensor was written to: what torch counts, and what it does not.

torch counts writes as versions of a tensor, but not those through `.data` or a NumPy view, none to
a tensor made in inference mode, and none by a fused optimizer. A sample of a tensor's bytes tells
of these where they change most of it, as training, averaging and copying do; writing a few elements
may go unseen. On a GPU no sample is taken.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastbert.kernels import native


def written(tensor: Tensor) -> tuple[int, int]:
    """(version, sample): another value whenever a write to the tensor was noticed."""
    return (0 if tensor.is_inference() else tensor._version, sample(tensor))


def sample(tensor: Tensor) -> int:
    """A number from some of the bytes of a tensor on the CPU; see csrc/common/sample.h. 0 on other
    devices, and without the extension."""
    size = readable_bytes(tensor)
    if not size or native.reason() is not None:
        return 0
    return int(native.extension().sample(tensor.data_ptr(), size))


def readable_bytes(tensor: Tensor) -> int:
    """Bytes from a tensor's address to the end of its last element; 0 when not on the CPU."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _count_fused_steps(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Have torch count what fused optimizers write, which it does not by itself (torch 2.13)."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            weights = [p for p in group["params"] if not p.is_inference()]
            torch.autograd.graph.increment_version(weights)


register_optimizer_step_post_hook(_count_fused_steps)
