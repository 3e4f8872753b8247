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


def target(x: Tensor) -> tuple[int, int]:
    """Return (device, stream) of a launch: the current stream of x's device."""
    device = x.device.index
    return device, torch.cuda.current_stream(device).cuda_stream
