"""The compiled extension `fastbert._cuda`, and what every call to it needs besides operands."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastbert.errors import Unavailable
from fastbert.kernels import native

# Where operands must be; the emulation of the tests puts "cpu" here.
DEVICE = "cuda"


@functools.cache
def load() -> tuple[ModuleType | None, str]:
    """Return the extension, or None and the reason."""
    try:
        return native.imported("_cuda"), ""
    except ImportError as error:
        return None, (
            f"the CUDA library cannot be loaded ({error}); build with FASTBERT_CUDA=on on a "
            "machine that has nvcc"
        )


def extension() -> Any:
    """Return the extension.

    Raises:
        Unavailable: when it cannot be loaded, with the reason and the remedy.
    """
    module, reason = load()
    if module is None:
        raise Unavailable(f"CUDA kernels are not available: {reason}.")
    return module


def launch(entry: str, x: Tensor, *arguments: Any) -> None:
    """Call an entry of the extension, which launches a kernel on x's device.

    Where another device is current, torch makes x's current first and goes back afterwards: it
    remembers which one that was without touching it. Left to the extension, going back would create
    a context, some 500 MB, on a GPU that this process perhaps never uses.

    Args:
        entry: its name.
        x: an operand.
        arguments: those before the device and the stream.
    """
    call, device, stream = getattr(extension(), entry), *target(x)
    if DEVICE == "cuda" and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            call(*arguments, device, stream)
    else:
        call(*arguments, device, stream)


def target(x: Tensor) -> tuple[int, int]:
    """Return (device, stream) of a launch: the current stream of x's device."""
    device = x.device.index
    return device, torch.cuda.current_stream(device).cuda_stream
